"""What makes a Ray Tune search restartable: a record of its trials on disk, from which Ray's own state is rebuilt.

Ray's snapshots lag behind by seconds and hold nothing of the scheduler. Here every proposal, result and end is on disk
before anything follows from it, and each trial is a run folder with checkpoints of its own.
"""

import json
import os
import pickle
import shutil
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytorch_lightning as pl
import ray
from ray import train, tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from common.callbacks import History
from common.errors import UserError, check
from common.files import write_json
from common.processes import together

METRIC, MODE = "val_auc", "max"
CAUSE = "cause.txt"  # in a trial's folder: why it failed
LOOK_SECONDS = 5  # between two looks whether Ray still has a node
RESTARTS = 2  # of a trial whose process dies without an error of its own (killed, out of memory, a lost node)


class SearchRecord:
    """The trials of a search in the order in which they were proposed, in search.json.

    A trial is {"number", "config", "state", "rows": one per validation, "deaths", "cause"}; its state is "started",
    and at the end "finished", "stopped" (by the scheduler) or "failed".
    """

    def __init__(self, folder: Path):
        self.path = folder / "search.json"
        self.trials: list[dict] = json.loads(self.path.read_text()) if self.path.exists() else []

    def folder(self, number: int) -> Path:
        return self.path.parent / "trials" / f"trial_{number:03d}"

    def add(self, config: dict) -> dict:
        trial = {"number": len(self.trials), "config": config, "state": "started", "rows": [], "deaths": 0, "cause": ""}
        self.trials.append(trial)
        self.save()
        return trial

    def end(self, trial: dict, state: str, cause: str = "") -> None:
        """Note how a trial ended; of those that ended, the best one alone keeps its checkpoints."""
        trial["state"], trial["cause"] = state, cause
        self.save()
        for other in self.of("finished", "stopped", "failed"):
            if other is not best_trial(self.trials):
                shutil.rmtree(self.folder(other["number"]) / "checkpoints", ignore_errors=True)

    def save(self) -> None:
        write_json(self.path, self.trials)

    def of(self, *states: str) -> list[dict]:
        return [trial for trial in self.trials if trial["state"] in states]


def best_row(trial: dict) -> dict:
    """The validation whose checkpoint counts."""
    return max(trial["rows"], key=lambda row: row[METRIC])


def best_trial(trials: list[dict]) -> dict | None:
    """The best of those that ran to their end; where none did, of all that were validated."""
    ended = [trial for trial in trials if trial["state"] == "finished"]
    candidates = ended or [trial for trial in trials if trial["rows"]]
    return max(candidates, key=lambda trial: best_row(trial)[METRIC], default=None)


class RecordedSearch(OptunaSearch):
    """Optuna's TPE; proposes first what the record holds as started, and records what it proposes.

    Its configurations have one more entry: "number", of the trial.
    """

    def __init__(self, space: dict, first: dict, seed: int, record: SearchRecord):
        self.record, self.again = record, record.of("started")
        points = [as_choices(trial["config"]) for trial in self.again]
        if not record.trials and all(values.is_valid(first[name]) for name, values in space.items()):
            points = [first]
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        # not the samples of before: a search that goes on has those already
        super().__init__(distributions(space), METRIC, MODE, points, seed=seed + len(record.trials))
        for trial in record.of("finished", "stopped"):
            self.add_evaluated_point(as_choices(trial["config"]), trial["rows"][-1][METRIC])

    def suggest(self, trial_id: str) -> dict:
        config = super().suggest(trial_id)
        trial = self.again.pop(0) if self.again else self.record.add(config)
        return config | {"number": trial["number"]}


def distributions(space: dict) -> dict[str, optuna.distributions.BaseDistribution]:
    """A search space of Ray Tune as Optuna takes it. Raises: UserError for what Optuna has no distribution for."""
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # widths as choices: Optuna has tuples, but could not keep them in a database
        for name, values in space.items():
            with suppress(ValueError):
                found |= OptunaSearch.convert_search_space({name: values})
            check(
                name in found,
                f"SEARCH_SPACE[{name!r}] must be tune.choice, tune.uniform, tune.loguniform, tune.randint or "
                "tune.lograndint. For one value alone, set the constant in dlrm/train.py.",
            )
    return found


