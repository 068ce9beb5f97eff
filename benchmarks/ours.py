"""The models of this repo in the sizes of the comparisons, trained as in their scripts."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl

from common.data.data_module import RecommendationDataModule
from common.model.recommender import Recommender
from common.paths import output_root
from common.settings import Settings
from common.training.fit import fit_and_test
from data.criteo_data import ClickDataModule
from deepfm.deepfm import DeepFM
from deepfm.train import TRAINING
from dlrm.dlrmnet import DLRM

EMBEDDING_DIM = 16
HIDDEN_UNITS = (400, 400, 400)  # of DeepFM
BOTTOM_MLP_UNITS, TOP_MLP_UNITS = (512, 256, 64), (512, 256)  # of DLRM in the Kaggle run of the paper's code
ADAM = dict(optimizer="adam", learning_rate=1e-3, embedding_learning_rate=None, embedding_l2=0.0)
ADAM |= dict(schedule="linear", warmup_steps=0)
DEEPFM = dict(embedding_dim=EMBEDDING_DIM, hidden_units=HIDDEN_UNITS, dropout=0.0, batch_norm=False)
DEEPFM |= dict(on_regression=False, optimizer=ADAM)
ONE_EPOCH = dict(max_epochs=1, validations_per_epoch=1, patience=1, seed=1)


def deepfm(data: ClickDataModule) -> DeepFM:
    return DeepFM(data.num_dense, data.cardinalities, **DEEPFM)


def dlrm(data: ClickDataModule, **changes: str | float) -> DLRM:
    """changes: to ADAM."""
    return DLRM(
        data.num_dense,
        data.cardinalities,
        embedding_dim=EMBEDDING_DIM,
        bottom_mlp_units=BOTTOM_MLP_UNITS,
        top_mlp_units=TOP_MLP_UNITS,
        self_interaction=False,
        dropout=0.0,
        optimizer=ADAM | changes,
    )


def keep_rows(data: ClickDataModule, train: int | None, validate: int) -> None:
    """Keep `train` evenly spaced training rows (None: all), and the first `validate` validation rows."""
    step = max(1, len(data.rows["train"]) // train) if train else 1
    data.rows["train"] = data.rows["train"][::step][:train]
    data.rows["val"] = data.rows["val"][:validate]


def train_one_epoch(
    model: Recommender,
    data: RecommendationDataModule,
    folder: Path,
    precision: str = "auto",
    monitor: str = "val_auc",
    callbacks: Sequence[pl.Callback] = (),
) -> dict:
    """Contents of results.json; nothing is tested or plotted."""
    settings = Settings(
        data={"batch_size": data.batch_size}, model={}, optimizer=model.hparams.optimizer, training=TRAINING
    )
    return fit_and_test(
        model,
        data,
        folder,
        settings.changed(ONE_EPOCH | {"precision": precision}),
        monitor=monitor,
        baselines=lambda _: {},
        plot=lambda *_: None,
        callbacks=callbacks,
        test=False,
    )


def speed(model: Recommender, data: RecommendationDataModule, precision: str, monitor: str = "val_auc") -> float:
    """Samples per second of training through Lightning, with our loader; validation and checkpoints are not timed."""
    with tempfile.TemporaryDirectory(dir=output_root()) as folder:
        return train_one_epoch(model, data, Path(folder), precision, monitor)["train_samples_per_second"]
