"""The income in Adult or Census-Income by scikit-learn's gradient boosted trees, on the inputs of a run of MMoE.

`python benchmarks/studies/boosted_trees.py RUN_FOLDER` (runs/multitask/version_N) prints their AUC on validation rows
by number of trees, and for the best number the test AUC of the run minus theirs.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repo root, ahead of this folder

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier

from common.errors import run_script
from common.files import read_json
from common.model.metrics import auc, auc_difference
from common.training.predictions import saved_predictions
from common.training.results import with_interval
from data.census_income import MultiTaskDataModule
from multitask.train import DATA

TREES, EVERY, LEARNING_RATE = 300, 50, 0.06
MOST_CATEGORIES = 255  # of scikit-learn's trees; the ids above share one


def main(run_folder: str) -> None:
    settings = read_json(Path(run_folder, "results.json"))["settings"]
    data = MultiTaskDataModule(**{name: settings[name] for name in DATA}, seed=settings["seed"])
    data.setup()
    task = data.tasks.index("income")
    categorical = [field.kind == "text" for field in data.encoder.fields]
    x, y = {}, {}
    for split, rows in data.rows.items():
        dense, ids, label = data.read(rows)
        x[split] = np.concatenate([dense, ids[:, categorical].clip(max=MOST_CATEGORIES - 1)], 1)
        y[split] = torch.from_numpy(label[:, task])
    trees = HistGradientBoostingClassifier(
        learning_rate=LEARNING_RATE,
        max_iter=TREES,
        l2_regularization=1.0,
        early_stopping=False,
        categorical_features=np.arange(x["train"].shape[1]) >= data.num_dense,
    ).fit(x["train"], y["train"].numpy())
    found = {}
    for count, probability in enumerate(trees.staged_predict_proba(x["val"]), 1):
        if count % EVERY == 0:
            found[count] = auc(torch.from_numpy(probability[:, 1]), y["val"])
            print(f"{count} trees: validation AUC {found[count]:.4f}")
    best = max(found, key=lambda count: found[count])
    tested = next(p for count, p in enumerate(trees.staged_predict_proba(x["test"]), 1) if count == best)[:, 1]
    ours, theirs = saved_predictions(Path(run_folder))["prediction"][:, task], torch.from_numpy(tested)
    difference = with_interval(auc_difference(ours, theirs, y["test"]))
    print(
        f"{best} trees: test AUC {auc(theirs, y['test']):.4f}; the run's is {auc(ours, y['test']):.4f} ({difference})"
    )


if __name__ == "__main__":
    run_script(main, "RUN_FOLDER")
