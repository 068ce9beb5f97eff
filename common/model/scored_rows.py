"""Metrics of scored rows, also of those that share a value in a column, called a slice. N: rows, K: outputs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest
from torch import Tensor

from common.model.comparison import interval
from common.model.metrics import click_metrics, rating_metrics

LEAST_ROWS, MOST_VALUES = 100, 30  # values with fewer rows, and those beyond the most frequent ones, are one slice
MISSING = "(missing)"

Metrics = dict[str, float]


class ScoredRows:
    """Collects labelled rows: 8 bytes a row for each output, 4 for each of the columns that make slices."""

    def __init__(self, outputs: Sequence[str], is_rating: bool, columns: Sequence[str]):
        self.outputs, self.is_rating = outputs, is_rating
        self.codes: dict[str, dict[str, int]] = {column: {} for column in columns}  # by text
        self.parts: list[tuple[Tensor, ...]] = []  # predictions (N, K), labels (N, K), codes of a column (N,), ...

    def add(self, prediction: Tensor, label: Tensor, texts: Sequence[Sequence[str]]) -> None:
        """A block of rows: predictions and labels (N, K), nan if unknown, and the texts in each column."""
        if label.isfinite().any():
            pairs = zip(self.codes.values(), texts, strict=True)
            numbers = [
                torch.tensor([c.setdefault(text, len(c)) for text in part], dtype=torch.int32) for c, part in pairs
            ]
            self.parts.append((prediction, label, *numbers))

    def metrics(self) -> tuple[dict[str, Metrics], pd.DataFrame]:
        """Metrics of each output that has labels; and of its slices, with 95 % intervals of the calibration or, for
        ratings, of the mean error."""
        found: dict[str, Metrics] = {}
        slices: list[dict[str, Any]] = []
        measure, of_slice = (rating_metrics, _of_ratings) if self.is_rating else (click_metrics, _of_clicks)
        if self.parts:
            predictions, labels, *codes = map(torch.cat, zip(*self.parts, strict=True))
            for output, prediction, label in zip(self.outputs, predictions.T, labels.T, strict=True):
                if (known := label.isfinite()).any():
                    prediction, label = prediction[known], label[known]
                    found[output] = measure(prediction, label)
                    for (column, texts), code in zip(self.codes.items(), codes, strict=True):
                        for value, rows in _slices(list(texts), code[known].numpy()):
                            row = {"output": output, "column": column, "value": value, "rows": int(rows.sum())}
                            slices.append(row | of_slice(prediction[rows], label[rows]))
        return found, pd.DataFrame(slices)


def _slices(texts: list[str], code: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Values, and which rows (N,) have them: in the order of numbers, otherwise the most frequent first."""
    counts = np.bincount(code, minlength=len(texts))
    frequent = [i for i in np.argsort(-counts, kind="stable")[:MOST_VALUES] if counts[i] >= LEAST_ROWS]
    try:
        frequent.sort(key=lambda i: float(texts[i] or "inf"))
    except ValueError:
        frequent.sort(key=lambda i: -counts[i])
    found = [(texts[i] or MISSING, code == i) for i in frequent]
    others = np.count_nonzero(counts) - len(frequent)
    return found + ([(f"{others:,} other values", ~np.isin(code, frequent))] if others else [])


def _of_clicks(probability: Tensor, click: Tensor) -> Metrics:
    found = click_metrics(probability, click)
    rate = binomtest(int(click.sum()), len(click)).proportion_ci(method="wilson")
    mean = probability.double().mean().item()
    ends = {"low": mean / rate.high, "high": mean / rate.low if rate.low > 0 else np.inf}
    return {name: found[name] for name in ("auc", "log_loss", "calibration")} | ends


def _of_ratings(prediction: Tensor, rating: Tensor) -> Metrics:
    error = prediction.double() - rating
    difference, low, high = interval(error.mean().item(), error.std().item() / len(error) ** 0.5).values()
    return rating_metrics(prediction, rating) | {"mean_error": difference, "low": low, "high": high}
