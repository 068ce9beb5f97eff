"""Train DeepFM on Criteo: `python deepfm/train.py`.

With the real rows below DATA_ROOT (python data/criteo_data.py) it trains on them, else on the built-in sample.
Expected on the sample: test AUC 0.807 (best possible 0.814).
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
from deepfm.deepfm import DeepFM

DATASET = "criteo"  # folder below DATA_ROOT
SPLIT = "time"  # "time", or "random" (BARS x4)
NUMBERS_AS = "log+missing"  # or "log"; in both a field is value times vector. "bucket": categories
MIN_COUNT = 2  # training rows a category needs for an id of its own
EMBEDDING_DIM = 16  # k in the paper (which uses 10)
HIDDEN = (128, 128)  # widths of the deep part (the paper: 400, 400, 400; no better here and three times slower)
DROPOUT = 0.2  # of the deep part (the paper: 0.5)
BATCH_NORM = False  # in the deep part; of several processes each takes the mean of its own rows
EMBEDDING_L2 = 5e-3  # on the embedding rows of a batch
LEARNING_RATE = 1e-3  # of Adam
EMBEDDING_LEARNING_RATE = 3e-3  # of Adam on the embedding table: its vectors start small and have few steps to grow
SCHEDULE = "linear"  # of the learning rate: "linear" to 0 at the last epoch's end, or "plateau": x 0.1 at each stall
BATCH_SIZE = 1024  # rows
MAX_EPOCHS = 2
VALIDATIONS_PER_EPOCH = 2
PATIENCE = 2  # validations without a better AUC before the run ends
SEED = 1
PRECISION = "auto"  # "auto" (bf16 where the processor has it), "32-true", "bf16-mixed"
NUM_WORKERS = 0  # loader processes; slices of mapped arrays need none
DEVICES = 1  # processes on this machine that train together, one per GPU or CPU; BATCH_SIZE is that of all
NUM_NODES = 1  # machines; the script is started on each (README, More than one process)
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
    hidden=HIDDEN,
    dropout=DROPOUT,
    batch_norm=BATCH_NORM,
    embedding_l2=EMBEDDING_L2,
    learning_rate=LEARNING_RATE,
    embedding_learning_rate=EMBEDDING_LEARNING_RATE,
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
    resume=RESUME,
) -> dict:
    """Fit, test the best checkpoint, return the content of results.json."""
    settings = dict(locals())
    with claim_folder("deepfm", settings) as folder:
        data = CriteoDataModule(dataset, data_root, split, numbers_as, min_count, batch_size, seed, num_workers)
        data.setup()
        pl.seed_everything(seed, verbose=False)
        model = DeepFM(
            data.num_numbers,
            data.field_sizes,
            embedding_dim,
            hidden,
            dropout,
            batch_norm,
            learning_rate,
            embedding_learning_rate,
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
        )


if __name__ == "__main__":
    run_script(train)
