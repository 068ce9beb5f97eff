"""What a run prints and records: its length, the table of test metrics, memory and versions."""

import platform
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch

from common.data.data_module import RecommendationDataModule
from common.model.metrics import mode_of
from common.settings import by_rows
from common.training.run_folder import BEST_CHECKPOINT

FEW_STEPS = 300  # a run with fewer prints advice, unless it has as many as "auto" would give
WORTH_A_WORD = 5e-5  # least difference from a better baseline, of four digits shown
BEST_POSSIBLE = "best possible"


def tested_metrics(results: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Test metrics by name: of the model, of the baselines, and of the planted model of the built-in sample."""
    best = {BEST_POSSIBLE: results["best_possible"]} if results["best_possible"] else {}
    return {results["model"]: results["test"], **results["baselines"], **best}


def print_steps(epochs: int, steps: int, precision: str, data: RecommendationDataModule) -> None:
    """Print the length and precision of the run, and what to change if it is short; steps: per epoch."""
    count = lambda number, what: f"{number:,} {what}{'s' if number != 1 else ''}"  # noqa: E731
    size = f"batch_size {data.batch_size:,}, precision {precision}"
    print(f"Training for {count(epochs, 'epoch')} of {count(steps, 'step')}, {size}.", flush=True)
    rows = len(data.rows["train"])
    most, least = by_rows(rows)
    if epochs * steps < FEW_STEPS and (data.batch_size > most or epochs < least) and not data.is_sample:
        advice = f'Set batch_size={most} and max_epochs={max(least, epochs)}, or "auto".'
        print(f"{count(epochs * steps, 'step')} may be too few to learn from {rows:,} rows. {advice}", flush=True)


def print_table(results: dict[str, Any], folder: Path, data: RecommendationDataModule, scores: Sequence[float]) -> None:
    """Print the test metrics, and where everything was written; scores: see likely_cause."""
    rows: dict[str, dict] = tested_metrics(results)
    for name, differences in results["differences"].items():
        texts = {f"{metric}: model - baseline (95 %)": with_interval(found) for metric, found in differences.items()}
        rows[name] = rows[name] | texts
    sample = ", built-in sample" if results["is_sample"] else ""
    print(f"\nTest metrics, {results['dataset']}{sample}, {results['protocol']}, {results['rows']['test']:,} rows")
    print(pd.DataFrame.from_dict(rows, "index").to_string(float_format="{:.4f}".format, na_rep=""))
    if better := better_baselines(results["test"], results["baselines"]):
        print(f"Worse than {better}. Likely cause: {likely_cause(scores)}.")
    if folder.name.startswith("version_"):  # otherwise it is one of several runs of a command
        print(f"Score new rows: python predict.py {folder / BEST_CHECKPOINT} RAW_FILE")
        print("See also: inspect_model.py, export_onnx.py; seeds.py (several seeds); tune_dlrm.py (DLRM's settings)")
    print(f"Results, checkpoints and figures: {folder}", flush=True)


def with_interval(found: dict[str, float]) -> str:
    """A difference and half the width of its interval."""
    return f"{found['difference']:+.4f} ± {(found['high'] - found['low']) / 2:.4f}"


def better_baselines(test: dict[str, float], baselines: dict[str, dict[str, float]]) -> str:
    """The baselines that beat the model, visibly, in an AUC, NDCG or RMSE; the constant also in log loss."""
    found = []
    for name, metrics in baselines.items():
        counted = [m for m in test if m.startswith(("auc", "ndcg", "rmse")) or (m, name) == ("log_loss", "constant")]
        gains = {m: (metrics[m] - test[m]) * (1 if mode_of(m) == "max" else -1) for m in counted}
        if better := [metric for metric, gain in gains.items() if gain > WORTH_A_WORD]:
            found.append(f"{name} ({', '.join(better)})")
    return " and ".join(found)


def likely_cause(scores: Sequence[float]) -> str:
    """Why a model may be worse than a plain one. scores: of its validations, in order; higher is better."""
    best = scores.index(max(scores))
    if best == len(scores) - 1:
        return "it was still improving; set a larger max_epochs or a smaller batch_size"
    remedy = "set a larger embedding_l2 or dropout, or a lower learning_rate"
    return f"it overfitted, best at validation {best + 1} of {len(scores)}; {remedy}"


def peak_memory_mib() -> float:
    """Largest resident memory of this process so far."""
    unit = 1 if platform.system() == "Darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def versions() -> dict[str, str]:
    """Versions of everything that a result depends on."""
    packages = {package.__name__: package.__version__ for package in (torch, pl, np)}
    return {"python": platform.python_version()} | packages | {"processor": platform.processor() or platform.machine()}
