"""Train MMoE, or one of the models it generalises, on Census Income: `python multitask/train.py`.

With the real rows below DATA_ROOT (python data/census_income.py) it trains on them, else on the built-in sample.
Expected on Census-Income (KDD): test AUC 0.952 of income and 0.994 of never married (0.936 and 0.993 in the paper).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repo root, ahead of this folder

import pytorch_lightning as pl

from common.errors import run_script
from common.processes import on_ray
from common.run import claim_folder
from common.training import train_and_test
from data.census_income import CensusIncomeDataModule
from multitask.baselines import logistic_regression
from multitask.gates import GateUse, draw_gates
from multitask.mmoe import MMoE

MODEL = "mmoe"  # "mmoe", "omoe", "shared_bottom" or "single_task"
DATASET = "census-income-kdd"  # folder below DATA_ROOT: "census-income-kdd" or "adult"
TASKS = ("income", "never_married")  # the paper's group 1; group 2: ("education", "never_married")
TASK_WEIGHTS = (1.0, 1.0)  # of the losses
NUM_EXPERTS = 8
EXPERT_UNITS = (32, 32)  # widths of an expert's layers
TOWER_UNITS = (16,)  # widths of a tower's hidden layers
EMBEDDING_DIM = 4
MIN_COUNT = 5  # training rows that a value needs for an id of its own
NUM_BINS = 16  # of each numeric column
DROPOUT = 0.3  # of experts and towers
EMBEDDING_L2 = 0.0  # on the embedding rows of a batch
LEARNING_RATE = 2e-3  # of Adam
SCHEDULE = "linear"  # of the learning rate: "linear" to 0 at the last epoch's end, or "plateau": x 0.1 at each stall
BATCH_SIZE = 512  # rows
MAX_EPOCHS = 6
VALIDATIONS_PER_EPOCH = 1
PATIENCE = 2  # validations without a better mean AUC before the run ends
SEED = 1
PRECISION = "auto"  # "auto" (bf16 where the processor has it), "32-true", "bf16-mixed"
NUM_WORKERS = 0  # loader processes; slices of mapped arrays need none
DEVICES = 1  # processes on this machine that train together, one per GPU or CPU; BATCH_SIZE is that of all
NUM_NODES = 1  # machines; the script is started on each (README, More than one process)
STRATEGY = "auto"  # "auto" is "ddp" for several processes; "ray": processes of a Ray cluster
RESUME = False  # True continues the newest unfinished run


@on_ray
def train(
    model=MODEL,
    dataset=DATASET,
    data_root=None,
    tasks=TASKS,
    task_weights=TASK_WEIGHTS,
    num_experts=NUM_EXPERTS,
    expert_units=EXPERT_UNITS,
    tower_units=TOWER_UNITS,
    embedding_dim=EMBEDDING_DIM,
    min_count=MIN_COUNT,
    num_bins=NUM_BINS,
    dropout=DROPOUT,
    embedding_l2=EMBEDDING_L2,
    learning_rate=LEARNING_RATE,
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
    run_folder=None,
    baselines=logistic_regression,
) -> dict:
    """Fit, test the best checkpoint, return the content of results.json.

    run_folder: in place of a new one below runs/multitask; baselines: data module -> test metrics by name.
    """
    settings = {name: value for name, value in locals().items() if name not in ("run_folder", "baselines")}
    with claim_folder("multitask", settings, run_folder) as folder:
        data = CensusIncomeDataModule(dataset, data_root, tasks, min_count, num_bins, batch_size, seed, num_workers)
        data.setup()
        pl.seed_everything(seed, verbose=False)
        network = MMoE(
            model,
            data.encoder.bin_edges,
            data.encoder.field_sizes,
            list(tasks),
            list(task_weights),
            num_experts,
            expert_units,
            tower_units,
            embedding_dim,
            dropout,
            learning_rate,
            embedding_l2,
        )
        return train_and_test(
            network,
            data,
            folder,
            settings,
            monitor="val_auc_mean",
            mode="max",
            baselines=lambda: baselines(data),
            best_possible=data.best_possible,
            draw=lambda network, folder: draw_gates(network, *data.read("test"), folder / "gates.png"),
            callbacks=[GateUse(folder)],
        )


if __name__ == "__main__":
    run_script(train)
