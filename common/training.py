"""The training run that all scripts share: fit, test the best checkpoint, results.json, one table."""

import gc
import logging
import math
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import TQDMProgressBar

from common.callbacks import Checkpoint, History, RandomState, StopEarly, make_schedule
from common.checkpoint import MappedCheckpointIO, load_checkpoint
from common.errors import check
from common.figures import learning_curves
from common.files import write_json
from common.module import Recommender
from common.processes import trainer_settings
from common.run import check_same, peak_memory_mib, versions

CHECKPOINT_MINUTES = 10  # at most so much of an epoch is lost when a run dies; each epoch's end is saved too

QUIET_TRAINER = {"logger": False, "enable_model_summary": False, "num_sanity_val_steps": 0}

Metrics = dict[str, float]


def train_and_test(
    model: Recommender,
    data: pl.LightningDataModule,
    folder: Path,
    settings: dict,
    *,
    monitor: str,
    mode: str,
    baselines: Callable[[], dict[str, Metrics]],
    best_possible: Callable[[], Metrics],
    draw: Callable[[Recommender, Path], None],
    callbacks: Sequence[pl.Callback] = (),
    test: bool = True,
) -> dict:
    """Fit (on from checkpoints/last.ckpt, if the folder has one), test the best checkpoint once, write all results.

    monitor, mode: the validation metric that chooses the checkpoint, "max" or "min". baselines: test metrics of simple
    models on the same split; called in all processes. best_possible: those of the planted model, for the sample. draw:
    figures of the tested model's predictions. test: False for a trial of a search, which must not see the test split.

    Returns the content of results.json.
    """
    begin = time.perf_counter()
    gc.collect()  # a Trainer and its module refer to each other: those of a run before are freed now
    _quiet()
    checkpoints = folder / "checkpoints"
    history = History(folder)
    trainer = pl.Trainer(
        max_epochs=settings["max_epochs"],
        val_check_interval=1 / settings["validations_per_epoch"],
        precision=resolve_precision(settings["precision"]),
        callbacks=[
            history,
            RandomState(),
            make_schedule(settings["schedule"], monitor, mode),
            StopEarly(
                monitor, mode=mode, patience=settings["patience"], check_finite=False, check_on_train_epoch_end=False
            ),
            *callbacks,
            *_progress_bar(),
            _checkpoint(checkpoints, "best", monitor=monitor, mode=mode, save_weights_only=True),
            _checkpoint(checkpoints, "last"),
            _checkpoint(checkpoints, "last", train_time_interval=timedelta(minutes=CHECKPOINT_MINUTES)),
        ],
        enable_progress_bar=sys.stderr.isatty(),
        **trainer_settings(settings, MappedCheckpointIO()),
        **QUIET_TRAINER,
    )
    seen = {"is_sample": data.is_sample, "rows": {name: len(rows) for name, rows in data.rows.items()}}
    if trainer.is_global_zero:
        check_same(folder / "data.json", seen, "data")
    last = checkpoints / "last.ckpt"
    trainer.fit(model, data, ckpt_path=last if last.exists() else None)
    results = _evaluate(model, data, settings, checkpoints / "best.ckpt", test)
    if test and trainer.is_global_zero:
        draw(model, folder)
        learning_curves(history.rows, monitor, mode, folder / "learning_curves.png")
    compared = baselines() if test else {}
    results = {
        "model": model.title,
        "dataset": data.dataset,
        "protocol": data.protocol,
        **seen,
        "seed": settings["seed"],
        "settings": settings,
        **results,
        "baselines": compared,
        "best_possible": best_possible() if data.is_sample and test else None,
        "epochs": math.ceil(history.rows[-1]["epoch"]),
        "train_samples_per_second": history.samples_per_second,
        "wall_seconds": time.perf_counter() - begin,
        "peak_memory_mib": peak_memory_mib(),
        "parameters": model.count_parameters(),
        "precision": trainer.precision,
        "versions": versions(),
    }
    if trainer.is_global_zero:
        write_json(folder / "results.json", results)
        if test:
            print_table(results, folder)
    return results


def resolve_precision(precision: str) -> str:
    """ "auto" becomes bf16 where the processor multiplies it natively, else float32; other names are Lightning's."""
    names = ("auto", "32-true", "bf16-mixed")
    check(precision in names, f"PRECISION is {precision!r}; it must be one of {', '.join(names)}.")
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    processor = torch.cpu.get_capabilities()
    native = processor.get("avx512_bf16") or processor.get("amx_bf16") or processor.get("bf16")
    return "bf16-mixed" if native and not torch.mps.is_available() else "32-true"


def _checkpoint(folder: Path, name: str, **when) -> Checkpoint:
    # a str, as a checkpoint holds the callback's state and must hold plain values only
    return Checkpoint(str(folder), name, enable_version_counter=False, save_on_train_epoch_end=False, **when)


def _evaluate(
    model: Recommender, data: pl.LightningDataModule, settings: dict, best: Path, test: bool
) -> dict[str, Metrics]:
    """Metrics of the best checkpoint on validation and test rows, always in float32."""
    model.load_state_dict(load_checkpoint(best)["state_dict"])
    trainer = pl.Trainer(
        enable_progress_bar=False, enable_checkpointing=False, **trainer_settings(settings), **QUIET_TRAINER
    )
    (validation,) = trainer.validate(model, data, verbose=False)
    results = {"validation": _without_prefix(validation)}
    if test:
        (tested,) = trainer.test(model, data, verbose=False)
        results["test"] = _without_prefix(tested)
    model.eval()  # for the figures
    return results


def _without_prefix(metrics: Metrics) -> Metrics:
    return {name.split("_", 1)[1]: value for name, value in metrics.items()}


def print_table(results: dict, folder: Path) -> None:
    """Test metrics of the model and its baselines, and where everything was written."""
    rows = {results["model"]: results["test"]} | results["baselines"]
    if results["best_possible"]:
        rows["best possible"] = results["best_possible"]
    sample = ", built-in sample" if results["is_sample"] else ""
    print(f"\nTest metrics, {results['dataset']}{sample}, {results['protocol']}, {results['rows']['test']:,} rows")
    print(pd.DataFrame(rows).T.to_string(float_format="{:.4f}".format, na_rep=""))
    print(f"Results, checkpoints and figures: {folder}", flush=True)


def _progress_bar() -> list[pl.Callback]:
    # a log file gets the line of each epoch only; a refresh costs more than a small step
    return [TQDMProgressBar(refresh_rate=20, leave=False)] if sys.stderr.isatty() else []


def _quiet() -> None:
    """Keep what Lightning says of itself off the terminal."""
    for package in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(package).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
