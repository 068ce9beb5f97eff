"""torch-rechub's MMoE and ours, in the same sizes on the built-in Census sample."""

import numpy as np

from benchmarks.ours import ADAM, speed
from benchmarks.turns import timed
from common.paths import output_root
from data.census_income import MultiTaskDataModule
from multitask.mmoe import MMoE
from multitask.train import DATA

TASKS = ("income", "never_married")
NUM_EXPERTS, EXPERT_UNITS, TOWER_UNITS = 8, (16,), (8,)  # as in the paper's synthetic set-up
EMBEDDING_DIM = 4
BATCH_SIZE = 1024


def sample() -> MultiTaskDataModule:
    no_data = str(output_root() / "nothing")  # so that the sample is used
    data = MultiTaskDataModule(**DATA | dict(data_root=no_data, tasks=TASKS, batch_size=BATCH_SIZE), seed=0)
    data.setup()
    return data


def model(data: MultiTaskDataModule) -> MMoE:
    return MMoE(
        data.bin_edges,
        data.cardinalities,
        data.tasks,
        variant="mmoe",
        task_weights=[1.0] * len(TASKS),
        num_experts=NUM_EXPERTS,
        expert_units=EXPERT_UNITS,
        tower_units=TOWER_UNITS,
        embedding_dim=EMBEDDING_DIM,
        dropout=0.0,
        optimizer=ADAM,
    )


def ours(precision: str) -> float:
    """Samples per second of training."""
    data = sample()
    return speed(model(data), data, precision, monitor="val_auc_mean")


def rechub() -> float:
    """Samples per second of training; it takes raw dense values, while ours encodes them by bins."""
    from torch_rechub.basic.features import DenseFeature, SparseFeature
    from torch_rechub.models.multi_task import MMOE
    from torch_rechub.trainers import MTLTrainer
    from torch_rechub.utils.data import DataGenerator

    data = sample()
    dense, ids, label = data.read(data.rows["train"])
    features = [SparseFeature(f"C{i}", size, EMBEDDING_DIM) for i, size in enumerate(data.cardinalities)]
    features += [DenseFeature(f"I{i}") for i in range(dense.shape[1])]
    columns = {f"C{i}": ids[:, i].astype(np.int64) for i in range(ids.shape[1])}
    columns |= {f"I{i}": np.nan_to_num(dense[:, i]) for i in range(dense.shape[1])}
    types = ["classification"] * len(TASKS)
    peer = MMOE(
        features, types, NUM_EXPERTS, {"dims": list(EXPERT_UNITS)}, [{"dims": list(TOWER_UNITS)} for _ in TASKS]
    )
    generator = DataGenerator(columns, label)
    loader, _, _ = generator.generate_dataloader(split_ratio=[0.99, 0.005], batch_size=BATCH_SIZE)
    trainer = MTLTrainer(peer, types, optimizer_params={"lr": ADAM["learning_rate"]})
    return timed(lambda: trainer.train_one_epoch(loader), len(loader.dataset))
