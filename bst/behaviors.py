"""What a user's past consists of, as vectors: items, their ratings, time gaps and positions.

B: rows of a batch, L: length of the history, D: embedding size, M: item ids, G: buckets of time gaps.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding, embedding_bag


def behaviors(
    vectors: Tensor, gaps: Tensor, positions: Tensor, history: Tensor, residual: Tensor, time_gap: Tensor
) -> Tensor:
    """vectors (M, 2 D): of each item, followed by what a residual of 1 adds; gaps (G, D), positions (L, D), history,
    residual, time_gap (B, L) -> (B, L, D)."""
    vector, strength = embedding(history, vectors).chunk(2, 2)
    return vector + strength * residual.unsqueeze(2) + embedding(time_gap, gaps) + positions


class FusedBehaviors(torch.autograd.Function):
    """`behaviors` in one pass, and its gradients from sorted rows: training takes two thirds of the time."""

    @staticmethod
    def forward(
        ctx: Any, vectors: Tensor, gaps: Tensor, positions: Tensor, history: Tensor, residual: Tensor, time_gap: Tensor
    ) -> Tensor:
        (items, width), length = vectors.shape, len(positions)
        moment = time_gap * length + torch.arange(length, dtype=torch.int32, device=history.device)
        moments = (gaps.unsqueeze(1) + positions).flatten(0, 1)  # (G L, D)
        table = torch.cat([vectors.view(2 * items, width // 2), moments])
        rows = torch.stack([2 * history, 2 * history + 1, 2 * items + moment], 2).flatten(0, 1)  # (B L, 3)
        weights = torch.ones_like(rows, dtype=vectors.dtype)
        weights[:, 1] = residual.flatten()
        ctx.save_for_backward(history, residual, moment)
        ctx.sizes = items, len(gaps)
        return embedding_bag(rows, table, per_sample_weights=weights, mode="sum").unflatten(0, history.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        history, residual, moment = ctx.saved_tensors
        items, gaps = ctx.sizes
        vector, strength = _sums(history, grad, items, None), _sums(history, grad, items, residual)
        moments = _sums(moment, grad, gaps * grad.shape[1], None).unflatten(0, (gaps, -1))  # (G, L, D)
        return torch.cat([vector, strength], 1), moments.sum(1), moments.sum(0), None, None, None


def _sums(rows: Tensor, grad: Tensor, count: int, weights: Tensor | None) -> Tensor:
    """Sums of the gradients (B, L, D), times weights (B, L), by row number (B, L) -> (count, D)."""
    ordered, order = rows.flatten().sort()
    starts = torch.searchsorted(ordered, torch.arange(count, dtype=rows.dtype, device=rows.device))
    weights = None if weights is None else weights.flatten()[order]
    # a bag holds the occurrences of one row, so one pass sums all gradients
    return embedding_bag(order, grad.flatten(0, 1), starts, mode="sum", per_sample_weights=weights)
