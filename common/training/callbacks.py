"""Callbacks of fit: the metrics log, the plateau schedule, early stopping, checkpoints and the random state."""

import csv
import math
import time
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, distributed
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from common.errors import UserError
from common.process_group import is_distributed
from common.training.loggers import Trackers


class MetricsLog(pl.Callback):
    """Writes a row of metrics.csv and a line on the terminal per validation.

    Also times the training steps, and raises UserError before a step whose loss or gradients are not finite. Its rows
    are saved in checkpoints, so that the file of a resumed run covers the whole run.
    """

    def __init__(self, folder: Path, trackers: Trackers):
        self.path, self.trackers = folder / "metrics.csv", trackers
        self.rows: list[dict[str, float]] = []
        self.loss_sum, self.batches = 0.0, 0  # since the last validation
        self.seconds, self.samples = 0.0, 0  # of training, without validation
        self._begin = 0.0
        self._loss = torch.tensor(math.nan)
        self.learning_rate, self.loss = math.nan, math.nan  # of the last step; the tables may have another rate

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch, batch_index: int) -> None:
        if not self._begin:
            self._begin = time.perf_counter()

    def on_before_backward(self, trainer: pl.Trainer, module: pl.LightningModule, loss: Tensor) -> None:
        self._loss = loss.detach()

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Optimizer) -> None:
        """Abort on a non-finite loss or gradient before the step is taken.

        It would corrupt table rows that later batches may never touch.
        """
        self.learning_rate = optimizer.param_groups[0]["lr"]
        parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        # a sum shows any non-finite element, and is cheap: a table's gradient holds only the rows of the batch
        sums = [(grad._values() if grad.is_sparse else grad).sum() for grad in grads]
        loss, *sums = torch.stack([self._loss, *sums]).tolist()  # one synchronisation with a GPU
        total = sum(sums)
        if not math.isfinite(loss) or not math.isfinite(total):
            raise UserError(
                f"the loss is {loss} and the sum of its gradients {total} in epoch {trainer.current_epoch}, step "
                f"{trainer.global_step + 1}; the step was not taken. Earlier checkpoints are kept in "
                f"{self.path.parent / 'checkpoints'}. A new run with a smaller learning_rate may help."
            )
        self.loss_sum += loss
        self.loss = loss

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs, batch, batch_index) -> None:
        self.batches += 1
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]  # Lightning sets it later
            metrics = {"train_loss_step": self.loss, "learning_rate": self.learning_rate}
            self.trackers.log_metrics(metrics, trainer.global_step)
        self.samples += len(batch[0]) * trainer.world_size

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self._begin:
            self.seconds += time.perf_counter() - self._begin
            self._begin = 0.0

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
            with open(self.path, "w", newline="") as file:
                writer = csv.DictWriter(file, list(self.rows[-1]))
                writer.writeheader()
                writer.writerows(self.rows)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        print(
            f"epoch {epoch:.2f}  train_loss {loss:.4f}  {shown}  lr {self.learning_rate:.2e}  "
            f"{self.samples_per_second:,.0f} samples/s",
            flush=True,
        )

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        self.trackers.end("failed")

    @property
    def samples_per_second(self) -> float:
        return self.samples / self.seconds if self.seconds else 0.0

    def state_dict(self) -> dict:
        running = time.perf_counter() - self._begin if self._begin else 0.0
        kept = {name: getattr(self, name) for name in ("rows", "loss_sum", "batches", "samples", "learning_rate")}
        return kept | {"seconds": self.seconds + running}

    def load_state_dict(self, state: dict) -> None:
        vars(self).update(state)


class PlateauSchedule(pl.Callback):
    """Multiplies the learning rate by 0.1 after each validation that does not beat the best so far (BARS' recipe).

    A callback, because Lightning steps a plateau scheduler after it has written the epoch's checkpoint, so that a
    resumed run would miss that step.
    """

    def __init__(self, monitor: str, mode: Literal["min", "max"]):
        self.monitor, self.mode = monitor, mode
        self.scheduler: ReduceLROnPlateau | None = None
        self._restored: dict | None = None

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.scheduler = ReduceLROnPlateau(trainer.optimizers[0], self.mode, factor=0.1, patience=0, threshold=0.0)
        if self._restored:
            self.scheduler.load_state_dict(self._restored)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert self.scheduler is not None
        self.scheduler.step(trainer.callback_metrics[self.monitor].item())

    def state_dict(self) -> dict:
        return self.scheduler.state_dict() if self.scheduler else {}

    def load_state_dict(self, state: dict) -> None:
        self._restored = state


class ResumableEarlyStopping(EarlyStopping):
    """EarlyStopping that remembers across a resume that it has stopped the run."""

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        trainer.should_stop = self.wait_count >= self.patience


class RelocatableCheckpoint(ModelCheckpoint):
    """ModelCheckpoint that rebases its saved paths, so that a run can be resumed after its folder was moved."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        # not right before a validation, which saves too: on resume Lightning would skip that validation
        if not trainer.val_check_batch or (batch_index + 1) % trainer.val_check_batch != 0:
            super().on_train_batch_end(trainer, module, outputs, batch, batch_index)

    def load_state_dict(self, state: dict) -> None:
        def here(path: str) -> str:
            return path and str(Path(self.dirpath or ".", Path(path).name))

        paths = {name: here(state[name]) for name in ("best_model_path", "kth_best_model_path", "last_model_path")}
        best = {here(path): score for path, score in state["best_k_models"].items()}
        super().load_state_dict(state | paths | {"best_k_models": best, "dirpath": self.dirpath})


class RandomState(pl.Callback):
    """Saves every rank's random state, so that a resumed run draws the same dropout masks."""

    def __init__(self) -> None:
        self._restored: list[dict[str, Any]] = []

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if len(self._restored) == trainer.world_size:
            torch.set_rng_state(self._restored[trainer.global_rank]["cpu"])
            torch.cuda.set_rng_state_all(self._restored[trainer.global_rank]["cuda"])
        elif trainer.global_rank:
            torch.manual_seed(torch.initial_seed() + trainer.global_rank)

    def state_dict(self) -> dict:
        states = [{"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}]
        if is_distributed():
            states *= distributed.get_world_size()
            distributed.all_gather_object(states, states[0])
        return {"ranks": states}

    def load_state_dict(self, state: dict) -> None:
        self._restored = state["ranks"]
