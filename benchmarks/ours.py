"""The models of this repo in the sizes of the comparisons, trained as their scripts train them."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl

from common.module import Recommender
from common.paths import output_root
from common.training import train_and_test
from data.criteo_data import CriteoDataModule
from deepfm.deepfm import DeepFM
from dlrm.dlrmnet import DLRM

EMBEDDING_DIM = 16
HIDDEN = (400, 400, 400)  # of DeepFM
BOTTOM, TOP = (512, 256, 64), (512, 256)  # hidden widths of DLRM in the Kaggle run of the paper's code
LEARNING_RATE = 1e-3  # of Adam


def deepfm(data: CriteoDataModule) -> DeepFM:
    sizes = data.num_numbers, data.field_sizes, EMBEDDING_DIM, HIDDEN
    return DeepFM(*sizes, 0.0, False, LEARNING_RATE, LEARNING_RATE, 0.0)


def dlrm(data: CriteoDataModule, optimizer: str = "adam", learning_rate: float = LEARNING_RATE) -> DLRM:
    sizes = data.num_numbers, data.field_sizes, EMBEDDING_DIM, BOTTOM, TOP
    return DLRM(*sizes, False, 0.0, optimizer, learning_rate, 0.0)


def keep_rows(data: CriteoDataModule, train: int | None, validate: int) -> None:
    """Leave `train` of the training rows, evenly spread (None: all), and the first `validate` validation rows."""
    step = max(1, len(data.rows["train"]) // train) if train else 1
    data.rows["train"] = data.rows["train"][::step][:train]
    data.rows["val"] = data.rows["val"][:validate]


def train_one_epoch(
    model: Recommender,
    data: pl.LightningDataModule,
    folder: Path,
    precision: str = "auto",
    monitor: str = "val_auc",
    callbacks: Sequence[pl.Callback] = (),
) -> dict:
    """The content of results.json; nothing is tested or drawn."""
    settings = {"max_epochs": 1, "validations_per_epoch": 1, "precision": precision, "schedule": "linear"}
    settings |= {"patience": 1, "seed": 1, "devices": 1, "num_nodes": 1, "strategy": "auto"}
    return train_and_test(
        model,
        data,
        folder,
        settings,
        monitor=monitor,
        mode="min" if monitor == "val_rmse" else "max",
        baselines=dict,
        best_possible=dict,
        draw=lambda *_: None,
        callbacks=callbacks,
        test=False,
    )


def speed(model: Recommender, data: pl.LightningDataModule, precision: str, monitor: str = "val_auc") -> float:
    """Samples per second of training through Lightning, own loader included, validation and checkpoints left out."""
    with tempfile.TemporaryDirectory(dir=output_root()) as folder:
        return train_one_epoch(model, data, Path(folder), precision, monitor)["train_samples_per_second"]
