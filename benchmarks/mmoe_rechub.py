"""MMoE of torch-rechub and ours, in the same sizes on the built-in Census sample."""

import numpy as np

from benchmarks.ours import speed
from benchmarks.turns import timed
from common.paths import output_root
from data.census_income import CensusIncomeDataModule
from multitask.mmoe import MMoE

TASKS = ("income", "never_married")
EXPERTS, EXPERT_UNITS, TOWER_UNITS = 8, (16,), (8,)  # as in the paper's synthetic set-up
EMBEDDING_DIM = 4
BATCH_SIZE = 1024
LEARNING_RATE = 1e-3


def sample() -> CensusIncomeDataModule:
    data = CensusIncomeDataModule(data_root=str(output_root() / "nothing"), tasks=TASKS, batch_size=BATCH_SIZE)
    data.setup()
    return data


def model(data: CensusIncomeDataModule) -> MMoE:
    inputs = "mmoe", data.encoder.bin_edges, data.encoder.field_sizes, list(TASKS), [1.0] * len(TASKS)
    return MMoE(*inputs, EXPERTS, EXPERT_UNITS, TOWER_UNITS, EMBEDDING_DIM, 0.0, LEARNING_RATE, 0.0)


def ours(precision: str) -> float:
    """Samples per second of training."""
    data = sample()
    return speed(model(data), data, precision, monitor="val_auc_mean")


def rechub() -> float:
    """Samples per second of training; its numbers are inputs as they are, ours have bins besides."""
    from torch_rechub.basic.features import DenseFeature, SparseFeature
    from torch_rechub.models.multi_task import MMOE
    from torch_rechub.trainers import MTLTrainer
    from torch_rechub.utils.data import DataGenerator

    data = sample()
    numbers, ids, label = data.read("train")
    features = [SparseFeature(f"C{i}", size, EMBEDDING_DIM) for i, size in enumerate(data.encoder.field_sizes)]
    features += [DenseFeature(f"I{i}") for i in range(numbers.shape[1])]
    columns = {f"C{i}": ids[:, i].astype(np.int64) for i in range(ids.shape[1])}
    columns |= {f"I{i}": np.nan_to_num(numbers[:, i]) for i in range(numbers.shape[1])}
    types = ["classification"] * len(TASKS)
    peer = MMOE(features, types, EXPERTS, {"dims": list(EXPERT_UNITS)}, [{"dims": list(TOWER_UNITS)} for _ in TASKS])
    generator = DataGenerator(columns, label)
    loader, _, _ = generator.generate_dataloader(split_ratio=[0.99, 0.005], batch_size=BATCH_SIZE)
    trainer = MTLTrainer(peer, types, optimizer_params={"lr": LEARNING_RATE})
    return timed(lambda: trainer.train_one_epoch(loader), len(loader.dataset))
