"""The packed table against torch's embedding."""

import pytest
import torch

from common.model.embedding import PackedEmbedding, sum_row_gradients

SIZES = [3, 7, 2]


def make_ids(rows: int) -> torch.Tensor:
    return torch.stack([torch.randint(size, (rows,)) for size in SIZES], 1).int()


def make_table() -> PackedEmbedding:
    table = PackedEmbedding(SIZES, 5)
    torch.nn.init.normal_(table.weight)
    return table


def test_rows_are_those_of_one_table_per_field():
    table, ids = make_table(), make_ids(11)
    parts = table.weight.split(SIZES)
    expected = torch.stack([part[ids[:, f].long()] for f, part in enumerate(parts)], 1)
    torch.testing.assert_close(table(ids), expected, rtol=0, atol=0)


def test_gradient_is_sparse_and_equals_the_dense_one():
    table, ids = make_table(), make_ids(50)
    dense = table.weight.detach().clone().requires_grad_()
    (table(ids) ** 3).sum().backward()
    (dense[(ids + table.offsets).long()] ** 3).sum().backward()
    assert table.weight.grad.is_sparse
    torch.testing.assert_close(table.weight.grad.to_dense(), dense.grad)


@pytest.mark.parametrize("count", [1, 50_000])
def test_row_gradient_sums_each_row_once(count):
    rows, grad = torch.randint(0, 5000, (count,)).int(), torch.randint(-9, 9, (count, 3)).float()
    rows[0] = 4999  # the last row of the table
    summed = sum_row_gradients(rows, grad, torch.Size((5000, 3)))
    touched = summed._indices()[0]
    assert torch.equal(touched, rows.unique())
    expected = torch.zeros(5000, 3).index_add_(0, rows, grad)  # whole numbers: exact in any order
    assert torch.equal(summed._values(), expected[touched])
