"""Validation metrics of the logistic regression, for each encoding of numbers.

`python benchmarks/studies/regression.py [DATASET [SPLIT]]`. No test row is read.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repo root, ahead of this folder

import torch

from common.errors import run_script
from common.model.metrics import click_metrics
from common.training.baselines import design, fit_regression
from data.criteo_data import ClickDataModule
from deepfm.train import DATA

TRANSFORMS = ("log", "log+missing", "quantile", "log+quantile")


def main(dataset: str = "criteo", split: str = "time") -> None:
    for transform in TRANSFORMS:
        data = ClickDataModule(**DATA | {"dataset": dataset, "split": split, "dense_transform": transform}, seed=1)
        data.setup()
        x_val, y_val = design(data, "val")
        if model := fit_regression(data):
            probability = torch.from_numpy(model.predict_proba(x_val)[:, 1])
            measured = click_metrics(probability, torch.from_numpy(y_val).double())
            print(f"{transform}: C {model.C}, " + ", ".join(f"{name} {value:.4f}" for name, value in measured.items()))


if __name__ == "__main__":
    run_script(main, "[DATASET [SPLIT]]")
