"""Kill runs after a checkpoint, resume them, and compare: `python benchmarks/studies/deaths.py [MODEL ...]`.

Each of DEATHS runs on a small sample is ended by os._exit after a checkpoint, of which there is also one after
every batch, and is started again. Its metrics.csv, validation and test metrics must equal those of an uninterrupted
run, to the last digit. Prints one line per model (default: all four); the exit code is 1 if a run differs.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable
from itertools import count
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repo root, ahead of this folder

import numpy as np

import common.training.callbacks
from bst.train import train as train_bst
from common.checkpoint import MappedCheckpointIO
from common.errors import check, run_script
from data.census_income import CENSUS_INCOME_KDD
from data.criteo_data import CRITEO
from data.samples.census import census_sample
from data.samples.criteo import criteo_sample
from data.samples.movies import movie_sample
from deepfm.train import train as train_deepfm
from dlrm.train import train as train_dlrm
from multitask.train import train as train_mmoe

DEATHS = 30  # per model
DIED = 9  # exit code
SETTINGS = {"max_epochs": 2, "patience": 9, "precision": "32-true"}
TRAINERS = {
    "deepfm": (train_deepfm, {"batch_size": 200, "validations_per_epoch": 2, "schedule": "plateau"}),
    "dlrm": (train_dlrm, {"batch_size": 200, "validations_per_epoch": 3, "dropout": 0.2}),
    "multitask": (train_mmoe, {"batch_size": 150, "validations_per_epoch": 2}),
    "bst": (train_bst, {"batch_size": 400, "validations_per_epoch": 4}),
}


def write_data(root: Path) -> None:
    """DATA_ROOT with small samples, as if they were the real datasets."""
    samples = {
        "criteo": criteo_sample(CRITEO, 3_000),
        "census-income-kdd": census_sample(CENSUS_INCOME_KDD, 1_500, 600),
        "ml-1m": movie_sample(60),
    }
    for name, folder in samples.items():
        (root / name).symlink_to(folder)


def run(train: Callable[..., dict], settings: dict, folder: Path, death: int | None = None) -> int:
    """Train in a new process that dies after checkpoint number `death`.

    Returns the number of the last checkpoint.
    """
    context = get_context("fork")  # so that imports need not be repeated for each run
    saves = context.SimpleQueue()

    def child() -> None:
        write, numbers = MappedCheckpointIO.save_checkpoint, count(1)
        number = 0

        def save_checkpoint(*arguments: object, **keywords: object) -> None:
            nonlocal number
            write(*arguments, **keywords)
            number = next(numbers)
            if number == death:
                os._exit(DIED)

        MappedCheckpointIO.save_checkpoint = save_checkpoint
        common.training.callbacks.CHECKPOINT_MINUTES = 0
        os.environ["RUN_FOLDER"] = str(folder)
        with open(folder.with_suffix(".log"), "a") as log:
            os.dup2(log.fileno(), 1)
            train(**settings)
        saves.put(number)

    process = context.Process(target=child)
    process.start()
    process.join()
    expected = 0 if death is None else DIED
    check(process.exitcode == expected, f"{folder} ended with {process.exitcode}; see {folder.with_suffix('.log')}.")
    return saves.get() if death is None else death


def outcome(folder: Path) -> tuple:
    results = json.loads((folder / "results.json").read_text())
    return (folder / "metrics.csv").read_text(), results["validation"], results["test"], results["epochs"]


def main(*names: str) -> None:
    names = names or tuple(TRAINERS)
    check(set(names) <= TRAINERS.keys(), f"found {' '.join(names)}; expected some of {', '.join(TRAINERS)}.")
    differ = 0
    with tempfile.TemporaryDirectory() as home:
        os.environ["OUTPUT_ROOT"] = home
        write_data(Path(home))
        for name in names:
            train, settings = TRAINERS[name]
            settings = SETTINGS | settings | {"data_root": home}
            whole = Path(home, name)
            number = run(train, settings, whole)
            deaths = np.linspace(1, number, DEATHS).round().astype(int).tolist()
            wrong = []
            for i, death in enumerate(deaths):
                folder = Path(home, f"{name}_{i}")
                run(train, settings, folder, death)
                run(train, settings, folder)
                if outcome(folder) != outcome(whole):
                    wrong.append(death)
            differ += len(wrong)
            print(f"{name}: {len(deaths)} deaths after one of {number} checkpoints; other results: {wrong}", flush=True)
    check(not differ, f"{differ} resumed runs differ from the uninterrupted one.")


if __name__ == "__main__":
    run_script(main, "[NAME...]")
