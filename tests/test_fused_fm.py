"""The fused factorization machine against its plain equation."""

import pytest
import torch
from torch import Tensor

from common.model.fused_fm import factorization_machine

SIZES = [(5, 3, 4, 2), (1, 3, 4, 2), (1, 0, 2, 3), (4, 0, 3, 2), (3, 2, 1, 1)]  # B, I, F, D


def plain(dense: Tensor, dense_embedding: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    rows = torch.cat([dense.unsqueeze(2) * dense_embedding, rows], 1)
    first_order, v = rows[..., -1], rows[..., :-1]
    pairs = 0.5 * (v.sum(1).square() - v.square().sum(1)).sum(1)
    return first_order.sum(1) + pairs, v.flatten(1)


def make_inputs(batch: int, num_dense: int, fields: int, dim: int, dtype=torch.float64) -> list[Tensor]:
    shapes = [(batch, num_dense), (num_dense, dim + 1), (batch, fields, dim + 1)]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("sizes", SIZES)
def test_outputs_and_gradients_equal_the_plain_equation(sizes):
    inputs = make_inputs(*sizes)
    fused, expected = factorization_machine(*inputs), plain(*inputs)
    torch.testing.assert_close(fused, expected)
    torch.autograd.gradcheck(factorization_machine, inputs)
    grads = [torch.randn_like(output) for output in expected]
    torch.testing.assert_close(torch.autograd.grad(fused, inputs, grads), torch.autograd.grad(expected, inputs, grads))


@pytest.mark.parametrize("used", [0, 1])
def test_a_loss_of_one_of_both_outputs(used):
    inputs = make_inputs(5, 3, 4, 2)
    losses = [f(*inputs)[used].square().sum() for f in (factorization_machine, plain)]
    found, expected = (torch.autograd.grad(loss, inputs, allow_unused=True) for loss in losses)
    for one, other, given in zip(found, expected, inputs, strict=True):
        torch.testing.assert_close(one, torch.zeros_like(given) if other is None else other)


def test_inputs_and_gradients_in_any_layout():
    inputs = make_inputs(5, 3, 4, 2)
    dense, dense_embedding, rows = (part.detach().mT.contiguous().mT.requires_grad_() for part in inputs)
    assert not rows.is_contiguous()
    strided = [dense, dense_embedding, rows]
    grads = [torch.randn(1, dtype=torch.float64).expand(5), torch.randn(14, 5, dtype=torch.float64).T]
    found = torch.autograd.grad(factorization_machine(*strided), strided, grads)
    torch.testing.assert_close(found, torch.autograd.grad(plain(*inputs), inputs, grads))


def test_the_gradient_of_rows_is_one_block():
    dense, dense_embedding, rows = make_inputs(5, 3, 4, 2)
    fm, vectors = factorization_machine(dense, dense_embedding, rows)
    assert torch.autograd.grad([fm.sum() + vectors.sum()], rows)[0].is_contiguous()  # the lookup flattens it, uncopied


@pytest.mark.parametrize("backward_too", [False, True])
def test_autocast_rounds_the_vectors_alone(backward_too):
    inputs = make_inputs(64, 3, 4, 2, dtype=torch.float32)
    grads = [torch.randn(64), torch.randn(64, 14).bfloat16()]
    fm, vectors = plain(*inputs)
    expected = torch.autograd.grad([fm, vectors], inputs, [grads[0], grads[1].float()])
    with torch.autocast("cpu", torch.bfloat16):
        fused = factorization_machine(*inputs)
        found = torch.autograd.grad(fused, inputs, grads, retain_graph=True) if backward_too else None
    found = found or torch.autograd.grad(fused, inputs, grads)
    assert [output.dtype for output in fused] == [torch.float32, torch.bfloat16]
    assert [grad.dtype for grad in found] == [torch.float32] * 3
    torch.testing.assert_close(fused, (fm, vectors.bfloat16()))
    torch.testing.assert_close(found, expected)


def test_autocast_leaves_float64_alone():
    inputs = make_inputs(5, 3, 4, 2)
    with torch.autocast("cpu", torch.bfloat16):
        fused = factorization_machine(*inputs)
    torch.testing.assert_close(fused, plain(*inputs))


def test_large_first_order_weights_do_not_blur_the_pairs():
    inputs = make_inputs(64, 3, 26, 16, dtype=torch.float32)
    with torch.no_grad():
        inputs[2][..., -1] *= 10
        exact = plain(*(part.double() for part in inputs))[0]
        error = (factorization_machine(*inputs)[0] - exact).abs().max()
        assert error < 1e-4 * exact.abs().max()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu():
    inputs = [part.detach().cuda().requires_grad_() for part in make_inputs(5, 3, 4, 2)]
    torch.testing.assert_close(factorization_machine(*inputs), plain(*inputs))
    torch.autograd.gradcheck(factorization_machine, inputs)
