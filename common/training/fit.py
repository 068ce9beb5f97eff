"""The training run that all scripts share: fit, test of the best checkpoint, results.json and the final table."""

import gc
import logging
import math
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import TQDMProgressBar
from torch import Tensor, nn

from common.checkpoint import MappedCheckpointIO, load_checkpoint
from common.data.data_module import RecommendationDataModule
from common.errors import check
from common.files import atomic_write, read_json, remove_leftovers, write_json
from common.model.metrics import fit_temperature
from common.model.recommender import Recommender
from common.process_group import distributed_trainer_kwargs, is_rank_zero, on_rank_zero
from common.settings import Settings
from common.training.allocator import keep_freed_memory
from common.training.callbacks import (
    MetricsLog,
    PlateauSchedule,
    RandomState,
    RelocatableCheckpoint,
    ResumableEarlyStopping,
)
from common.training.loggers import log_results, make_logger
from common.training.plots import caption, plot_learning_curves
from common.training.precision import resolve_precision
from common.training.results import peak_memory_mib, print_steps, print_table, versions
from common.training.run_folder import BEST_CHECKPOINT, LAST_CHECKPOINT, keep_unchanged
from common.training.start_from import start_from

PREDICTIONS = "test_predictions.npz"  # prediction, target and groups of each test row; baselines by name
CHECKPOINT_MINUTES = 10  # lost at most when a run dies; there is also a checkpoint at each epoch's end
QUIET_TRAINER: dict[str, Any] = {"logger": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
LOSSES = ("rmse", "log_loss")  # the metrics that are better when smaller

Metrics = dict[str, float]
Plot = Callable[[Any, Any, Tensor, Tensor, Path], None]


def fit_and_test(
    model: Recommender,
    data: RecommendationDataModule,
    folder: Path,
    settings: Settings,
    *,
    monitor: str,
    baselines: Callable[[Any], dict[str, Tensor]],
    plot: Plot,
    callbacks: Sequence[pl.Callback] = (),
    test: bool = True,
) -> dict[str, Any]:
    """Fit (continuing from checkpoints/last.ckpt, if the folder has one), test the best checkpoint, write all results.

    If the run in this folder was already tested, its results are returned unchanged.

    monitor: the validation metric that chooses the checkpoint. baselines(data): predictions of simple models for the
    test rows; called on all ranks. plot(model, data, prediction, target, folder): draws figures of the test rows.
    test: False for a trial of a search, which must not see the test split.

    Returns the contents of results.json, plus the paths of the run's folder and its best checkpoint.
    """
    start = time.perf_counter()
    best, last = folder / BEST_CHECKPOINT, folder / LAST_CHECKPOINT
    data_summary = {"is_sample": data.is_sample, "rows": {name: len(rows) for name, rows in data.rows.items()}}
    if is_rank_zero():
        keep_unchanged(folder / "data.json", data_summary, "data")
    if test and (finished := finished_results(folder)):
        return finished
    gc.collect()  # Trainer and module refer to each other, so those of an earlier run may still be in memory
    silence_lightning()
    keep_freed_memory()
    training = settings.training
    check_batch_norm(model, data, settings)
    monitor = defined_monitor(monitor, data)
    mode: Literal["min", "max"] = "min" if monitor.endswith(LOSSES) else "max"
    log = MetricsLog(folder)
    precision = resolve_precision(training["precision"], model, data.batch_size)
    logger = make_logger(training["logger"], folder, resumes=last.exists())
    trainer = pl.Trainer(
        max_epochs=training["max_epochs"],
        val_check_interval=1 / training["validations_per_epoch"],
        precision=precision,
        callbacks=[
            log,
            RandomState(),
            *([PlateauSchedule(monitor, mode)] if settings.optimizer["schedule"] == "plateau" else []),
            ResumableEarlyStopping(
                monitor, mode=mode, patience=training["patience"], check_finite=False, check_on_train_epoch_end=False
            ),
            *callbacks,
            *_progress_bar(),
            _checkpoint(best, monitor=monitor, mode=mode, save_weights_only=True),
            _checkpoint(last),
            _checkpoint(last, train_time_interval=timedelta(minutes=CHECKPOINT_MINUTES)),
        ],
        enable_progress_bar=_is_terminal(),
        **distributed_trainer_kwargs(training, MappedCheckpointIO()),
        **QUIET_TRAINER | {"logger": logger or False},
    )
    if trainer.is_global_zero:
        print_steps(training["max_epochs"], len(data.train_dataloader()), precision, data)
        remove_leftovers(last.parent)  # each as large as a checkpoint; no other process writes here
    if (source := training.get("start_from")) and not last.exists():
        start_from(model, data, source)
    trainer.fit(model, data, ckpt_path=last if last.exists() else None)
    metrics = evaluate(model, data, training, best, test)
    prediction, target = model.metrics.prediction.cpu(), model.metrics.target.cpu()
    others = baselines(data) if test else {}
    groups = data.groups("test") if test else None
    best_prediction = data.best_prediction() if data.is_sample and test else None
    if test and trainer.is_global_zero:
        arrays: dict[str, Any] = {"prediction": prediction, "target": target, **others}
        arrays |= {} if groups is None else {"groups": groups}
        with atomic_write(folder / PREDICTIONS) as file:
            np.savez(file, **arrays)
        plot(model, data, prediction, target, folder)
        title, path = caption(model, data, folder), folder / "learning_curves.png"
        plot_learning_curves(log.rows, monitor, mode, model.loss_weight, title, path)
    results = {
        "model": model.display_name,
        "dataset": data.dataset,
        "protocol": data.protocol,
        **data_summary,
        "seed": training["seed"],
        "settings": settings.flat(),
        **metrics,
        "baselines": {name: model.measure("test", other, target) for name, other in others.items()},
        "differences": {
            name: model.metrics.compare(prediction, other, target, groups) for name, other in others.items()
        },
        "best_possible": None if best_prediction is None else model.measure("test", best_prediction, target),
        "epochs": math.ceil(log.rows[-1]["epoch"]),
        "train_samples_per_second": log.samples_per_second,
        "wall_seconds": time.perf_counter() - start,
        "peak_memory_mib": peak_memory_mib(),
        "parameters": model.count_parameters(),
        "precision": trainer.precision,
        "versions": versions(),
    }
    if trainer.is_global_zero:
        if logger := make_logger(training["logger"], folder, resumes=False):  # the logger of fit would purge again
            log_results(logger, results, settings, folder, trainer.global_step)
        write_json(folder / "results.json", results)
        if test:
            print_table(results, folder)
    return results | _paths(folder)


def finished_results(folder: Path) -> dict[str, Any] | None:
    """What fit_and_test returned for this run; None if it has not been tested yet."""
    path = folder / "results.json"
    results = read_json(path) if path.exists() else {}
    return results | _paths(folder) if "test" in results else None


@on_rank_zero
def saved_predictions(folder: Path) -> dict[str, Tensor]:
    """Test predictions of a tested run ("prediction") and of its baselines, by name."""
    with np.load(folder / PREDICTIONS) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays if name not in ("target", "groups")}


