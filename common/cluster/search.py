"""A resumable Ray Tune search: Ray's state is rebuilt from the record of the trials.

Ray's own snapshots lag behind by seconds and omit the scheduler's state. Each trial has a run folder with its own
checkpoints.
"""

import os
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytorch_lightning as pl
import ray
from filelock import FileLock
from ray import train, tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from common.cluster.ray_cluster import check_resources, start_ray
from common.cluster.search_record import (
    CAUSE_FILE,
    ENDED,
    METRIC,
    MODE,
    SearchRecord,
    Trial,
    best_row,
    format_config,
    log,
)
from common.errors import UserError, check
from common.process_group import is_distributed
from common.training.callbacks import MetricsLog

DISK = "cannot write: "  # prefix of a cause of failure that is not the trial's fault
LOOK_SECONDS = 5  # between two checks that Ray still has a node
RESTARTS = 2  # of a trial whose process dies without an exception (killed, out of memory, a lost node)


def run_search(
    run_trial: Callable[[dict[str, Any]], None],
    space: dict[str, Any],
    first: dict[str, Any],
    record: SearchRecord,
    *,
    epochs: int,
    validations: int,
    seed: int,
    trials: int,
    grace_validations: int,
    reduction_factor: int,
    concurrent_trials: int | None,
    cpus_per_trial: int,
    gpus_per_trial: float,
    workers_per_trial: int,
    ray_address: str | None,
) -> None:
    """Run trials until `trials` of those in `record` have ended.

    run_trial: trains one configuration, which includes its "number". first: the configuration that is tried first if it
    lies in the space. epochs, validations: per trial. The others: see SEARCH in tune_dlrm.py.

    Raises: UserError if Ray has too few CPUs or GPUs for a trial, or a disk is full.
    """
    start_ray(ray_address, cpus_per_trial, show_output=False)  # SearchProgress prints what happens to trials
    gpus = gpus_per_trial if workers_per_trial == 1 else 0  # several workers reserve their GPUs themselves
    cpus = workers_per_trial * cpus_per_trial
    check_resources("cpus_per_trial times workers_per_trial", "CPU", cpus, on_one_machine=True)
    check_resources("gpus_per_trial", "GPU", gpus, on_one_machine=True)
    while missing := trials - len(record.in_state(*ENDED)):
        await_release(record)
        tuner = tune.Tuner(
            tune.with_resources(run_trial, {"cpu": cpus, "gpu": gpus}),
            tune_config=tune.TuneConfig(
                search_alg=RecordedSearch(space, first, seed, record),
                scheduler=make_scheduler(record, grace_validations, validations, reduction_factor),
                num_samples=missing,
                max_concurrent_trials=concurrent_trials,
                reuse_actors=workers_per_trial == 1,  # a process imports torch only once
            ),
            run_config=tune.RunConfig(
                storage_path=str(record.path.parent / "ray"), verbose=0, callbacks=[SearchProgress(record, epochs)]
            ),
        )
        try:
            tuner.fit()
        except tune.TuneError as error:  # Ray wraps an error that SearchProgress raises
            if isinstance(error.__context__, UserError | OSError):
                raise error.__context__ from error
            raise
    ray.shutdown()


def await_release(record: SearchRecord) -> None:
    """Wait until no process of an earlier, killed search holds a trial that is to be continued."""
    for trial in record.in_state("started"):
        if (folder := record.folder(trial["number"])).exists():
            FileLock(folder / "run.lock").acquire(timeout=60).lock.release()


class RecordedSearch(OptunaSearch):
    """Optuna's TPE. Proposes the unfinished trials of the record first, and records what it proposes.

    Its configurations have an additional entry, the "number" of the trial.
    """

    def __init__(self, space: dict, first: dict, seed: int, record: SearchRecord):
        self.record, self.pending = record, record.in_state("started")
        points = [lists_to_tuples(trial["config"]) for trial in self.pending]
        if not record.trials and all(values.is_valid(first[name]) for name, values in space.items()):
            points = [first]
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        # another seed, because a continued search already has the samples of the first one
        super().__init__(distributions(space), METRIC, MODE, points, seed=seed + len(record.trials))
        for trial in record.in_state("finished", "stopped"):
            self.add_evaluated_point(lists_to_tuples(trial["config"]), trial["rows"][-1][METRIC])

    def suggest(self, trial_id: str) -> dict:
        config = super().suggest(trial_id)
        assert config is not None
        trial = self.pending.pop(0) if self.pending else self.record.add(config)
        return config | {"number": trial["number"]}


def distributions(space: dict) -> dict[str, optuna.distributions.BaseDistribution]:
    """Optuna's distributions for a Ray Tune search space. Raises: UserError if Optuna lacks one."""
    found: dict[str, optuna.distributions.BaseDistribution] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tuples as choices, which Optuna could not store in a database
        for name, values in space.items():
            with suppress(ValueError):
                found |= OptunaSearch.convert_search_space({name: values})
            check(
                name in found,
                f"SPACE[{name!r}] must be tune.choice, tune.uniform, tune.loguniform, tune.randint or tune.lograndint. "
                "For a single value, use FIXED.",
            )
    return found


