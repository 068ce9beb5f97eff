"""The dot products of pairs against a double loop, and their gradients against autograd's."""

import pytest
import torch
from torch import Tensor

from common.model.dot_products import DotProducts


def loop(vectors: Tensor, self_interaction: bool) -> Tensor:
    count = vectors.shape[1]
    pairs = [(i, j) for i in range(count) for j in range(i + self_interaction)]
    return torch.stack([(vectors[:, i] * vectors[:, j]).sum(1) for i, j in pairs], 1)


@pytest.mark.parametrize("self_interaction", [False, True])
@pytest.mark.parametrize("sizes", [(4, 5, 3), (1, 2, 1), (3, 6, 2)])  # B, V, D
def test_outputs_and_gradients_equal_a_double_loop(sizes, self_interaction):
    vectors = torch.randn(sizes, dtype=torch.float64, requires_grad=True)
    dot_products = DotProducts(sizes[1], self_interaction)
    found, expected = dot_products(vectors), loop(vectors, self_interaction)
    torch.testing.assert_close(found, expected)
    torch.autograd.gradcheck(dot_products, vectors)
    grad = torch.randn_like(expected)
    torch.testing.assert_close(torch.autograd.grad(found, vectors, grad), torch.autograd.grad(expected, vectors, grad))


def test_one_vector_has_no_pair():
    assert DotProducts(1, False)(torch.randn(3, 1, 2)).shape == (3, 0)


def test_inputs_and_gradients_in_any_layout():
    vectors = torch.randn(3, 5, 4, dtype=torch.float64).mT.contiguous().mT.requires_grad_()
    dot_products, grad = DotProducts(5, False), torch.randn(10, 3, dtype=torch.float64).T
    found = torch.autograd.grad(dot_products(vectors), vectors, grad)
    torch.testing.assert_close(found, torch.autograd.grad(loop(vectors, False), vectors, grad))


def test_autocast_multiplies_in_bf16():
    vectors = torch.randn(16, 5, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = DotProducts(5, True)(vectors)
    (grad,), expected = torch.autograd.grad(found.sum(), vectors), loop(vectors, True)
    assert found.dtype == torch.bfloat16 and grad.dtype == torch.float32
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.05)
    torch.testing.assert_close(grad, torch.autograd.grad(expected.sum(), vectors)[0], rtol=0.02, atol=0.1)