def _paths(folder: Path) -> dict[str, str]:
    return {"run_folder": str(folder), "checkpoint": str(folder / BEST_CHECKPOINT)}


def defined_monitor(monitor: str, data: RecommendationDataModule) -> str:
    """The monitor, or "val_log_loss" if it is an AUC that is undefined on the validation rows; prints a note then."""
    if "auc" not in monitor:
        return monitor
    label = data.targets("val")
    label = label.reshape(len(label), -1)  # (N, K)
    constant, rows = (label.amin(0) == label.amax(0)).tolist(), f"All {len(label):,} validation rows are of one class"
    if all(constant):
        print(f"{rows}, so their AUC is undefined: the checkpoint is chosen by log loss.", flush=True)
        return "val_log_loss"
    if any(constant):
        names = ", ".join(task for task, is_constant in zip(data.tasks, constant, strict=True) if is_constant)
        print(f"{rows} of {names}, whose AUC is undefined: {monitor} is that of the other tasks.", flush=True)
    return monitor


def check_batch_norm(model: nn.Module, data: RecommendationDataModule, settings: Settings) -> None:
    """Raise UserError if batch norm would get a single row, which has no variance."""
    if any(isinstance(layer, nn.BatchNorm1d) for layer in model.modules()):
        least = 2 * settings.training["devices"] * settings.training["num_nodes"]
        batch_size, train_rows = settings.data["batch_size"], len(data.rows["train"])
        check(
            min(batch_size, train_rows) >= least,
            f"batch_size is {batch_size}, and there are {train_rows:,} training rows; with batch_norm both must be at "
            f"least {least}, 2 per process. Set a larger batch_size, fewer devices, or batch_norm=False.",
        )


def _checkpoint(path: Path, **when: Any) -> RelocatableCheckpoint:
    # a str, because the callback's state goes into checkpoints, which must hold plain values only
    return RelocatableCheckpoint(
        str(path.parent), path.stem, enable_version_counter=False, save_on_train_epoch_end=False, **when
    )


def evaluate(
    model: Recommender, data: RecommendationDataModule, training: dict[str, Any], checkpoint: Path, test: bool
) -> dict[str, Any]:
    """Metrics of a checkpoint on the validation rows and, if `test`, the test rows; in float32, as in predict.py.

    For probabilities, also the temperature that fits the validation rows best.
    """
    model.load_state_dict(load_checkpoint(checkpoint)["state_dict"])
    # another Trainer, because fit's may compute in bf16
    trainer = pl.Trainer(
        enable_progress_bar=False, enable_checkpointing=False, **distributed_trainer_kwargs(training), **QUIET_TRAINER
    )
    (validation,) = trainer.validate(model, data, verbose=False)
    metrics: dict[str, Any] = {"validation": _without_prefix(validation)}
    if "log_loss" in metrics["validation"]:
        metrics["temperature"] = fit_temperature(model.metrics.prediction, model.metrics.target)
    if test:
        (tested,) = trainer.test(model, data, verbose=False)
        metrics["test"] = _without_prefix(tested)
    model.eval()  # for the figures
    return metrics


def _without_prefix(metrics: Mapping[str, float]) -> Metrics:
    return {name.split("_", 1)[1]: value for name, value in metrics.items()}


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _progress_bar() -> list[pl.Callback]:
    # no bar in log files; refreshing it at every step would cost more than a small step does
    return [TQDMProgressBar(refresh_rate=20, leave=False)] if _is_terminal() else []


def silence_lightning() -> None:
    """Keep Lightning's own messages off the terminal."""
    for package in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(package).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