def lists_to_tuples(config: dict) -> dict:
    """Widths are tuples in a search space, but lists in JSON."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}


def make_scheduler(record: SearchRecord, grace_validations: int, validations: int, factor: int) -> ASHAScheduler:
    """ASHA over the number of validations, so that trials are compared at equal progress; fed with recorded trials."""
    # a trial ends by itself: it may have more validations than were asked for, see TuneReporter
    scheduler = ASHAScheduler(
        "validation", METRIC, MODE, validations, grace_validations, factor, stop_last_trials=False
    )
    for trial in record.in_state("finished", "stopped"):
        earlier: Any = SimpleNamespace(trial_id=f"earlier-{trial['number']}")  # all that ASHA looks at
        controller: Any = None
        scheduler.on_trial_add(controller, earlier)
        for row in trial["rows"]:
            scheduler.on_trial_result(controller, earlier, row)
    return scheduler


class TuneReporter(pl.Callback):
    """Reports each validation to Ray once its checkpoint is written; a resumed trial reports its earlier ones again.

    The last report says that the run is complete, because the number of validations does not: with few batches
    Lightning runs more or fewer than were asked for.
    """

    metrics_log: MetricsLog

    def __init__(self) -> None:
        self.reported = 0

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        callbacks = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it later
        self.metrics_log = next(each for each in callbacks if isinstance(each, MetricsLog))

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch, batch_index: int) -> None:
        self._report()

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # the last validation may have been reported already: again, now as complete
        self.reported = min(self.reported, len(self.metrics_log.rows) - 1)
        self._report(ended=True)

    def _report(self, ended: bool = False) -> None:
        report = train.report if is_distributed() else tune.report
        for row in self.metrics_log.rows[self.reported :]:
            self.reported += 1
            report(
                row | {"validation": self.reported, "complete": ended and self.reported == len(self.metrics_log.rows)}
            )


class SearchProgress(tune.Callback):
    """Records what happens to Ray's trials, and logs one line per event."""

    def __init__(self, record: SearchRecord, epochs: int):
        self.record, self.epochs = record, epochs
        self._looked = time.monotonic()

    def on_step_end(self, iteration, trials, **info) -> None:
        if time.monotonic() - self._looked > LOOK_SECONDS:
            self._check_nodes()

    def on_trial_start(self, iteration, trials, trial, **info) -> None:
        ours = self._record_of(trial)
        resumed = f", again from validation {len(ours['rows'])}" if ours["rows"] else ""
        self.log(ours, f"starts{resumed}: {format_config(ours['config'])}")

    def on_trial_result(self, iteration, trials, trial, result, **info) -> None:
        ours = self._record_of(trial)
        if result["validation"] <= len(ours["rows"]):
            return  # a resumed trial reports its earlier validations again
        names = ("validation", "epoch", "step", "learning_rate", "train_loss")
        ours["rows"].append({name: value for name, value in result.items() if name in names or name.startswith("val_")})
        self.record.save()
        best = max((trial for trial in self.record.trials if trial["rows"]), key=lambda trial: best_row(trial)[METRIC])
        self.log(
            ours,
            f"validation {result['validation']:2d}, epoch {result['epoch']:.2f} of {self.epochs}  "
            f"{METRIC} {result[METRIC]:.4f}  (best {best_row(best)[METRIC]:.4f}, trial {best['number']})",
        )

    def on_trial_complete(self, iteration, trials, trial, **info) -> None:
        ours = self._record_of(trial)
        at_end = bool(ours["rows"]) and ours["rows"][-1]["epoch"] >= self.epochs  # ASHA may stop a complete trial
        state = "finished" if trial.last_result.get("complete") or at_end else "stopped"
        self.record.end(ours, state)
        self.log(ours, f"{state} after {len(ours['rows'])} validations")

    def on_trial_error(self, iteration, trials, trial, **info) -> None:
        ours = self._record_of(trial)
        cause = self.record.folder(ours["number"]) / CAUSE_FILE
        if cause.exists():
            text = cause.read_text()
            if text.startswith(DISK):  # a full disk is not the trial's fault: its state remains "started"
                cause.unlink()
                raise UserError(f"{text.removeprefix(DISK)} Then the same command continues the search.")
            self.record.end(ours, "failed", text)
        else:
            ours["deaths"] += 1
            restart = ours["deaths"] <= RESTARTS
            last_line = Path(trial.error_file).read_text().strip().splitlines()[-1]
            self.record.end(ours, "started" if restart else "failed", f"its process died: {last_line}")
        self.log(ours, f"{ours['state']}: {ours['cause']}" if ours["state"] == "failed" else "died; it will continue")
        self._check_nodes()

    def log(self, trial: Trial, text: str) -> None:
        log(self.record, f"trial {trial['number']:3d}  {text}")

    def _check_nodes(self) -> None:
        """End a search that has no nodes left: Ray would wait forever, or end this process silently."""
        self._looked = time.monotonic()
        if not any(node["Alive"] for node in ray.nodes()):
            sys.stderr.write("error: Ray's own processes died. The same command continues the search.\n")
            os._exit(1)  # not an exception, because Ray ends this process while it handles one

    def _record_of(self, trial: Any) -> Trial:
        return self.record.trials[trial.config["number"]]
