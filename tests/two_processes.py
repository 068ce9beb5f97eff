"""The results of two epochs of each model in so many processes; test_processes.py compares them."""

from importlib import import_module

import pytorch_lightning as pl
import torch

from common.data.loader import BatchLoader, EpochSampler
from common.process_group import distributed_trainer_kwargs, is_rank_zero
from models import MODELS

ROWS, BATCH_SIZE, STEPS = 333, 32, 22  # the last of 11 batches has 13 rows: one process has 7 of them, the other 6


class Rows(torch.utils.data.Dataset):
    def __init__(self, batch: list[torch.Tensor]):
        self.batch = batch

    def __getitem__(self, rows: torch.Tensor) -> list[torch.Tensor]:
        return [part[rows] for part in self.batch]


class Loaders(pl.LightningDataModule):
    """The loader is made after the processes have met, as in the data modules."""

    def __init__(self, batch: list[torch.Tensor]):
        super().__init__()
        self.batch = batch

    training_offset = 0.0

    def train_dataloader(self) -> BatchLoader:
        return BatchLoader(Rows(self.batch), EpochSampler(range(ROWS), seed=1), BATCH_SIZE)


def run(model: pl.LightningModule, batch: list[torch.Tensor], devices: int) -> dict:
    processes = distributed_trainer_kwargs({"devices": devices, "num_nodes": 1, "strategy": "auto"})
    trainer = pl.Trainer(
        max_steps=STEPS, logger=False, enable_checkpointing=False, enable_progress_bar=False, **processes
    )
    trainer.fit(model, Loaders(batch))
    weights = {name: value.detach() for name, value in model.named_parameters()}
    with torch.no_grad():
        return {"weights": weights, "logits": model.eval()(*batch[:-1])}


def main(devices: int, path: str) -> None:
    results = {}
    for name in MODELS:
        module = import_module(f"tests.test_{name.lower()}")
        for optimizer, l2 in (("sgd", 0.0), ("adam", 1e-3), ("dense_adam", 1e-3)):
            pl.seed_everything(1, verbose=False)
            model = module.make_model(optimizer=optimizer, embedding_l2=l2, learning_rate=0.01).train()
            results[f"{name} {optimizer}"] = run(model, module.make_batch(ROWS), devices)
    if is_rank_zero():
        torch.save(results, path)
