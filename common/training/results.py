"""What is written and shown of a finished run."""

import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch


def print_table(results: dict[str, Any], folder: Path) -> None:
    """Test metrics of the model and its baselines, and where everything was written."""
    import pandas as pd  # here, as it is slow to import and not needed before the end

    rows = {results["model"]: results["test"]} | results["baselines"]
    if results["best_possible"]:
        rows["best possible"] = results["best_possible"]
    sample = ", built-in sample" if results["is_sample"] else ""
    print(f"\nTest metrics, {results['dataset']}{sample}, {results['protocol']}, {results['rows']['test']:,} rows")
    print(pd.DataFrame(rows).T.to_string(float_format="{:.4f}".format, na_rep=""))
    print(f"Results, checkpoints and figures: {folder}", flush=True)


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
