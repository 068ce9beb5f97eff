"""Train MMoE, or a model it generalises, on Census-Income: `python multitask/train.py`.

Trains on the real rows if DATA_ROOT has them (`python data/census_income.py` downloads them), otherwise on the built-in
sample. On Census-Income (KDD) the test AUC should reach 0.952 for income and 0.994 for never married (paper: 0.936 and
0.993).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repo root, ahead of this folder

from common.errors import answer_help, run_script

answer_help(__doc__, "", __name__)  # before the imports below, which take seconds

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch

from common.cluster.launch import on_ray
from common.settings import Settings
from common.training.fit import fit_and_test
from common.training.run_folder import claim_run_folder
from data.census_income import MultiTaskDataModule
from multitask.baselines import logistic_regression
from multitask.expert_usage import plot_gates
from multitask.mmoe import MMoE

DATA = dict(
    dataset="census-income-kdd",  # folder in data_root; or "adult", or a table of your own
    data_root=None,  # None: the environment variable DATA_ROOT, otherwise data/raw
    split=None,  # the test file in halves, as in the paper; "official": all of it, validation rows from the other file
    tasks=("income", "never_married"),  # the paper's group 1; group 2: ("education", "never_married")
    label_inputs=False,  # True: labels that are not in tasks are inputs; in the paper they are not
    min_count=5,  # training rows in which a value must occur to get its own id
    num_bins=16,  # of each numeric column, by quantiles
    weighted=False,  # True: the training loss weights each row by the column with the role "weight"; metrics do not
    batch_size="auto",  # rows, over all processes; "auto": by the number of rows, see AUTO
    num_workers=0,  # loader processes; slices of memory-mapped arrays need none
)
MODEL = dict(
    variant="mmoe",  # or "omoe", "shared_bottom", "single_task"
    task_weights=(1.0, 1.0),  # of the losses
    num_experts=8,
    expert_units=(32, 32),  # layers of an expert
    tower_units=(16,),  # hidden layers of a tower
    embedding_dim=4,
    dropout=0.3,  # of experts and towers
)
OPTIMIZER = dict(
    optimizer="adam",  # or "dense_adam", or "adagrad", "sgd", both with embedding_l2=0
    learning_rate=2e-3,
    embedding_learning_rate=None,  # of the table; None: learning_rate
    embedding_l2=0.0,  # on the table rows in a batch, with "dense_adam" on all
    schedule="linear",  # or "cosine", both to 0 at the end of max_epochs; or "plateau": x 0.1 without improvement
    warmup_steps=0,  # in which the rate rises linearly, before the schedule
)
TRAINING = dict(
    max_epochs="auto",
    validations_per_epoch=1,
    monitor="auto",  # what chooses the checkpoint and stops the run: a metric of metrics.csv such as "val_log_loss"
    patience=2,  # validations without a better one before the run stops; None: it does not
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
AUTO = dict(batch_size=512, max_epochs=6)


@on_ray("multitask", TRAINING)
def train(
    *, run_folder: str | Path | None = None, baselines: Callable[..., dict] = logistic_regression, **changes: Any
) -> dict[str, Any]:
    """Train MMoE, test its best checkpoint and return the contents of results.json.

    changes: settings above to change, by name: train(seed=2, variant="omoe"). baselines: as in fit_and_test."""
    settings = Settings(DATA, MODEL, OPTIMIZER, TRAINING).changed(changes)
    with claim_run_folder("multitask", settings.flat(), run_folder) as folder:
        data = MultiTaskDataModule(**settings.data, seed=settings.training["seed"])
        data.setup()
        settings = settings.for_rows(len(data.rows["train"]), AUTO)
        data.batch_size = settings.data["batch_size"]
        pl.seed_everything(settings.training["seed"], verbose=False)
        model = MMoE(
            data.bin_edges,
            data.cardinalities,
            data.tasks,
            pooling=data.pooling,
            **settings.model,
            optimizer=settings.optimizer,
        )
        # starts at the positive rates of the training rows
        model.outputs.bias.data.copy_(torch.tensor(data.base_logits).view(-1, 1, 1))
        return fit_and_test(model, data, folder, settings, "val_auc_mean", baselines, plot_gates)


if __name__ == "__main__":
    run_script(train)
