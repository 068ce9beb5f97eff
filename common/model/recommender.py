"""What the four LightningModules share: the steps of all stages, metrics over whole splits, and the optimizer."""

import math
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional
from torch.utils._pytree import tree_flatten

from common.data.data_module import RecommendationDataModule
from common.errors import check
from common.model.embedding import PackedEmbedding, average_touched_rows
from common.model.metrics import ClickMetrics, PredictionMetric
from common.model.optimizer import build_optimizer
from common.process_group import is_distributed


class Recommender(pl.LightningModule):
    """A model with `forward(*inputs) -> logits`, for batches (*inputs, target).

    A subclass sets `metrics`, implements `loss` and `predict`, and has a hyperparameter `optimizer`: the arguments of
    build_optimizer, i.e. the OPTIMIZER settings of its script."""

    metrics: PredictionMetric
    loss: Callable[..., Tensor]  # mean loss of a batch: (logits, target), and row weights (B,) if the data has any
    predict: Callable[[Tensor], Tensor]  # logits -> probabilities or ratings, of the same shape as the target
    loss_weight: float | None = 1.0  # factor between the validation loss and `loss`; None: they cannot be compared
    training_offset = 0.0
    candidate_inputs: tuple[str, ...] = ()  # the inputs (B, Q, ...) with any number of candidates per row

    @property
    def data(self) -> RecommendationDataModule:
        """The data module that the Trainer trains on or evaluates."""
        return self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it later

    @property
    def display_name(self) -> str:
        """The model's name in results and tables."""
        return type(self).__name__

    def count_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def training_step(self, batch: list[Tensor], batch_index: int) -> Tensor:
        *inputs, target = batch
        logits = self(*inputs) + self.training_offset
        loss = self.loss(logits, *target) if isinstance(target, (tuple, list)) else self.loss(logits, target)
        if is_distributed():  # DDP averages over ranks as if all had equally many rows
            loader: Any = self.trainer.train_dataloader
            loss = loss * self.trainer.world_size * loader.local_share(batch_index)
        return loss

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        # torch's name for what DDP skips: the tables, whose touched rows are averaged in on_after_backward
        tables = ((name, module) for name, module in self.named_modules() if isinstance(module, PackedEmbedding))
        return [f"{name}.weight" for name, table in tables if table.weight.requires_grad]

    def on_fit_start(self) -> None:
        self.training_offset = self.data.training_offset

    def on_after_backward(self) -> None:
        if is_distributed():
            for name in self._ddp_params_and_buffers_to_ignore:
                average_touched_rows(self.get_parameter(name))

    def validation_step(self, batch: list[Tensor], batch_index: int) -> None:
        *inputs, target = batch
        self.metrics.update(self.predict(self(*inputs).float()), target)

    def on_validation_epoch_end(self, split: str = "val") -> None:
        self.metrics.gather()
        prediction = self.metrics.prediction
        # checked before a checkpoint is written, so that a diverged model cannot replace a good one
        step = self.trainer.global_step  # 0 when a finished checkpoint is tested
        where = f"the {split} rows are not finite{f' after step {step}' if step else ''}"
        advice = "Earlier checkpoints are kept. A new run with a smaller learning_rate may help."
        check(bool(prediction.isfinite().all()), f"predictions for {where}. {advice}")
        measured = self.metrics.measure(prediction, self.metrics.target, self.data.groups(split))
        self.log_dict({f"{split}_{name}": value for name, value in measured.items()})

    test_step = validation_step

    def on_test_epoch_end(self) -> None:
        self.on_validation_epoch_end("test")

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["model"] = type(self).__name__  # tells predict.py which class to build

    def configure_optimizers(self) -> OptimizerLRScheduler:
        epochs = 0 if self._trainer is None else self.trainer.max_epochs or 0
        # trainer.estimated_stepping_batches would forget the position of a run resumed within an epoch
        total_steps = epochs * len(self.data.train_dataloader()) if epochs > 0 else math.inf
        return build_optimizer(self, total_steps, **self.hparams["optimizer"])


def equal_states(one: object, other: object) -> bool:
    """Whether two nested states hold the same values."""
    (leaves, structure), (others, other_structure) = tree_flatten(one), tree_flatten(other)
    return structure == other_structure and all(
        torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(leaves, others, strict=True)
    )


class CTRModel(Recommender):
    """A Recommender with one logit per row, that of a click (B,)."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics = ClickMetrics()

    def loss(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return functional.binary_cross_entropy_with_logits(logits, target, weight)

    def predict(self, logits: Tensor) -> Tensor:
        return logits.sigmoid()
