"""The items that a model expects users to rate highest, among those that they have not rated."""

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from data.history_preprocessor import HistoryPreprocessor

CHUNK_ITEMS = 8192  # scored at a time


def top_items(
    score: Callable[[list[Tensor]], Tensor], preprocessor: HistoryPreprocessor, user: int, count: int
) -> list[tuple[int, float]]:
    """The best items of a user and their scores, the best first; of equal scores the one that sorts first.

    score: inputs of N rows -> (N, 1).
    """
    candidates = preprocessor.candidates(user)
    best: tuple[Any, Any] = (np.empty(0, np.int64), np.empty(0, np.float32))
    for start in range(0, len(candidates), CHUNK_ITEMS):
        items = candidates[start : start + CHUNK_ITEMS]
        scores = score(preprocessor.user_inputs(user, items))[:, 0].numpy()
        items, scores = np.concatenate([best[0], items]), np.concatenate([best[1], scores])
        order = np.argsort(-scores, kind="stable")[:count]
        best = items[order], scores[order]
    return list(zip(best[0].tolist(), best[1].tolist(), strict=True))
