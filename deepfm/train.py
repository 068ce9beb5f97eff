"""Train DeepFM on Criteo: `python deepfm/train.py`.

Trains on the real rows if DATA_ROOT has them (`python data/criteo_data.py` downloads them), otherwise on the built-in
sample, where the test AUC should reach 0.808 (best possible: 0.814).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repo root, ahead of this folder

from common.errors import answer_help, run_script

answer_help(__doc__, "", __name__)  # before the imports below, which take seconds

from functools import partial
from typing import Any

import pytorch_lightning as pl

from common.cluster.launch import on_ray
from common.settings import Settings
from common.training.baselines import click_baselines, fit_regression
from common.training.fit import fit_and_test
from common.training.plots import plot_clicks
from common.training.run_folder import claim_run_folder
from data.criteo_data import ClickDataModule
from deepfm.deepfm import DeepFM

DATA = dict(
    dataset="criteo",  # folder in data_root; or "ml-1m", "adult", "census-income-kdd", or a table of your own
    data_root=None,  # None: the environment variable DATA_ROOT, otherwise data/raw
    split="time",  # or "random": 8:1:1, on the full dataset BARS Criteo_x4; "official", of Adult (docs/protocols.md)
    dense_transform="log+quantile",  # a number and a category; or "log", "log+missing", "bucket", "quantile"
    min_count=2,  # training rows in which a value must occur to get its own id
    weighted=False,  # True: the training loss weights each row by the column with the role "weight"; metrics do not
    negative_rate=1.0,  # share of training rows without a click that is kept; probabilities are corrected for it
    batch_size="auto",  # rows, over all processes; "auto": by the number of rows, see AUTO
    num_workers=0,  # loader processes; slices of memory-mapped arrays need none
)
MODEL = dict(
    embedding_dim=16,  # k in the paper, which uses 10
    hidden_units=(128, 128),  # of the deep part; paper: (400, 400, 400), no better here and three times slower
    dropout=0.2,  # of the deep part; paper: 0.5
    on_regression=True,  # first-order weights start from a logistic regression (docs/recipes.md); paper: they do not
    batch_norm=False,  # in the deep part; each process normalises by its own rows
)
OPTIMIZER = dict(
    optimizer="adam",  # steps the table rows in a batch; "dense_adam", as in the paper, all; or "adagrad", "sgd"
    learning_rate=1e-3,
    embedding_learning_rate=3e-3,  # of the table, whose vectors start small and are stepped rarely
    embedding_l2=1e-3,  # on the table rows that are stepped
    schedule="linear",  # or "cosine", both to 0 at the end of max_epochs; or "plateau": x 0.1 without improvement
    warmup_steps=0,  # in which the rate rises linearly, before the schedule
)
TRAINING = dict(
    max_epochs="auto",
    validations_per_epoch=2,
    monitor="auto",  # what chooses the checkpoint and stops the run: a metric of metrics.csv such as "val_log_loss"
    patience=4,  # validations without a better one before the run stops; None: it does not
    seed=1,  # of initial weights, dropout and the order of rows
    precision="auto",  # bf16 if that is faster, otherwise float32; or "32-true", "bf16-mixed"
    devices=1,  # processes on this machine, one per GPU or CPU
    num_nodes=1,  # machines; start the script on each (docs/processes.md)
    strategy="auto",  # DDP if there are several processes; or "ray": processes of a Ray cluster
    logger="csv",  # metrics.csv alone; or "tensorboard"; or Lightning's, or a function that makes one (docs/day.md)
    start_from=None,  # or an earlier checkpoint whose weights are kept; values that it does not know get new rows
    resume=False,  # True: continue the newest unfinished run
)
# "auto" with many training rows; with few, batches are smaller and epochs more (by_rows in common/settings.py)
AUTO = dict(batch_size=1024, max_epochs=3)


@on_ray("deepfm", TRAINING)
def train(*, run_folder: str | Path | None = None, **changes: Any) -> dict[str, Any]:
    """Train DeepFM, test its best checkpoint and return the contents of results.json.

    changes: settings above to change, by name: train(seed=2, dropout=0.5)."""
    settings = Settings(DATA, MODEL, OPTIMIZER, TRAINING).changed(changes)
    with claim_run_folder("deepfm", settings.flat(), run_folder) as folder:
        data = ClickDataModule(**settings.data, seed=settings.training["seed"])
        data.setup()
        settings = settings.for_rows(len(data.rows["train"]), AUTO)
        data.batch_size = settings.data["batch_size"]
        pl.seed_everything(settings.training["seed"], verbose=False)
        model = DeepFM(
            data.num_dense, data.cardinalities, pooling=data.pooling, **settings.model, optimizer=settings.optimizer
        )
        model.bias.data.fill_(data.base_logits[0])  # starts at the click rate of the training rows
        baselines = click_baselines
        if model.regression is not None and (regression := fit_regression(data)):
            # what exceeds the base rate, at which the model's own bias starts
            model.regression.set(regression.coef_[0], regression.intercept_.item() - data.base_logits[0])
            baselines = partial(click_baselines, regression=regression)
        return fit_and_test(model, data, folder, settings, "val_auc", baselines, plot_clicks)


if __name__ == "__main__":
    run_script(train)
