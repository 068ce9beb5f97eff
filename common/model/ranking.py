"""Metrics of ranking every item of the training rows for a held-out row; no sampled candidates.

N: rows, M: items, K: length of a list.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from common.model.metrics import Differences, Groups, PredictionMetric, interval

TOP, LONG = 10, 50  # lengths of the lists that are measured


class RankingMetrics(PredictionMetric):
    """HR and NDCG of a list of 10, mean reciprocal rank, recall of a list of 50, coverage of all items by the lists. A
    prediction is what `ranked` returns, the target the number of items (N,)."""

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Scores of all items, and 1 for the item that came, nan for those that are no candidates (B, M)."""
        super().update(ranked(prediction, target), torch.full((len(target),), float(target.shape[1])))

    def measure(self, prediction: Tensor, target: Tensor, groups: Groups = None) -> dict[str, float]:
        prediction = prediction.reshape(len(prediction), -1)  # ranks without lists cover nothing
        values = {name: value.mean().item() for name, value in of_rows(prediction[:, 0]).items()}
        listed = prediction[:, 1:]
        return values | {"coverage": len(listed[listed >= 0].unique()) / float(target[0])}

    def compare(self, prediction: Tensor, other: Tensor, target: Tensor, groups: Groups = None) -> Differences:
        ours, theirs = of_rows(prediction[:, 0]), of_rows(other[:, 0])
        return {name: mean_interval((ours[name] - theirs[name]).numpy(), groups) for name in ("hr", "ndcg")}


def ranked(score: Tensor, target: Tensor) -> Tensor:
    """The rank of the item that came, from 1, and the numbers of the best items (N, 1 + TOP), -1 where there is none.

    score (N, M), target (N, M): 1 for the item that came, nan for items that are no candidates. Ties count against the
    item. The rank is 0 if it is not among the items, nan if a score is not finite."""
    came = target == 1
    candidate = score.masked_fill(target.isnan(), -math.inf)
    own = candidate.masked_fill(~came, -math.inf).amax(1, keepdim=True)
    rank = ((candidate >= own).sum(1) * came.any(1)).where(score.isfinite().all(1), torch.nan)
    value, best = candidate.topk(min(TOP, score.shape[1]), 1)
    best = pad(best.masked_fill(value == -math.inf, -1), (0, TOP - best.shape[1]), value=-1)
    return torch.cat([rank.unsqueeze(1), best], 1).float()


def of_rows(rank: Tensor) -> dict[str, Tensor]:
    """hr, ndcg, mrr and recall_50 of each row with one item to find, from its rank, 0 if it is missing (N,) float64."""
    rank = rank.cpu().double().where(rank.cpu() > 0, math.inf)
    hit = (rank <= TOP).double()
    return {"hr": hit, "ndcg": hit / (rank + 1).log2(), "mrr": 1 / rank, "recall_50": (rank <= LONG).double()}


def mean_interval(values: np.ndarray, groups: Groups) -> dict[str, float]:
    """Mean of values (N,) with a 95 % interval over groups (N,), such as users, whose rows are not independent."""
    group = np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]
    total = np.bincount(group, values - values.mean())  # a ratio of means: rows of a user enter together
    count = len(total)
    error = math.sqrt((total**2).sum() * count / max(1, count - 1)) / len(values)
    return interval(float(values.mean()), error)
