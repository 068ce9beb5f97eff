"""The training run that all scripts share: fit, test of the best checkpoint, results.json and the final table."""

import gc
import logging
import math
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import TQDMProgressBar
from torch import Tensor, nn

from common.checkpoint import MappedCheckpointIO, load_checkpoint
from common.data.data_module import RecommendationDataModule
from common.errors import UserError, check, one_line
from common.files import read_json, write_json
from common.model.embedding import PackedEmbedding
from common.model.metrics import fit_temperature, mode_of
from common.model.recommender import Recommender
from common.process_group import distributed_trainer_kwargs, is_rank_zero
from common.settings import Settings, check_names
from common.training.callbacks import Checkpoints, MetricsLog
from common.training.loggers import Trackers
from common.training.plots import caption, plot_learning_curves
from common.training.predictions import write_predictions
from common.training.processor import keep_freed_memory, resolve_precision
from common.training.results import peak_memory_mib, print_steps, print_table, versions
from common.training.run_folder import BEST_CHECKPOINT, LAST_CHECKPOINT, keep_unchanged

QUIET_TRAINER: dict[str, Any] = {"logger": False, "enable_model_summary": False, "num_sanity_val_steps": 0}


def fit_and_test(
    model: Recommender,
    data: RecommendationDataModule,
    folder: Path,
    settings: Settings,
    monitor: str,
    baselines: Callable[[Any], dict[str, Tensor]],
    plot: Callable[[Any, Any, dict[str, Tensor], Tensor, Path], None],
    callbacks: Sequence[pl.Callback] = (),
    test: bool = True,
) -> dict[str, Any]:
    """Fit (continuing from the folder's last checkpoint, if it has one), test the best checkpoint, write all results.

    monitor: what the setting "auto" stands for. baselines(data): predictions of simple models for the test rows; called
    on all ranks. plot(model, data, predictions, target, folder): draws figures of the test rows; predictions: of the
    model, then of the baselines. test: False for a trial of a search, which must not see the test split.

    Returns the contents of results.json, of the earlier run if this folder has one, and the paths of folder and
    checkpoint.
    """
    start, training, best = time.perf_counter(), settings.training, folder / BEST_CHECKPOINT
    paths, written = {"run_folder": str(folder), "checkpoint": str(best)}, folder / "results.json"
    about_data = {"is_sample": data.is_sample, "rows": {name: len(rows) for name, rows in data.rows.items()}}
    if is_rank_zero():
        keep_unchanged(folder / "data.json", about_data | {"fingerprint": data.fingerprint}, "data")
    if test and written.exists() and "test" in (finished := read_json(written)):
        return finished | paths
    check_rows(model, data, training)
    monitor = chosen_monitor(training["monitor"], monitor, model, data)
    log = MetricsLog(folder, Trackers(training["logger"], folder))
    saving = Checkpoints(folder, monitor, training["patience"], settings.optimizer["schedule"])
    trainer = build_trainer(model, data, training, [log, *callbacks, saving])
    log.trackers.log_settings(settings.flat() | {"model": model.display_name, "run_folder": str(folder)})
    fit(trainer, model, data, folder, training)
    metrics = evaluate(model, data, training, best, test)
    prediction, target = model.metrics.prediction, model.metrics.target
    others, groups = (baselines(data), data.groups("test")) if test else ({}, None)
    planted = data.best_prediction() if test and data.is_sample else None
    measure, compare = model.metrics.measure, model.metrics.compare
    results = {
        "model": model.display_name,
        "dataset": data.dataset,
        "protocol": data.protocol,
        **about_data,
        "seed": training["seed"],
        "settings": settings.flat(),
        **metrics,
        "baselines": {name: measure(other, target, groups) for name, other in others.items()},
        "differences": {name: compare(prediction, other, target, groups) for name, other in others.items()},
        "best_possible": None if planted is None else measure(planted, target, groups),
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
            plot(model, data, {model.display_name: prediction, **others}, target, folder)
            # the training loss of sampled or weighted rows cannot be compared with the validation loss
            weight = None if data.training_offset or settings.data.get("weighted") else model.loss_weight
            plot_learning_curves(log.rows, monitor, weight, results, caption(model, data, folder), folder)
        write_json(written, results)
        if test and not (folder.parent / "settings.json").exists():  # there, it is a baseline of another run
            sign = 1 if mode_of(monitor) == "max" else -1
            print_table(results, folder, data, [sign * row[monitor] for row in log.rows])
        log.trackers.log_results(results, folder, trainer.global_step)
    return results | paths


def build_trainer(
    model: Recommender, data: RecommendationDataModule, training: dict[str, Any], callbacks: Sequence[pl.Callback]
) -> pl.Trainer:
    for package in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(package).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    on_terminal = sys.stderr is not None and sys.stderr.isatty()  # no bar in log files
    bar = [TQDMProgressBar(refresh_rate=20, leave=False)]  # at every step it would cost more than a small step
    return pl.Trainer(
        max_epochs=training["max_epochs"],
        val_check_interval=1 / training["validations_per_epoch"],
        precision=resolve_precision(training["precision"], model, data.batch_size),
        callbacks=[*callbacks, *(bar if on_terminal else [])],
        enable_progress_bar=on_terminal,
        **distributed_trainer_kwargs(training, MappedCheckpointIO()),
        **QUIET_TRAINER,
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
        for leftover in last.parent.glob("*.tmp"):  # of a killed run, each as large as a checkpoint
            leftover.unlink()
    if (source := training.get("start_from")) and not last.exists():
        start_from(model, data, source)
    trainer.fit(model, data, ckpt_path=last if last.exists() else None)


@torch.no_grad()
def start_from(model: Recommender, data: RecommendationDataModule, path: str | Path) -> None:
    """Load the weights of a checkpoint into `model`: table rows of values that it knows are copied, others stay new.

    The optimizer starts afresh. Inputs are scaled by the new training rows."""
    content, name = load_checkpoint(path), type(model).__name__
    check(content.get("model") == name, f"start_from: {path} is of {one_line(content.get('model'))}, not of {name}.")
    try:
        rows, old_rows = map(torch.from_numpy, data.known_rows(content[type(data).__qualname__]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"start_from: {path} was trained on other data or columns ({one_line(error)}).") from error
    weights, state = content["state_dict"], model.state_dict()
    tables = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, PackedEmbedding)}
    for name in tables & weights.keys():
        if weights[name].shape[1:] == state[name].shape[1:]:
            state[name][rows] = weights[name][old_rows]
            weights[name] = state[name]
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        advice = "use the settings of that run"
        raise UserError(f"start_from: {path} does not fit the model; {advice}. ({one_line(error)})") from error
    total = sum(len(state[table]) for table in tables)
    print(f"Starting from {path}, which knows {len(rows):,} of the {total:,} table rows.", flush=True)


def evaluate(
    model: Recommender, data: RecommendationDataModule, training: dict[str, Any], checkpoint: Path, test: bool
) -> dict[str, Any]:
    """Metrics of a checkpoint on validation and, if `test`, test rows; in float32, as in predict.py."""
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


def chosen_monitor(setting: str, automatic: str, model: Recommender, data: RecommendationDataModule) -> str:
    """The metric that chooses the checkpoint, stops a run and lowers the rate; the log loss if it is undefined."""
    monitor, target = automatic if setting == "auto" else setting, data.targets("val")
    measured = {f"val_{name}": v for name, v in model.metrics.measure(target, target, data.groups("val")).items()}
    check_names([monitor], [name for name in measured if name != "val_calibration"])
    if math.isnan(measured[monitor]):
        rows = f"All {len(target):,} validation rows are of one class"
        print(f"{rows}, so their AUC is undefined: the checkpoint is chosen by log loss.", flush=True)
        return "val_log_loss"
    return monitor


def check_rows(model: nn.Module, data: RecommendationDataModule, training: dict[str, Any]) -> None:
    """Raise UserError if all training labels are equal, or if batch norm would get a row without another one."""
    rows, least = len(data.rows["train"]), 2 * training["devices"] * training["num_nodes"]
    normalised = any(isinstance(layer, nn.BatchNorm1d) for layer in model.modules())
    sizes = f"batch_size is {data.batch_size}, and there are {rows:,} training rows"
    enough = min(data.batch_size, rows) >= least or not normalised
    check(enough, f"{sizes}; with batch_norm both must be at least {least}, 2 per process.")
    if hasattr(data, "base_logits"):  # ratings have no classes
        label = data.targets("train")
        lowest, highest = label.nan_to_num(math.inf).amin(0), label.nan_to_num(-math.inf).amax(0)
        advice = "use other rows, or a larger negative_rate"
        check(bool((lowest < highest).any()), f"all {len(label):,} training rows are of one class: {advice}.")
