"""The factorization machine (Rendle 2010) on dense columns and table rows, with few passes over memory in its backward.

B: rows of a batch, I: dense columns, F: categorical fields, D: embedding size.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.linalg import vector_norm


def factorization_machine(dense: Tensor, dense_embedding: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """sum_i w_i x_i + sum_{i<j} <V_i, V_j> x_i x_j over all I + F columns (B,), and every V_i x_i (B, (I + F) D).

    dense (B, I): x of the dense columns; a category's x is 1. dense_embedding (I, D + 1) and rows (B, F, D + 1): V_i
    followed by w_i. The vectors are the input of the deep part, so under autocast they have its dtype; everything else
    is computed in the dtype of the rows.
    """
    device = rows.device.type
    casts = torch.is_autocast_enabled(device) and rows.dtype == torch.float32  # autocast leaves float64 alone
    dtype = torch.get_autocast_dtype(device) if casts else rows.dtype
    with torch.autocast(device, enabled=False):
        return FusedFM.apply(dense, dense_embedding, rows, dtype)


class FusedFM(torch.autograd.Function):
    """factorization_machine, with the dtype of the vectors as its last argument.

    Autograd's backward would fill one more tensor as large as `rows` for each slice and each sum of it.
    """

    @staticmethod
    def forward(
        ctx: Any, dense: Tensor, dense_embedding: Tensor, rows: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        dim = rows.shape[2] - 1
        # cast before concatenating: one pass less
        parts = [dense.unsqueeze(2) * dense_embedding[:, :dim], rows[..., :dim]]
        vectors = torch.cat([part.to(dtype) for part in parts], 1)  # (B, I + F, D)
        # 1/2 [(sum_i v_i)^2 - sum_i v_i^2] for the pairs (Rendle 2010, Lemma 3.1), v_i being V_i x_i
        sums = torch.addmm(rows.sum(1), dense, dense_embedding)  # (B, D + 1)
        total, first_order = sums[:, :dim], sums[:, dim]
        squares = vector_norm(rows, dim=(1, 2)).square() - rows[..., dim].square().sum(1)
        squares = torch.addmv(squares, dense.square(), dense_embedding[:, :dim].square().sum(1))
        ctx.save_for_backward(dense, dense_embedding, rows, total)
        return first_order + 0.5 * (total.square().sum(1) - squares), vectors.flatten(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, vectors_grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        dense, dense_embedding, rows, total = ctx.saved_tensors
        num_dense, dim = dense.shape[1], rows.shape[2] - 1
        vectors, weights = dense_embedding[:, :dim], dense_embedding[:, dim]
        vectors_grad = vectors_grad.unflatten(1, (-1, dim))  # (B, I + F, D)
        with torch.autocast(rows.device.type, enabled=False):
            # the gradient of v_i is grad (sum_j v_j - v_i) plus the deep part's; that of w_i x_i is grad
            rows_grad = torch.empty_like(rows)
            category_grad = rows_grad[..., :dim]
            torch.add(vectors_grad[:, num_dense:], (grad.unsqueeze(1) * total).unsqueeze(1), out=category_grad)
            category_grad.addcmul_(rows[..., :dim], -grad[:, None, None])
            rows_grad[..., dim] = grad.unsqueeze(1)
            # the same for v_i = V_i x_i, summed over the batch without materialising all v_i
            deep_grad = vectors_grad[:, :num_dense].to(rows.dtype)
            scaled = grad.unsqueeze(1) * dense  # (B, I)
            embedding_grad = torch.empty_like(dense_embedding)
            embedding_grad[:, :dim] = torch.einsum("bi,bid->id", dense, deep_grad) + scaled.T @ total
            embedding_grad[:, :dim] -= vectors * (scaled * dense).sum(0).unsqueeze(1)
            embedding_grad[:, dim] = scaled.sum(0)
            dense_grad = None
            if ctx.needs_input_grad[0]:
                pairs_grad = total @ vectors.T - dense * vectors.square().sum(1)
                dense_grad = torch.einsum("bid,id->bi", deep_grad, vectors) + grad.unsqueeze(1) * (pairs_grad + weights)
        return dense_grad, embedding_grad, rows_grad, None