def as_choices(config: dict) -> dict:
    """Widths are tuples in a search space, lists in JSON."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}


def make_scheduler(record: SearchRecord, grace_validations: int, validations: int, factor: int) -> ASHAScheduler:
    """ASHA over the number of validations, which compares trials at equal progress; knows what the record holds."""
    # a trial ends by itself, and completely: it may have more validations than were asked for, see Reporter
    scheduler = ASHAScheduler(
        "validation", METRIC, MODE, validations, grace_validations, factor, stop_last_trials=False
    )
    for trial in record.of("finished", "stopped"):
        earlier = SimpleNamespace(trial_id=f"earlier-{trial['number']}")
        scheduler.on_trial_add(None, earlier)
        for row in trial["rows"]:
            scheduler.on_trial_result(None, earlier, row)
    return scheduler


class Reporter(pl.Callback):
    """Reports each validation to Ray when its checkpoint is written; a resumed trial reports its earlier ones again.

    That the run is complete is part of the last report, as their number does not tell: of few batches Lightning makes
    more or fewer validations than were asked for.
    """

    def __init__(self):
        self.history: History | None = None
        self.reported = 0

    def setup(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        self.history = self.history or next(each for each in trainer.callbacks if isinstance(each, History))

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch, batch_index: int) -> None:
        self._report()

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        # the last one again, where batches followed it
        self.reported = min(self.reported, len(self.history.rows) - 1)
        self._report(ended=True)

    def _report(self, ended: bool = False) -> None:
        report = train.report if together() else tune.report
        for row in self.history.rows[self.reported :]:
            self.reported += 1
            report(row | {"validation": self.reported, "complete": ended and self.reported == len(self.history.rows)})


class Progress(tune.Callback):
    """Keeps the record of the trials that Ray runs; one line per event on the terminal and in search.log."""

    def __init__(self, record: SearchRecord, epochs: int):
        self.record, self.epochs = record, epochs
        self._looked = time.monotonic()

    def on_step_end(self, iteration, trials, **info) -> None:
        if time.monotonic() - self._looked > LOOK_SECONDS:
            self._check_nodes()

    def on_trial_start(self, iteration, trials, trial, **info) -> None:
        ours = self._ours(trial)
        again = f", again from validation {len(ours['rows'])}" if ours["rows"] else ""
        self.say(ours, f"starts{again}: {describe(ours['config'])}")

    def on_trial_result(self, iteration, trials, trial, result, **info) -> None:
        ours = self._ours(trial)
        if result["validation"] <= len(ours["rows"]):
            return  # a resumed trial repeats itself
        names = ("validation", "epoch", "step", "learning_rate", "train_loss")
        ours["rows"].append({name: value for name, value in result.items() if name in names or name.startswith("val_")})
        self.record.save()
        best = max((trial for trial in self.record.trials if trial["rows"]), key=lambda trial: best_row(trial)[METRIC])
        self.say(
            ours,
            f"validation {result['validation']:2d}, epoch {result['epoch']:.2f} of {self.epochs}  "
            f"{METRIC} {result[METRIC]:.4f}  (best {best_row(best)[METRIC]:.4f}, trial {best['number']})",
        )

    def on_trial_complete(self, iteration, trials, trial, **info) -> None:
        ours = self._ours(trial)
        state = "finished" if trial.last_result.get("complete") else "stopped"
        self.record.end(ours, state)
        self.say(ours, f"{state} after {len(ours['rows'])} validations")

    def on_trial_error(self, iteration, trials, trial, **info) -> None:
        ours = self._ours(trial)
        # not trial.get_error(), which looks where Ray copies the file to later
        kept = trial.pickled_error_file
        error = pickle.loads(Path(kept).read_bytes()) if kept else None
        if isinstance(error, OSError):  # a full disk is no fault of the trial, which stays as it is
            raise UserError(f"{error.cause} Then the same command goes on with the search.")
        cause = self.record.folder(ours["number"]) / CAUSE
        if cause.exists():
            self.record.end(ours, "failed", cause.read_text())
        else:
            ours["deaths"] += 1
            again = ours["deaths"] <= RESTARTS
            last_line = str(error).strip().splitlines()[-1]
            self.record.end(ours, "started" if again else "failed", f"its process died: {last_line}")
        self.say(ours, f"{ours['state']}: {ours['cause']}" if ours["state"] == "failed" else "died; it will go on")
        self._check_nodes()

    def say(self, trial: dict, text: str) -> None:
        say(self.record, f"trial {trial['number']:3d}  {text}")

    def _check_nodes(self) -> None:
        """End a search that has no node left: Ray would wait without end, or end this process without a word."""
        self._looked = time.monotonic()
        if not any(node["Alive"] for node in ray.nodes()):
            sys.stderr.write("error: Ray's own processes died. The same command goes on with the search.\n")
            os._exit(1)  # not by an exception: Ray ends this process while it handles one

    def _ours(self, trial) -> dict:
        return self.record.trials[trial.config["number"]]


def say(record: SearchRecord, text: str) -> None:
    print(text, flush=True)
    with open(record.path.with_name("search.log"), "a") as log:
        log.write(text + "\n")


def describe(config: dict) -> str:
    """Settings on one line, widths as 512-256."""

    def short(value) -> str:
        if isinstance(value, tuple | list):
            return "-".join(map(str, value))
        return f"{value:.2g}" if isinstance(value, float) else str(value)

    return "  ".join(f"{name} {short(value)}" for name, value in config.items())
