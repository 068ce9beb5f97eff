"""Train DLRM on Criteo: `python dlrm/train.py`.

With the real rows below DATA_ROOT (python data/criteo_data.py) it trains on them, else on the built-in sample.
`python tune_dlrm.py` searches for better constants.
Expected on 137,139 rows drawn from Criteo in time order: AUC 0.7726 on validation, 0.7514 on test rows (3 seeds,
standard deviation 0.0017).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repo root, ahead of this folder

import pytorch_lightning as pl

from common.baselines import click_baselines
from common.errors import run_script
from common.figures import click_figures
from common.processes import on_ray
from common.run import claim_folder
from common.training import train_and_test
from data.criteo_data import CriteoDataModule
from dlrm.dlrmnet import DLRM
from dlrm.sharded import ShardedDLRM

# BOTTOM, BATCH_SIZE and MAX_EPOCHS are the paper's Kaggle run; EMBEDDING_DIM, TOP, OPTIMIZER and LEARNING_RATE were
# chosen on validation rows by tune_dlrm.py
DATASET = "criteo"  # folder below DATA_ROOT
SPLIT = "time"  # "time", or "random" (BARS x4)
NUMBERS_AS = "log"  # or "log+missing"
MIN_COUNT = 2  # training rows a category needs for an id of its own (the paper: 1, counted on all rows)
EMBEDDING_DIM = 32  # the paper: 16
BOTTOM = (512, 256, 64)  # hidden widths of the bottom MLP; its output has the width EMBEDDING_DIM
TOP = (128, 64)  # hidden widths of the top MLP (the paper: 512, 256)
SELF_INTERACTION = False
DROPOUT = 0.0  # of both MLPs
OPTIMIZER = "adam"  # or "adagrad", "sgd" (the paper's, with rate 0.1: far too slow for fewer than millions of rows)
LEARNING_RATE = 2.4e-3
EMBEDDING_L2 = 0.0  # on the embedding rows of a batch; "adam" only
SCHEDULE = "linear"  # of the learning rate: "linear" to 0 at the last epoch's end, or "plateau": x 0.1 at each stall
BATCH_SIZE = 128  # rows
MAX_EPOCHS = 1
VALIDATIONS_PER_EPOCH = 4
PATIENCE = 4  # validations without a better AUC before the run ends
SEED = 1
PRECISION = "32-true"  # bf16 is slower with layers as small as these
NUM_WORKERS = 0  # loader processes; slices of mapped arrays need none
DEVICES = 1  # processes on this machine that train together, one per GPU or CPU; BATCH_SIZE is that of all
NUM_NODES = 1  # machines; the script is started on each (README, More than one process)
SHARD_TABLE = False  # True: each process has a part of the table, which then need not fit into one machine
STRATEGY = "auto"  # "auto" is "ddp" for several processes; "ray": processes of a Ray cluster
RESUME = False  # True continues the newest unfinished run


@on_ray
def train(
    dataset=DATASET,
    data_root=None,
    split=SPLIT,
    numbers_as=NUMBERS_AS,
    min_count=MIN_COUNT,
    embedding_dim=EMBEDDING_DIM,
    bottom=BOTTOM,
    top=TOP,
    self_interaction=SELF_INTERACTION,
    dropout=DROPOUT,
    optimizer=OPTIMIZER,
    learning_rate=LEARNING_RATE,
    embedding_l2=EMBEDDING_L2,
    schedule=SCHEDULE,
    batch_size=BATCH_SIZE,
    max_epochs=MAX_EPOCHS,
    validations_per_epoch=VALIDATIONS_PER_EPOCH,
    patience=PATIENCE,
    seed=SEED,
    precision=PRECISION,
    num_workers=NUM_WORKERS,
    devices=DEVICES,
    num_nodes=NUM_NODES,
    strategy=STRATEGY,
    shard_table=SHARD_TABLE,
    resume=RESUME,
    run_folder=None,
    callbacks=(),
    test=True,
) -> dict:
    """Fit, test the best checkpoint, return the content of results.json.

    For a search: run_folder is where to write instead of runs/dlrm, callbacks are Lightning's, test=False leaves out
    the test split and the baselines.
    """
    settings = {name: value for name, value in locals().items() if name not in ("run_folder", "callbacks", "test")}
    with claim_folder("dlrm", settings, run_folder) as folder:
        data = CriteoDataModule(dataset, data_root, split, numbers_as, min_count, batch_size, seed, num_workers)
        data.setup()
        pl.seed_everything(seed, verbose=False)
        model = (ShardedDLRM if shard_table else DLRM)(
            data.num_numbers,
            data.field_sizes,
            embedding_dim,
            bottom,
            top,
            self_interaction,
            dropout,
            optimizer,
            learning_rate,
            embedding_l2,
        )
        return train_and_test(
            model,
            data,
            folder,
            settings,
            monitor="val_auc",
            mode="max",
            baselines=lambda: click_baselines(data),
            best_possible=data.best_possible,
            draw=click_figures,
            callbacks=callbacks,
            test=test,
        )


if __name__ == "__main__":
    run_script(train)
