"""What happens during fit: history and one line per epoch, learning rates, the best checkpoint, random numbers."""

import math
import time
from pathlib import Path

import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, distributed
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from common.errors import UserError
from common.processes import together


class History(pl.Callback):
    """One row per validation in metrics.csv, one line on the terminal; also times the training proper.

    Its rows are part of a checkpoint, so a resumed run has the history of the whole run.
    """

    def __init__(self, folder: Path):
        self.path = folder / "metrics.csv"
        self.rows: list[dict] = []
        self.loss_sum, self.batches = 0.0, 0  # since the last validation
        self.seconds, self.samples = 0.0, 0  # of training, validation and checkpoints left out
        self._begin = 0.0
        self._loss: Tensor | None = None

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch, batch_index: int) -> None:
        if not self._begin:
            self._begin = time.perf_counter()

    def on_before_backward(self, trainer: pl.Trainer, module: pl.LightningModule, loss: Tensor) -> None:
        self._loss = loss.detach()

    def on_before_optimizer_step(self, trainer: pl.Trainer, module: pl.LightningModule, optimizer: Optimizer) -> None:
        """Before it ruins a row of a table that a later batch may never read."""
        parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        # a sum is finite if all of it is, and cheap: of a table there are the rows of the batch only
        sums = [(grad._values() if grad.is_sparse else grad).sum() for grad in grads]
        loss, *sums = torch.stack([self._loss, *sums]).tolist()  # one wait for a GPU
        total = sum(sums)
        if not math.isfinite(loss) or not math.isfinite(total):
            raise UserError(
                f"the loss is {loss}, the sum of its gradients {total}, in epoch {trainer.current_epoch}, step "
                f"{trainer.global_step + 1}, which is not taken. The checkpoints of before are in "
                f"{self.path.parent / 'checkpoints'}. A new run with a smaller LEARNING_RATE may help."
            )
        self.loss_sum += loss

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs, batch, batch_index) -> None:
        self.batches += 1
        self.samples += len(batch[-1]) * trainer.world_size

    def on_validation_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._stop_clock()

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        loss = self.loss_sum / max(1, self.batches)
        loss = trainer.strategy.reduce(torch.tensor(loss, device=module.device), reduce_op="mean").item()
        epoch = round(trainer.global_step / trainer.num_training_batches, 3)
        row = {"epoch": epoch, "step": trainer.global_step, "learning_rate": rate, "train_loss": loss}
        self.rows.append(row | metrics)
        self.loss_sum, self.batches = 0.0, 0
        if trainer.is_global_zero:
            pd.DataFrame(self.rows).to_csv(self.path, index=False)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        print(
            f"epoch {epoch:.2f}  train_loss {loss:.4f}  {shown}  lr {rate:.0e}  "
            f"{self.samples_per_second:,.0f} samples/s",
            flush=True,
        )

    @property
    def samples_per_second(self) -> float:
        return self.samples / self.seconds if self.seconds else 0.0

    def _stop_clock(self) -> None:
        if self._begin:
            self.seconds += time.perf_counter() - self._begin
            self._begin = 0.0

    def state_dict(self) -> dict:
        running = time.perf_counter() - self._begin if self._begin else 0.0
        kept = {name: getattr(self, name) for name in ("rows", "loss_sum", "batches", "samples")}
        return kept | {"seconds": self.seconds + running}

    def load_state_dict(self, state: dict) -> None:
        vars(self).update(state)


def make_schedule(name: str, monitor: str, mode: str) -> pl.Callback:
    """The learning rate's course: "linear" or "plateau" (of the monitored metric, "max" or "min")."""
    if name == "linear":
        return LinearDecay()
    if name == "plateau":
        return DropOnPlateau(monitor, mode)
    raise UserError(f'SCHEDULE is {name!r}; it must be "linear" or "plateau".')


class LinearDecay(pl.Callback):
    """From each group's learning rate to 0 over all steps of MAX_EPOCHS."""

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch, batch_index: int) -> None:
        left = 1 - trainer.global_step / trainer.estimated_stepping_batches
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = group["initial_lr"] * left


class DropOnPlateau(pl.Callback):
    """Multiply the learning rate by 0.1 after each validation that is no better than the best before (BARS' recipe).

    Lightning steps a plateau scheduler only after the checkpoint of the epoch is written and drops the step when a run
    is resumed from it; here it belongs to the validation, so that a resumed run has the same rates.
    """

    def __init__(self, monitor: str, mode: str):
        self.monitor, self.mode = monitor, mode
        self.scheduler: ReduceLROnPlateau | None = None
        self._restored: dict | None = None

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.scheduler = ReduceLROnPlateau(trainer.optimizers[0], self.mode, factor=0.1, patience=0, threshold=0.0)
        if self._restored:
            self.scheduler.load_state_dict(self._restored)

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.scheduler.step(trainer.callback_metrics[self.monitor].item())

    def state_dict(self) -> dict:
        return self.scheduler.state_dict() if self.scheduler else {}

    def load_state_dict(self, state: dict) -> None:
        self._restored = state


class StopEarly(EarlyStopping):
    """EarlyStopping that stays with its decision when a run is resumed after it has stopped."""

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        trainer.should_stop = self.wait_count >= self.patience


class Checkpoint(ModelCheckpoint):
    """ModelCheckpoint that still knows its best one when the folder of the run was moved before it goes on."""

    def load_state_dict(self, state: dict) -> None:
        def here(path: str) -> str:
            return path and str(Path(self.dirpath, Path(path).name))

        paths = {name: here(state[name]) for name in ("best_model_path", "kth_best_model_path", "last_model_path")}
        best = {here(path): score for path, score in state["best_k_models"].items()}
        super().load_state_dict(state | paths | {"best_k_models": best, "dirpath": self.dirpath})


class RandomState(pl.Callback):
    """Keeps the state of torch's random numbers (dropout) in the checkpoint: a resumed run draws what was to come.

    Of all processes that train together, whose dropout differs.
    """

    def __init__(self):
        self._restored: list[dict] = []

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if len(self._restored) == trainer.world_size:
            torch.set_rng_state(self._restored[trainer.global_rank]["cpu"])
            torch.cuda.set_rng_state_all(self._restored[trainer.global_rank]["cuda"])
        elif trainer.global_rank:
            torch.manual_seed(torch.initial_seed() + trainer.global_rank)

    def state_dict(self) -> dict:
        states = [{"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}]
        if together():
            states *= distributed.get_world_size()
            distributed.all_gather_object(states, states[0])
        return {"processes": states}

    def load_state_dict(self, state: dict) -> None:
        self._restored = state["processes"]
