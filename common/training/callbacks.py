"""Callbacks of fit: the metrics log, and the checkpoints with what depends on them."""

import math
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from torch import Tensor, distributed
from torch.optim import Optimizer

from common.errors import UserError
from common.model.metrics import mode_of
from common.process_group import is_distributed
from common.training.loggers import Trackers
from common.training.run_folder import BEST_CHECKPOINT, LAST_CHECKPOINT

CHECKPOINT_MINUTES = 10  # lost at most when a run dies; there is also a checkpoint after each validation


class MetricsLog(pl.Callback):
    """Writes a row of metrics.csv and a line on the terminal per validation, and times the training steps. Its rows are
    saved in checkpoints, so that the file of a resumed run covers the whole run."""

    def __init__(self, folder: Path, trackers: Trackers):
        self.path, self.trackers = folder / "metrics.csv", trackers
        self.rows: list[dict[str, float]] = []
        self.loss_sum, self.batches = 0.0, 0  # since the last validation
        self.seconds, self.samples = 0.0, 0  # of training, without validation
        self.learning_rate, self.loss = math.nan, torch.tensor(math.nan)  # of the last step, without the tables' rates
        self._begin = 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch, batch_index: int) -> None:
        self._begin = self._begin or time.perf_counter()

    def on_before_backward(self, trainer: pl.Trainer, module: pl.LightningModule, loss: Tensor) -> None:
        self.loss = loss.detach()

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Optimizer) -> None:
        """Abort on a non-finite loss or gradient: the step would corrupt rows that later batches may never touch."""
        self.learning_rate = optimizer.param_groups[0]["lr"]
        parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        # a sum shows any non-finite element, and is cheap: a table's gradient holds only the rows of the batch
        sums = [(grad._values() if grad.is_sparse else grad).sum() for grad in grads]
        loss, *sums = torch.stack([self.loss, *sums]).tolist()  # one synchronisation with a GPU
        if not math.isfinite(loss + sum(sums)):
            where = f"in epoch {trainer.current_epoch}, step {trainer.global_step + 1}; the step was not taken"
            raise UserError(
                f"the loss is {loss} and the sum of its gradients {sum(sums)} {where}. Earlier checkpoints are kept in "
                f"{self.path.parent / 'checkpoints'}. A new run with a smaller learning_rate may help."
            )
        self.loss_sum += loss

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs, batch, batch_index) -> None:
        self.batches += 1
        self.samples += len(batch[0]) * trainer.world_size
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]  # Lightning sets it later
            metrics = {"train_loss_step": self.loss.item(), "learning_rate": self.learning_rate}
            self.trackers.log_metrics(metrics, trainer.global_step)

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.seconds, self._begin = self.running_seconds, 0.0

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
        loss = self.loss_sum / max(1, self.batches)
        loss = trainer.strategy.reduce(torch.tensor(loss, device=module.device), reduce_op="mean").item()
        epoch = round(trainer.global_step / trainer.num_training_batches, 3)
        row = {"epoch": epoch, "step": trainer.global_step, "learning_rate": self.learning_rate, "train_loss": loss}
        self.rows.append(row | metrics)
        self.trackers.log_metrics({"epoch": epoch, "train_loss": loss} | metrics, trainer.global_step)
        self.loss_sum, self.batches = 0.0, 0
        if trainer.is_global_zero:
            pd.DataFrame(self.rows).to_csv(self.path, index=False)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in ({"train_loss": loss} | metrics).items())
        speed = f"{self.samples_per_second:,.0f} samples/s"
        print(f"epoch {epoch:.2f}  {shown}  lr {self.learning_rate:.2e}  {speed}", flush=True)

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        self.trackers.end("failed")

    @property
    def running_seconds(self) -> float:
        return self.seconds + (time.perf_counter() - self._begin if self._begin else 0.0)

    @property
    def samples_per_second(self) -> float:
        return self.samples / self.seconds if self.seconds else 0.0

    def state_dict(self) -> dict:
        kept = {name: getattr(self, name) for name in ("rows", "loss_sum", "batches", "samples", "learning_rate")}
        return kept | {"seconds": self.running_seconds}

    def load_state_dict(self, state: dict) -> None:
        vars(self).update(state)


class Checkpoints(Checkpoint):
    """Writes best.ckpt after the best validation so far, and last.ckpt after each one and every CHECKPOINT_MINUTES.

    A validation that does not beat the best so far multiplies the learning rate by 0.1 with the schedule "plateau"
    (BARS' recipe); after `patience` such validations in a row the run stops. A resumed run draws the same dropout
    masks, because every rank's random state is saved."""

    def __init__(self, folder: Path, monitor: str, patience: int | None, schedule: str):
        self.best_path, self.last_path = folder / BEST_CHECKPOINT, folder / LAST_CHECKPOINT
        self.dirpath = self.last_path.parent  # under the name of Lightning's ModelCheckpoint, for ShardedDLRM
        self.monitor, self.patience, self.schedule = monitor, patience, schedule
        self.best, self.waited = -math.inf, 0  # higher is better; validations since then
        self.random: list[dict[str, Any]] = []

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.saved = time.monotonic()
        self.stop(trainer)  # a run may be resumed after it has stopped
        if len(self.random) == trainer.world_size:
            torch.set_rng_state(self.random[trainer.global_rank]["cpu"])
            torch.cuda.set_rng_state_all(self.random[trainer.global_rank]["cuda"])
        elif trainer.global_rank:
            torch.manual_seed(torch.initial_seed() + trainer.global_rank)

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs, batch, batch_index) -> None:
        due = trainer.strategy.broadcast(time.monotonic() - self.saved > 60 * CHECKPOINT_MINUTES)
        # not right before a validation, which saves too: on resume Lightning would skip that validation
        if due and (not trainer.val_check_batch or (batch_index + 1) % trainer.val_check_batch != 0):
            self.save_last(trainer)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        score = trainer.callback_metrics[self.monitor].item() * (1 if mode_of(self.monitor) == "max" else -1)
        if score > self.best:
            self.best, self.waited = score, 0
            trainer.save_checkpoint(self.best_path, weights_only=True)
        else:
            self.waited += 1
            if self.schedule == "plateau":
                # the current rates, and those that the schedule, a constant after the warm-up, goes on from
                for group in trainer.optimizers[0].param_groups:
                    group["lr"] *= 0.1
                scheduler = trainer.lr_scheduler_configs[0].scheduler
                scheduler.base_lrs = [0.1 * rate for rate in scheduler.base_lrs]
            self.stop(trainer)
        self.save_last(trainer)

    def stop(self, trainer: pl.Trainer) -> None:
        if self.patience is not None and self.waited >= self.patience:
            trainer.should_stop = True

    def save_last(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.last_path)
        self.saved = time.monotonic()

    def state_dict(self) -> dict:
        states = [{"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}]
        if is_distributed():
            states *= distributed.get_world_size()
            distributed.all_gather_object(states, states[0])
        return {"best": self.best, "waited": self.waited, "random": states}

    def load_state_dict(self, state: dict) -> None:
        vars(self).update(state)
