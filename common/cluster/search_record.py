"""The trials of a search on disk: each proposal, result and end is saved before the search acts on it."""

import shutil
from pathlib import Path
from typing import Any

from common.errors import check
from common.files import read_json, write_json

METRIC, MODE = "val_auc", "max"
CAUSE_FILE = "cause.txt"  # in a trial's folder: why it failed. Ray's own record is a pickle, which could run code

TESTED = 3  # best trials, whose checkpoints are kept and tested at the end
ENDED = ("finished", "stopped", "failed")  # states of a trial

Trial = dict[str, Any]
NEW_TRIAL: Trial = {"number": 0, "config": {}, "state": "started", "rows": [], "deaths": 0, "cause": ""}


class SearchRecord:
    """The trials of a search, in the order in which they were proposed; saved in search.json.

    A trial is {"number", "config", "state", "rows": one per validation, "deaths", "cause"}; its state is "started", and
    at the end "finished", "stopped" (by the scheduler) or "failed".
    """

    def __init__(self, folder: Path):
        self.path = folder / "search.json"
        self.trials: list[Trial] = read_json(self.path, list) if self.path.exists() else []
        intact = all(isinstance(trial, dict) and trial.keys() == NEW_TRIAL.keys() for trial in self.trials)
        intact = intact and [trial["number"] for trial in self.trials] == list(range(len(self.trials)))
        check(intact, f"{self.path} is damaged (a trial is incomplete). Restore it, or remove {folder} to start again.")

    def folder(self, number: int) -> Path:
        return self.path.parent / "trials" / f"trial_{number:03d}"

    def add(self, config: dict[str, Any]) -> Trial:
        trial = NEW_TRIAL | {"number": len(self.trials), "config": config, "rows": []}
        self.trials.append(trial)
        self.save()
        return trial

    def end(self, trial: Trial, state: str, cause: str = "") -> None:
        """Record how a trial ended. Of the trials that have ended, only the best TESTED keep their checkpoints."""
        trial["state"], trial["cause"] = state, cause
        self.save()
        for other in self.in_state(*ENDED):
            if all(other is not kept for kept in best_trials(self.trials)):
                shutil.rmtree(self.folder(other["number"]) / "checkpoints", ignore_errors=True)

    def save(self) -> None:
        write_json(self.path, self.trials)

    def in_state(self, *states: str) -> list[Trial]:
        return [trial for trial in self.trials if trial["state"] in states]


def best_row(trial: Trial) -> dict[str, Any]:
    """The validation whose checkpoint counts."""
    return max(trial["rows"], key=lambda row: row[METRIC])


def best_trials(trials: list[Trial]) -> list[Trial]:
    """The best TESTED finished trials, the best first; if none is finished, the best trial with a validation."""
    candidates = [trial for trial in trials if trial["state"] == "finished"]
    count = TESTED if candidates else 1
    candidates = candidates or [trial for trial in trials if trial["rows"]]
    return sorted(candidates, key=lambda trial: best_row(trial)[METRIC], reverse=True)[:count]


def log(record: SearchRecord, text: str) -> None:
    """Print a line, and append it to search.log."""
    print(text, flush=True)
    with open(record.path.with_name("search.log"), "a") as log:
        log.write(text + "\n")


def format_config(config: dict[str, Any]) -> str:
    """Settings on one line, tuples as 512-256."""

    def short(value) -> str:
        if isinstance(value, tuple | list):
            return "-".join(map(str, value))
        return f"{value:.2g}" if isinstance(value, float) else str(value)

    return "  ".join(f"{name} {short(value)}" for name, value in config.items())
