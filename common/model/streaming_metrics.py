"""The metrics of common/model/metrics.py for files of any size, in constant memory."""

import numpy as np


class StreamingClickMetrics:
    """click_metrics in constant memory: the AUC comes from counts of probabilities without their lowest 8 bits."""

    SHIFT = 8  # the dropped bits; positive floats are ordered as their bits

    def __init__(self):
        self.count, self.clicks, self.probability, self.loss = 0, 0.0, 0.0, 0.0
        self.counts = np.zeros((2, (np.float32(1).view(np.int32) >> self.SHIFT) + 1), np.int64)

    def update(self, probability: np.ndarray, click: np.ndarray) -> None:
        np.add.at(self.counts, (click.astype(np.int64), probability.view(np.int32) >> self.SHIFT), 1)
        self.count += len(click)
        self.clicks += float(click.sum(dtype=np.float64))
        self.probability += float(probability.sum(dtype=np.float64))
        p = np.where(click == 1, probability, 1 - probability.astype(np.float64))
        self.loss -= float(np.log(np.maximum(p, np.exp(-100.0))).sum())

    def compute(self) -> dict[str, float]:
        negatives, positives = self.counts
        rate, log_loss = self.clicks / self.count, self.loss / self.count
        metrics = {"auc": float("nan"), "log_loss": log_loss, "normalized_entropy": float("nan")}
        if 0 < rate < 1:
            below = negatives.cumsum() - negatives / 2
            metrics["auc"] = float(positives @ below / (positives.sum() * negatives.sum()))
            metrics["normalized_entropy"] = log_loss / -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
        return metrics | {"calibration": self.probability / self.clicks if rate else float("nan")}


class StreamingRatingMetrics:
    """rating_metrics in constant memory."""

    def __init__(self):
        self.count, self.squares, self.absolute = 0, 0.0, 0.0

    def update(self, prediction: np.ndarray, rating: np.ndarray) -> None:
        error = prediction.astype(np.float64) - rating
        self.count += len(error)
        self.squares += float((error**2).sum())
        self.absolute += float(np.abs(error).sum())

    def compute(self) -> dict[str, float]:
        return {"rmse": (self.squares / self.count) ** 0.5, "mae": self.absolute / self.count}
