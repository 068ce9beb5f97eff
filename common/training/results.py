"""What is written and shown of a finished run."""

import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from common.data.data_module import RecommendationDataModule
from common.training.run_folder import BEST_CHECKPOINT

FEW_STEPS = 150


def print_steps(epochs: int, steps: int, precision: str, data: RecommendationDataModule) -> None:
    """How long the run will be and in which precision, and what to change where that is short; steps: of an epoch."""
    print(f"Training for {_count(epochs, 'epoch')} of {_count(steps, 'step')}, precision {precision}.", flush=True)
    if epochs * steps < FEW_STEPS and not data.is_sample:
        print(
            f"{_count(epochs * steps, 'step')} in all may be too few to learn from {len(data.rows['train']):,} rows: a "
            f"smaller batch_size (now {data.batch_size:,}) or more max_epochs (now {epochs:,}) makes more.",
            flush=True,
        )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' if number != 1 else ''}"


def print_table(results: dict[str, Any], folder: Path) -> None:
    """Test metrics of the model and its baselines, and where everything was written."""
    import pandas as pd  # here, as it is slow to import and not needed before the end

    rows: dict[str, dict] = {results["model"]: results["test"]}
    for name, metrics in results["baselines"].items():
        rows[name] = metrics | {
            f"{metric}: {results['model']} minus it (95 %)": with_interval(interval)
            for metric, interval in results["differences"][name].items()
        }
    if results["best_possible"]:
        rows["best possible"] = results["best_possible"]
    sample = ", built-in sample" if results["is_sample"] else ""
    print(f"\nTest metrics, {results['dataset']}{sample}, {results['protocol']}, {results['rows']['test']:,} rows")
    print(pd.DataFrame.from_dict(rows, "index").to_string(float_format="{:.4f}".format, na_rep=""))
    if better := better_baselines(results["test"], results["baselines"]):
        print(f"Worse than {better}. Try a smaller batch_size, more max_epochs or a lower learning_rate.")
    if folder.name.startswith("version_"):  # not one of several runs of one command
        print(f"Score new rows: python predict.py {folder / BEST_CHECKPOINT} RAW_FILE")
        print(
            "Then: inspect_model.py, export_onnx.py; other seeds: seeds.py; a search of DLRM's settings: tune_dlrm.py"
        )
    print(f"Results, checkpoints and figures: {folder}", flush=True)


def with_interval(found: dict[str, float]) -> str:
    """A difference and half the width of its interval."""
    return f"{found['difference']:+.4f} ± {(found['high'] - found['low']) / 2:.4f}"


def better_baselines(test: dict[str, float], baselines: dict[str, dict[str, float]]) -> str:
    """The baselines that are better than the model in an AUC or the RMSE, to the digits that are shown; "" if none."""
    found = []
    for name, metrics in baselines.items():
        better = [
            metric
            for metric, value in test.items()
            if (metric.startswith("auc") and round(metrics[metric], 4) > round(value, 4))
            or (metric == "rmse" and round(metrics[metric], 4) < round(value, 4))
        ]
        if better:
            found.append(f"{name} ({', '.join(better)})")
    return " and ".join(found)


def peak_memory_mib() -> float:
    """Largest resident memory of this process so far; nan where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    unit = 1 if platform.system() == "Darwin" else 1024  # ru_maxrss is in bytes there, else in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def versions() -> dict[str, str]:
    """Of everything that a result depends on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pytorch_lightning": pl.__version__,
        "numpy": np.__version__,
        "processor": platform.processor() or platform.machine(),
    }
