"""Runs with several seeds: mean and spread, metrics of the averaged predictions, and paired differences."""

from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats

from common.errors import check
from common.model.metrics import ClickMetrics, PredictionMetric, RatingMetrics, TaskMetrics
from common.model.ranking import RankingMetrics
from common.training.predictions import read_predictions

CONFIDENCE = 0.95  # of all intervals

Results = dict[str, Any]  # the contents of a results.json


def train_seeds(
    train: Callable[..., Results], seeds: Iterable[int], folder: str | Path, **changes: Any
) -> list[Results]:
    """What `train(seed=seed, **changes)` returns for each seed, in folder/seed_N; finished runs are kept."""
    return [train(run_folder=Path(folder, f"seed_{seed}"), seed=seed, **changes) for seed in seeds]


def values(results: Sequence[Results], metric: str, baseline: str | None = None) -> np.ndarray:
    """A test metric of each run, or of its baseline; nan if it is undefined."""
    tested = [each["baselines"][baseline] if baseline else each["test"] for each in results]
    return np.array([metrics[metric] for metrics in tested], float)  # undefined metrics are None in results.json


def paired_difference(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float, float]:
    """Mean difference of numbers paired by seed, and the ends of its CONFIDENCE interval (Student's t)."""
    low, high = stats.ttest_rel(ours, theirs).confidence_interval(CONFIDENCE)
    return float(np.mean(ours - theirs)), float(low), float(high)


def metrics_of(names: Collection[str]) -> PredictionMetric:
    """The metric class that measures metrics of these names, such as those in a results.json."""
    tasks = [name.removeprefix("auc_") for name in names if name.startswith("auc_") and name != "auc_mean"]
    kinds = {"ndcg": RankingMetrics, "rmse": RatingMetrics, "auc": ClickMetrics}
    return TaskMetrics(tasks) if tasks else next(kind for name, kind in kinds.items() if name in names)()


def averaged_metrics(results: Sequence[Results]) -> dict[str, float]:
    """Test metrics of the mean prediction of several runs."""
    found = [read_predictions(each["run_folder"], ["row", "target", "prediction"]) for each in results]
    first, groups = found[0]
    for each, (columns, _) in zip(results, found, strict=True):
        same = all(np.array_equal(columns[name], first[name], equal_nan=True) for name in ("row", "target"))
        runs = f"{results[0]['run_folder']} and {each['run_folder']}"
        check(same, f"{runs} are not for the same test rows in the same order.")
    mean = np.mean([columns["prediction"] for columns, _ in found], 0, np.float64)
    return metrics_of(results[0]["test"]).measure(torch.tensor(mean), torch.tensor(first["target"]).double(), groups)


def summary_table(groups: dict[str, list[Results]]) -> pd.DataFrame:
    """Test metrics of each group of runs, as mean ± sd and for the averaged predictions; then the baselines'."""
    rows = {}
    for name, results in groups.items():
        metrics = list(results[0]["test"])
        rows[f"{name}, {len(results)} seeds"] = {m: with_sd(values(results, m)) for m in metrics}
        if "ndcg" not in metrics:  # what is saved then is ranks, which cannot be averaged
            averaged = averaged_metrics(results)
            rows[f"{name}, averaged predictions"] = {m: f"{averaged[m]:.4f}" for m in metrics}
    first = next(iter(groups.values()))
    for baseline, tested in first[0]["baselines"].items():
        rows[baseline] = {m: with_sd(values(first, m, baseline)) for m in tested}
    return pd.DataFrame(rows).T.fillna("")


def difference_table(groups: dict[str, list[Results]]) -> pd.DataFrame:
    """The first group minus its baselines, and the other groups minus the first, paired by seed."""
    (name, first), *others = groups.items()
    metrics = [m for m in first[0]["test"] if m.startswith(("auc", "gauc", "rmse", "log_loss", "hr", "ndcg"))]
    pairs = {f"{name} - {baseline}": (first, first, baseline) for baseline in first[0]["baselines"]}
    pairs |= {f"{other} - {name}": (results, first, None) for other, results in others}
    rows = {
        label: {
            m: "{:+.4f} [{:+.4f}, {:+.4f}]".format(*paired_difference(values(ours, m), values(theirs, m, baseline)))
            for m in metrics
            if baseline is None or m in theirs[0]["baselines"][baseline]
        }
        for label, (ours, theirs, baseline) in pairs.items()
    }
    return pd.DataFrame(rows).T.fillna("")


def with_sd(numbers: Sequence[float] | np.ndarray) -> str:
    """ "0.7514 ± 0.0017"; without the spread if all numbers are equal."""
    return f"{np.mean(numbers):.4f}" + (f" ± {np.std(numbers, ddof=1):.4f}" if np.ptp(numbers) > 0 else "")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "".join(f"| {' | '.join(line)} |\n" for line in (header, ["---"] * len(header), *rows))
