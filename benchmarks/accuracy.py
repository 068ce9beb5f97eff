"""The effect of the speed-ups on metrics, on the real data in DATA_ROOT: `python benchmarks/accuracy.py [MODEL...]`.

Trains each model with the settings of its script and the changes of VARIANTS, once per seed; if it is interrupted, the
same command continues. The packed table and int32 ids change only the order of sums (tests/test_embedding.py), so they
are not among the variants. Prints a table, and writes it to OUTPUT/accuracy.md.
"""

import sys
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repo root, ahead of this folder

from common.errors import check, run_script
from common.paths import output_root
from common.training.seeds import markdown_table, train_seeds, values, with_sd

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


def main(*models: str) -> None:
    check(set(models) <= set(MODELS), f"there is no model {' '.join(models)}; there are {', '.join(MODELS)}.")
    rows = []
    for model in models or MODELS:
        train, metric = import_module(f"{model}.train").train, MODELS[model]
        for variant, changes in VARIANTS.items():
            results = train_seeds(train, SEEDS, OUTPUT / model / variant, **changes)
            check(not results[0]["is_sample"], f"{OUTPUT / model} is not of real data: set DATA_ROOT, and remove it.")
            validation = with_sd([each["validation"][metric] for each in results])
            rows.append([f"{model}, {metric}", variant, validation, with_sd(values(results, metric))])
    table = markdown_table(["model, metric", "variant", "validation", "test"], rows)
    (OUTPUT / "accuracy.md").write_text(table)
    print(f"\n{table}")


if __name__ == "__main__":
    run_script(main, "[NAME...]")
