"""Metrics of scored rows, also of those that share a value in a column, called a slice. N: rows, K: outputs."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from pandas.api.types import union_categoricals
from scipy.stats import binomtest
from torch import Tensor

from common.model.metrics import click_metrics, interval, rating_metrics

LEAST_ROWS, MOST_VALUES = 100, 30  # values with fewer rows, and those beyond the most frequent ones, are one slice
MISSING = "(missing)"

Metrics = dict[str, float]


class ScoredRows:
    """Collects labelled rows: 8 bytes a row for each output, 4 or less for each of the columns that make slices."""

    def __init__(self, outputs: Sequence[str], is_rating: bool, columns: Sequence[str]):
        self.outputs, self.is_rating, self.columns = outputs, is_rating, columns
        self.parts: list[tuple[Tensor, Tensor, list[pd.Categorical]]] = []

    def add(self, prediction: Tensor, label: Tensor, texts: Sequence[Sequence[str]]) -> None:
        """A block of rows: predictions and labels (N, K), nan if unknown, and the texts in each column."""
        if label.isfinite().any():
            self.parts.append((prediction, label, [pd.Categorical(column) for column in texts]))

    def metrics(self) -> tuple[dict[str, Metrics], pd.DataFrame]:
        """Metrics of each output that has labels; and of its slices, with 95 % intervals of the calibration or, for
        ratings, of the mean error."""
        found: dict[str, Metrics] = {}
        slices: list[dict[str, Any]] = []
        if not self.parts:
            return found, pd.DataFrame(slices)
        predictions, labels, blocks = zip(*self.parts, strict=True)
        texts = [union_categoricals(column) for column in zip(*blocks, strict=True)]
        measure, of_slice = (rating_metrics, _of_ratings) if self.is_rating else (click_metrics, _of_clicks)
        for output, prediction, label in zip(self.outputs, torch.cat(predictions).T, torch.cat(labels).T, strict=True):
            if (known := label.isfinite()).any():
                prediction, label = prediction[known], label[known]
                found[output] = measure(prediction, label)
                for name, column in zip(self.columns, texts, strict=True):
                    for value, where in _slices(pd.Series(column[known.numpy()])):
                        rows = torch.tensor(where)
                        row = {"output": output, "column": name, "value": value, "rows": int(rows.sum())}
                        slices.append(row | of_slice(prediction[rows], label[rows]))
        return found, pd.DataFrame(slices)


def _slices(texts: pd.Series) -> Iterator[tuple[str, np.ndarray]]:
    """Values, and which rows (N,) have them: in the order of numbers, otherwise the most frequent first."""
    counts = texts.value_counts()
    frequent = counts.index[counts >= LEAST_ROWS][:MOST_VALUES]
    numbers = pd.to_numeric(frequent.astype(object), errors="coerce").to_numpy()
    if not np.isnan(numbers[frequent != ""]).any():
        frequent = frequent[np.argsort(numbers)]  # nan, of a missing number, comes last
    for value in frequent:
        yield value or MISSING, (texts == value).to_numpy()
    if others := np.count_nonzero(counts) - len(frequent):
        yield f"{others:,} other values", ~texts.isin(frequent).to_numpy()


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
