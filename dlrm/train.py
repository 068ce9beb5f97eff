"""Train DLRM on Criteo: `python dlrm/train.py`.

Trains on the real rows if DATA_ROOT has them (`python data/criteo_data.py` downloads them), otherwise on the built-in
sample. `python tune_dlrm.py` searches for better settings. On 137,139 rows of Criteo in time order the AUC should reach
0.773 on validation rows and 0.753 on test rows (3 seeds).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repo root, ahead of this folder

from common.errors import answer_help, run_script

answer_help(__doc__, "", __name__)  # before the imports below, which take seconds

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl

from common.cluster.launch import on_ray
from common.settings import Settings
from common.training.baselines import click_baselines
from common.training.fit import fit_and_test
from common.training.plots import plot_clicks
from common.training.run_folder import claim_run_folder
from data.criteo_data import ClickDataModule
from dlrm.dlrmnet import DLRM
from dlrm.sharded import ShardedDLRM

# "paper" is the Kaggle run of the paper's code; values that differ were chosen on validation rows by tune_dlrm.py
DATA = dict(
    dataset="criteo",  # folder in data_root; or "ml-1m", "adult", "census-income-kdd", or a table of your own
    data_root=None,  # None: the environment variable DATA_ROOT, otherwise data/raw
    split="time",  # or "random": 8:1:1, on the full dataset BARS Criteo_x4; "official", of Adult (docs/protocols.md)
    dense_transform="log+quantile",  # or "log", "log+missing", "bucket", "quantile"; paper: "clamped_log"
    min_count=2,  # training rows in which a value must occur to get its own id; paper: 1, counted on all rows
    weighted=False,  # True: the training loss weights each row by the column with the role "weight"; metrics do not
    negative_rate=1.0,  # share of training rows without a click that is kept; probabilities are corrected for it
    batch_size="auto",  # rows, over all processes; "auto": by the number of rows, see AUTO
    num_workers=0,  # loader processes; slices of memory-mapped arrays need none
)
MODEL = dict(
    embedding_dim=32,  # paper: 16
    bottom_mlp_units=(512, 256, 64),  # hidden layers; the output has embedding_dim units
    top_mlp_units=(128, 64),  # hidden layers; paper: (512, 256)
    self_interaction=False,  # whether products of vectors with themselves are inputs of the top MLP
    dropout=0.0,  # of both MLPs; paper: none
)
OPTIMIZER = dict(
    optimizer="adam",  # or "dense_adam", "adagrad", "sgd" (paper, at 0.1: far too slow with few rows)
    learning_rate=2.4e-3,
    embedding_learning_rate=5e-3,  # of the table; None: learning_rate
    embedding_l2=3e-4,  # on the table rows in a batch, with "dense_adam" on all; 0 with "adagrad" and "sgd"
    schedule="linear",  # or "cosine", both to 0 at the end of max_epochs; or "plateau": x 0.1 without improvement
    warmup_steps=0,  # in which the rate rises linearly, before the schedule
)
TRAINING = dict(
    max_epochs="auto",
    validations_per_epoch=4,
    monitor="auto",  # what chooses the checkpoint and stops the run: a metric of metrics.csv such as "val_log_loss"
    patience=4,  # validations without a better one before the run stops; None: it does not
    seed=1,  # of initial weights, dropout and the order of rows
    precision="auto",  # bf16 if that is faster, otherwise float32; or "32-true", "bf16-mixed"
    shard_table=False,  # True: each process holds a part of the table, for tables larger than a machine's memory
    devices=1,  # processes on this machine, one per GPU or CPU
    num_nodes=1,  # machines; start the script on each (docs/processes.md)
    strategy="auto",  # DDP if there are several processes; or "ray": processes of a Ray cluster
    logger="csv",  # metrics.csv alone; or "tensorboard"; or Lightning's, or a function that makes one (docs/day.md)
    start_from=None,  # or an earlier checkpoint whose weights are kept; values that it does not know get new rows
    resume=False,  # True: continue the newest unfinished run
)
# "auto" with many training rows; with few, batches are smaller and epochs more (by_rows in common/settings.py)
AUTO = dict(batch_size=128, max_epochs=1)


@on_ray("dlrm", TRAINING)
def train(
    *, run_folder: str | Path | None = None, callbacks: Sequence[pl.Callback] = (), test: bool = True, **changes: Any
) -> dict[str, Any]:
    """Train DLRM, test its best checkpoint and return the contents of results.json.

    changes: settings above to change, by name: train(seed=2, dropout=0.5). test: False for a trial of a search, which
    must not see the test rows."""
    settings = Settings(DATA, MODEL, OPTIMIZER, TRAINING).changed(changes)
    with claim_run_folder("dlrm", settings.flat(), run_folder) as folder:
        data = ClickDataModule(**settings.data, seed=settings.training["seed"])
        data.setup()
        settings = settings.for_rows(len(data.rows["train"]), AUTO)
        data.batch_size = settings.data["batch_size"]
        pl.seed_everything(settings.training["seed"], verbose=False)
        dlrm = ShardedDLRM if settings.training["shard_table"] else DLRM
        model = dlrm(
            data.num_dense, data.cardinalities, pooling=data.pooling, **settings.model, optimizer=settings.optimizer
        )
        model.output.bias.data.fill_(data.base_logits[0])  # starts at the click rate of the training rows
        return fit_and_test(model, data, folder, settings, "val_auc", click_baselines, plot_clicks, callbacks, test)


if __name__ == "__main__":
    run_script(train)
