"""test_predictions.parquet: what a run and its baselines predicted for each test row."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from common.data.data_module import RecommendationDataModule
from common.errors import check
from common.files import atomic_write, read_json
from common.process_group import on_rank_zero

PREDICTIONS = "test_predictions.parquet"


def write_predictions(
    folder: Path, data: RecommendationDataModule, target: Tensor, predictions: Mapping[str, Tensor]
) -> None:
    """One row per test row: its number among the rows read, kept columns, group, target, and each prediction.

    target, predictions: (N,), or (N, K) for K tasks, each of which gets its own column, such as "target income"."""
    groups, kept = data.groups("test"), getattr(data, "kept", None)
    row = {"row": np.asarray(data.rows["test"])}
    columns: dict[str, Any] = row | (kept("test") if kept else {}) | row  # kept columns come second, and yield
    columns |= {} if groups is None else {"group": groups}
    for name, values in {"target": target, **predictions}.items():
        names = columns_of(name, getattr(data, "tasks", []) if values.dim() == 2 else [])
        columns |= dict(zip(names, values.numpy().reshape(len(values), -1).T, strict=True))
    with atomic_write(folder / PREDICTIONS) as file:
        pd.DataFrame(columns).to_parquet(file, index=False)


def columns_of(name: str, tasks: Sequence[str]) -> list[str]:
    return [f"{name} {task}" for task in tasks] or [name]


def read_predictions(run_folder: str | Path, names: Sequence[str]) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """The named columns of a tested run, "target", "prediction" or baselines, (N,) or (N, K), and the groups, if any.

    Raises: UserError if the run has no predictions."""
    path = Path(run_folder, PREDICTIONS)
    check(path.exists(), f"{path} is missing: the run is unfinished or from an earlier version. Train it again.")
    frame = pd.read_parquet(path)
    tasks = [column.removeprefix("prediction ") for column in frame if str(column).startswith("prediction ")]
    found = {name: frame[name if name in frame else columns_of(name, tasks)].to_numpy() for name in names}
    return found, frame["group"].to_numpy() if "group" in frame else None


@on_rank_zero
def saved_predictions(folder: Path) -> dict[str, Tensor]:
    """Test predictions of a tested run ("prediction") and of its baselines, by name."""
    found, _ = read_predictions(folder, ["prediction", *read_json(folder / "results.json")["baselines"]])
    return {name: torch.from_numpy(values.copy()) for name, values in found.items()}
