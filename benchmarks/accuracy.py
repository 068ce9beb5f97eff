"""The effect of the speed-ups on metrics, on the real data in DATA_ROOT: `python benchmarks/accuracy.py [MODEL ...]`.

Trains each model with the settings of its script and the changes of VARIANTS, once per seed in SEEDS.
The packed table and int32 ids change only the order of sums (tests/test_embedding.py), so they are not among the
variants. Writes accuracy.csv, with every run, and accuracy.md to OUTPUT.
"""

import importlib
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repo root, ahead of this folder

import pandas as pd

from common.errors import check, run_script
from common.paths import output_root
from common.training.seeds import markdown_table

MODELS = {"deepfm": "auc", "dlrm": "auc", "multitask": "auc_mean"}  # folder: metric in the table
SEEDS = (1, 2, 3)
OUTPUT = output_root() / "runs" / "accuracy"

# Name: changes for train. Adam normalises every gradient, so any L2, however small, pulls rows without another gradient
# to 0: dense updates are tried with several values, and validation chooses.
VARIANTS: dict[str, dict] = {
    "touched rows, float32": {"precision": "32-true"},
    "touched rows, bf16": {"precision": "bf16-mixed"},
} | {
    f"dense updates, L2 {l2:g}": {"precision": "32-true", "optimizer": "dense_adam", "embedding_l2": l2}
    for l2 in (0.0, 1e-6, 1e-5, 1e-4)
}


def main(*names: str) -> None:
    models = names or list(MODELS)
    check(set(models) <= set(MODELS), f"there is no model {' '.join(models)}; there are {', '.join(MODELS)}.")
    OUTPUT.mkdir(parents=True, exist_ok=True)
    os.environ["OUTPUT_ROOT"] = str(OUTPUT)  # apart from the user's runs, which results.py reads
    rows = []
    for model in models:
        train, metric = importlib.import_module(f"{model}.train").train, MODELS[model]
        for variant, changes in VARIANTS.items():
            for seed in SEEDS:
                results = train(seed=seed, **changes)
                check(not results["is_sample"], "there is no real data; set DATA_ROOT (see README.md).")
                rows.append(
                    {
                        "model": model,
                        "variant": variant,
                        "seed": seed,
                        "validation": results["validation"][metric],
                        "test": results["test"][metric],
                        "samples_per_second": results["train_samples_per_second"],
                    }
                )
                write_tables(pd.DataFrame(rows))


def write_tables(rows: pd.DataFrame) -> None:
    """Write accuracy.csv, and accuracy.md with mean and standard deviation over the seeds."""
    rows.to_csv(OUTPUT / "accuracy.csv", index=False)
    table = []
    for (model, variant), group in rows.groupby(["model", "variant"], sort=False):
        cells = (f"{group[split].mean():.4f} ± {group[split].std():.4f}" for split in ("validation", "test"))
        table.append([f"{model}, {MODELS[model]}", variant, *cells])
    (OUTPUT / "accuracy.md").write_text(markdown_table(["model, metric", "variant", "validation", "test"], table))


if __name__ == "__main__":
    run_script(main, "[NAME...]")
