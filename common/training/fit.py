"""The training run that all scripts share: fit, test of the best checkpoint, results.json and the final table."""

import gc
import logging
import math
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import TQDMProgressBar
from torch import Tensor, nn

from common.checkpoint import MappedCheckpointIO, load_checkpoint
from common.data.data_module import RecommendationDataModule
from common.errors import check, shown
from common.files import read_json, remove_leftovers, write_json
from common.model.metrics import fit_temperature
from common.model.recommender import Recommender
from common.process_group import distributed_trainer_kwargs, is_rank_zero
from common.settings import Settings, check_names
from common.training import callbacks as ours
from common.training.allocator import keep_freed_memory
from common.training.loggers import Trackers
from common.training.plots import BEST_POSSIBLE, caption, plot_learning_curves
from common.training.precision import resolve_precision
from common.training.predictions import write_predictions
from common.training.results import peak_memory_mib, print_steps, print_table, versions
from common.training.run_folder import BEST_CHECKPOINT, LAST_CHECKPOINT, keep_unchanged
from common.training.start_from import start_from

CHECKPOINT_MINUTES = 10  # lost at most when a run dies; there is also a checkpoint at each epoch's end
QUIET_TRAINER: dict[str, Any] = {"logger": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
LOSSES = ("rmse", "mae", "log_loss", "normalized_entropy")  # the metrics that are better when smaller


def fit_and_test(
    model: Recommender,
    data: RecommendationDataModule,
    folder: Path,
    settings: Settings,
    *,
    monitor: str,
    baselines: Callable[[Any], dict[str, Tensor]],
    plot: Callable[[Any, Any, Tensor, Tensor, Path, dict[str, Tensor]], None],
    callbacks: Sequence[pl.Callback] = (),
    test: bool = True,
) -> dict[str, Any]:
    """Fit (continuing from the folder's last checkpoint, if it has one), test the best checkpoint, write all results.

    If the run in this folder was already tested, its results are returned unchanged.

    monitor: what the setting "auto" stands for. baselines(data): predictions of simple models for the test rows; called
    on all ranks. plot(model, data, prediction, target, folder, baselines): draws figures of the test rows. test: False
    for a trial of a search, which must not see the test split.

    Returns the contents of results.json, plus the paths of the run's folder and its best checkpoint.
    """
    start, training, best = time.perf_counter(), settings.training, folder / BEST_CHECKPOINT
    paths, written = {"run_folder": str(folder), "checkpoint": str(best)}, folder / "results.json"
    about_data = {"is_sample": data.is_sample, "rows": {name: len(rows) for name, rows in data.rows.items()}}
    if is_rank_zero():
        keep_unchanged(folder / "data.json", about_data | {"fingerprint": data.fingerprint}, "data")
    if test and written.exists() and "test" in (finished := read_json(written)):
        return finished | paths
    check(isinstance(callbacks, list | tuple), f"callbacks is {shown(callbacks)}; it must be a list.")
    monitor = chosen_monitor(training["monitor"], monitor, model, data)
    log = ours.MetricsLog(folder, Trackers(training["logger"], folder))
    trainer = build_trainer(model, data, folder, settings, monitor, [log, *callbacks])
    log.trackers.log_settings(settings.flat() | {"model": model.display_name, "run_folder": str(folder)})
    fit(trainer, model, data, folder, training)
    metrics = evaluate(model, data, training, best, test)
    prediction, target = model.metrics.prediction.cpu(), model.metrics.target.cpu()
    others = baselines(data) if test else {}
    groups = data.groups("test") if test else None
    best_prediction = data.best_prediction() if data.is_sample and test else None
    results = {
        "model": model.display_name,
        "dataset": data.dataset,
        "protocol": data.protocol,
        **about_data,
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
        if test:
            write_predictions(folder, data, target, {"prediction": prediction, **others})
            plot(model, data, prediction, target, folder, others)
            # the training loss of sampled or weighted rows cannot be compared with the validation loss
            weight = None if data.training_offset or settings.data.get("weighted") else model.loss_weight
            title, path = caption(model, data, folder), folder / "learning_curves.png"
            tested = {model.display_name: results["test"], **results["baselines"]}
            tested |= {BEST_POSSIBLE: results["best_possible"]} if results["best_possible"] else {}
            plot_learning_curves(log.rows, monitor, mode_of(monitor), weight, tested, title, path)
        write_json(written, results)
        if test and not (folder.parent / "settings.json").exists():  # there, it is a baseline of another run
            sign = 1 if mode_of(monitor) == "max" else -1
            print_table(results, folder, data, [sign * row[monitor] for row in log.rows])
        log.trackers.log_results(results, folder, trainer.global_step)
    return results | paths


def build_trainer(
    model: Recommender,
    data: RecommendationDataModule,
    folder: Path,
    settings: Settings,
    monitor: str,
    callbacks: Sequence[pl.Callback],
) -> pl.Trainer:
    """Lightning's Trainer for these settings, which keeps the best and the last checkpoint in the run's folder.

    Raises: UserError for what is no callback, and for rows that cannot be trained on.
    """
    for package in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(package).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    training, mode, last = settings.training, mode_of(monitor), folder / LAST_CHECKPOINT
    check_rows(model, data, settings)
    used: list[pl.Callback] = [*callbacks, ours.RandomState()]
    for callback in used:
        check(isinstance(callback, pl.Callback), f"callbacks: {shown(callback)} is not a callback of Lightning.")
    if settings.optimizer["schedule"] == "plateau":
        used.append(ours.PlateauSchedule(monitor, mode))
    if patience := training["patience"]:
        # an AUC may be undefined at first
        stop = {"patience": patience, "check_finite": False, "check_on_train_epoch_end": False}
        used.append(ours.ResumableEarlyStopping(monitor, mode=mode, **stop))
    if on_terminal := sys.stderr is not None and sys.stderr.isatty():  # no bar in log files
        used.append(TQDMProgressBar(refresh_rate=20, leave=False))  # at every step it would cost more than a small step
    used += [
        _checkpoint(folder / BEST_CHECKPOINT, monitor=monitor, mode=mode, save_weights_only=True),
        _checkpoint(last),
        _checkpoint(last, train_time_interval=timedelta(minutes=CHECKPOINT_MINUTES)),
    ]
    return pl.Trainer(
        max_epochs=training["max_epochs"],
        val_check_interval=1 / training["validations_per_epoch"],
        precision=resolve_precision(training["precision"], model, data.batch_size),
        callbacks=used,
        enable_progress_bar=on_terminal,
        **distributed_trainer_kwargs(training, MappedCheckpointIO()),
        **QUIET_TRAINER,
    )


def _checkpoint(path: Path, **when: Any) -> ours.RelocatableCheckpoint:
    # a str, because the callback's state goes into checkpoints, which must hold plain values only
    return ours.RelocatableCheckpoint(
        str(path.parent), path.stem, enable_version_counter=False, save_on_train_epoch_end=False, **when
    )


def fit(
    trainer: pl.Trainer, model: Recommender, data: RecommendationDataModule, folder: Path, training: dict[str, Any]
) -> None:
    """Train from the last checkpoint in the folder; without one, from the setting start_from, or from the start."""
    last = folder / LAST_CHECKPOINT
    gc.collect()  # Trainer and module refer to each other, so those of an earlier run may still be in memory
    keep_freed_memory()
    if trainer.is_global_zero:
        print_steps(training["max_epochs"], len(data.train_dataloader()), trainer.precision, data)
        remove_leftovers(last.parent)  # each as large as a checkpoint; no other process writes here
    if (source := training.get("start_from")) and not last.exists():
        start_from(model, data, source)
    trainer.fit(model, data, ckpt_path=last if last.exists() else None)


def evaluate(
    model: Recommender, data: RecommendationDataModule, training: dict[str, Any], checkpoint: Path, test: bool
) -> dict[str, Any]:
    """Metrics of a checkpoint on the validation rows and, if `test`, the test rows; in float32, as in predict.py.

    For probabilities, also the temperature that fits the validation rows best.
    """
    model.load_state_dict(load_checkpoint(checkpoint)["state_dict"])
    # another Trainer, because fit's may compute in bf16
    quiet = QUIET_TRAINER | {"enable_progress_bar": False, "enable_checkpointing": False}
    trainer = pl.Trainer(**distributed_trainer_kwargs(training), **quiet)
    (validation,) = trainer.validate(model, data, verbose=False)
    metrics: dict[str, Any] = {"validation": {name.removeprefix("val_"): v for name, v in validation.items()}}
    if "log_loss" in metrics["validation"]:
        metrics["temperature"] = fit_temperature(model.metrics.prediction, model.metrics.target)
    if test:
        (tested,) = trainer.test(model, data, verbose=False)
        metrics["test"] = {name.removeprefix("test_"): v for name, v in tested.items()}
    model.eval()  # for the figures
    return metrics


def mode_of(monitor: str) -> Literal["min", "max"]:
    return "min" if monitor.endswith(LOSSES) else "max"


def chosen_monitor(setting: str, automatic: str, model: Recommender, data: RecommendationDataModule) -> str:
    """The metric that chooses the checkpoint, stops a run and lowers the rate: the setting, or what "auto" stands for.

    "auto" is "val_log_loss" where the AUC is undefined on the validation rows; prints a note then. Raises: UserError
    for a metric that the model does not have, or that is undefined.
    """
    monitor, target = automatic if setting == "auto" else setting, data.targets("val")
    measured = {f"val_{name}": v for name, v in model.metrics.measure(target, target, data.groups("val")).items()}
    check_names([monitor], [name for name in measured if name != "val_calibration"])
    undefined = [name.removeprefix("val_auc_") for name in measured if "auc" in name and math.isnan(measured[name])]
    rows = f"All {len(target):,} validation rows are of one class"
    if math.isnan(measured[monitor]):
        check(setting == "auto", f"{rows}, so {monitor} is undefined; monitor must be another metric.")
        print(f"{rows}, so their AUC is undefined: the checkpoint is chosen by log loss.", flush=True)
        return "val_log_loss"
    if undefined and "auc" in monitor:
        names = ", ".join(undefined)
        print(f"{rows} of {names}, whose AUC is undefined: {monitor} is that of the other tasks.", flush=True)
    return monitor


def check_rows(model: nn.Module, data: RecommendationDataModule, settings: Settings) -> None:
    """Raise UserError if all training labels are equal, or if batch norm would get a row without another one."""
    rows, batch_size = len(data.rows["train"]), data.batch_size
    if hasattr(data, "base_logits"):  # ratings have no classes
        label = data.targets("train")
        lowest, highest = label.nan_to_num(torch.inf).amin(0), label.nan_to_num(-torch.inf).amax(0)
        advice = "use other rows, or a larger negative_rate"
        check(bool((lowest < highest).any()), f"all {rows:,} training rows are of one class: {advice}.")
    if any(isinstance(layer, nn.BatchNorm1d) for layer in model.modules()):
        least = 2 * settings.training["devices"] * settings.training["num_nodes"]
        check(
            min(batch_size, rows) >= least,
            f"batch_size is {batch_size}, and there are {rows:,} training rows; with batch_norm both must be at least "
            f"{least}, 2 per process. Set a larger batch_size, fewer devices, or batch_norm=False.",
        )
