"""Dot products between the vectors of a row, whose backward is one gather and one matrix product.

B: rows of a batch, F: categorical fields, D: embedding size, P: feature pairs. vectors: 1 + F per row, the bottom MLP's
and those of the fields.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class DotProducts(nn.Module):
    """<v_i, v_j> for all pairs i > j, also i = j with self_interaction: vectors (B, 1 + F, D) -> (B, P)."""

    pairs: Tensor
    where: Tensor

    def __init__(self, num_vectors: int, self_interaction: bool):
        super().__init__()
        i, j = torch.tril_indices(num_vectors, num_vectors, 0 if self_interaction else -1)  # (P,) each
        self.num_pairs = len(i)
        where = torch.full((num_vectors, num_vectors), self.num_pairs)  # P marks an entry that is no pair
        where[i, j] = where[j, i] = torch.arange(self.num_pairs)
        self.register_buffer("pairs", i * num_vectors + j, persistent=False)
        self.register_buffer("where", where.flatten(), persistent=False)

    def forward(self, vectors: Tensor) -> Tensor:
        return ChosenProducts.apply(vectors, self.pairs, self.where)


class ChosenProducts(torch.autograd.Function):
    """Entries `pairs` (P,) of the flat matrices v v^T: vectors (B, 1 + F, D) -> (B, P).

    where ((1 + F)²,): for each entry its index among the pairs, the same for (i, j) and (j, i); P if it is no pair."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, pairs: Tensor, where: Tensor) -> Tensor:
        ctx.save_for_backward(vectors, where)
        return torch.bmm(vectors, vectors.mT).flatten(1).index_select(1, pairs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        vectors, where = ctx.saved_tensors
        num_vectors = vectors.shape[1]
        # both vectors of a product v_i v_j get its gradient: gathered into a symmetric matrix, it takes one product.
        # Autograd would scatter it into one half of a matrix of zeros and multiply by that and by its transpose
        padded = torch.nn.functional.pad(grad, (0, 1))  # (B, P + 1), with 0 for entries that are no pair
        matrix = padded.index_select(1, where).unflatten(1, (num_vectors, num_vectors))
        matrix.diagonal(dim1=1, dim2=2).mul_(2)  # the derivative of v_i v_i is 2 v_i
        return torch.bmm(matrix, vectors.to(matrix.dtype)).to(vectors.dtype), None, None
