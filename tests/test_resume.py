"""A run that is interrupted and resumed ends like one that is not."""

import itertools
import json
import math
import re
import signal
import sys
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from filelock import FileLock
from pytorch_lightning.utilities.exceptions import SIGTERMException

import common.training.callbacks
import common.training.fit
from common.checkpoint import MappedCheckpointIO, load_checkpoint
from common.errors import UserError, run_script
from common.training.run_folder import find_or_create_run
from deepfm.deepfm import DeepFM
from deepfm.train import train
from tests.criteo_rows import make_lines, write_lines

UNINTERRUPTED: dict[str, tuple[dict, str]] = {}
pytestmark = pytest.mark.usefixtures("undrawn")


class Interrupted(BaseException):
    """Stands in for a kill: nothing catches it."""


SMALL = {"hidden_units": (8,), "embedding_dim": 3, "dropout": 0.5, "batch_size": 60, "validations_per_epoch": 2}
SMALL |= {"max_epochs": 3, "patience": 5, "learning_rate": 0.01}


@pytest.fixture
def start(criteo):
    return lambda **settings: train(**SMALL | settings)


@pytest.fixture
def whole(start):
    """Results and metrics.csv of an uninterrupted run with these settings; each is trained only once."""

    def whole(**settings) -> tuple[dict, str]:
        if (key := repr(settings)) not in UNINTERRUPTED:
            results = start(**settings)
            UNINTERRUPTED[key] = results, Path(results["run_folder"], "metrics.csv").read_text()
        return UNINTERRUPTED[key]

    return whole


def interrupt(monkeypatch, where: object, name: str, call: int, by: type[BaseException] = Interrupted) -> None:
    """Raise `by` in call number `call` of where.name."""
    original, calls = getattr(where, name), [0]

    def wrapper(*arguments, **keywords):
        calls[0] += 1
        if calls[0] == call:
            raise by
        return original(*arguments, **keywords)

    monkeypatch.setattr(where, name, wrapper)


LINEAR, PLATEAU = {"schedule": "linear"}, {"schedule": "plateau", "warmup_steps": 8}
OTHERS = [{"schedule": "linear", "warmup_steps": 8}, {"schedule": "cosine", "warmup_steps": 8}]
DENSE = {"optimizer": "dense_adam", "embedding_l2": 1e-4}
DEATHS = [
    # a validation follows steps 5, 10, ..., and an epoch has 10
    *((LINEAR, DeepFM, "training_step", call) for call in (1, 9, 11, 30)),
    *((PLATEAU, DeepFM, "training_step", call) for call in (4, 16)),
    (LINEAR, DeepFM, "validation_step", 1),
    (PLATEAU, DeepFM, "validation_step", 3),
    *((LINEAR, common.training.fit, name, 1) for name in ("write_json", "plot_learning_curves")),
    *((each, DeepFM, "training_step", 12) for each in OTHERS),
    (DENSE, DeepFM, "training_step", 12),
]


@pytest.mark.parametrize(("settings", "where", "name", "call"), DEATHS)
def test_ends_the_same(start, whole, monkeypatch, settings, where, name, call):
    start = partial(start, **settings)
    expected, _ = whole(**settings)
    with monkeypatch.context() as patch:
        interrupt(patch, where, name, call)
        with pytest.raises(Interrupted):
            start()
    resumed = start(resume=True)
    for key in ("test", "validation", "epochs", "baselines"):
        assert resumed[key] == expected[key], key


@pytest.mark.parametrize("save", [5, 6, 10, 13, 14])
def test_ends_the_same_after_a_death_right_after_a_checkpoint(start, whole, monkeypatch, outputs, save):
    """Also after timed checkpoints, here after each batch. A validation follows batches 5 and 10."""
    monkeypatch.setattr(common.training.callbacks, "CHECKPOINT_MINUTES", 0)
    expected, history = whole(max_epochs=2)
    write, calls = MappedCheckpointIO.save_checkpoint, itertools.count(1)

    def save_checkpoint(*arguments, **keywords):
        write(*arguments, **keywords)
        if next(calls) == save:
            raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(MappedCheckpointIO, "save_checkpoint", save_checkpoint)
        with pytest.raises(Interrupted):
            start(max_epochs=2)
    resumed = start(max_epochs=2, resume=True)
    assert all(resumed[key] == expected[key] for key in ("test", "validation", "epochs", "baselines"))
    assert Path(resumed["run_folder"], "metrics.csv").read_text() == history


def test_a_run_that_stopped_early_trains_no_further(start, monkeypatch):
    settings = {"patience": 1, "max_epochs": 9, "learning_rate": 0.05}
    whole = start(**settings)
    assert whole["epochs"] < 9
    with monkeypatch.context() as patch:
        interrupt(patch, common.training.fit, "plot_learning_curves", 1)
        with pytest.raises(Interrupted):
            start(**settings)
    resumed = start(**settings, resume=True)
    assert (resumed["test"], resumed["epochs"]) == (whole["test"], whole["epochs"])


def test_resumes_with_the_same_data_only(start, monkeypatch, criteo, rng):
    """Values that are renamed, or a label that is turned, leave the number of rows as it is."""
    interrupt(monkeypatch, DeepFM, "training_step", 16)
    with pytest.raises(Interrupted):
        start()
    fields = [line.split("\t") for line in criteo.read_text().splitlines()]
    values = {row[14] for row in fields} - {""}
    renamed = {"": ""} | {value: f"{(int(value, 16) + 1) % 2**32:08x}" for value in values}
    turned = [[str(1 - int(fields[5][0])) if i == 5 else row[0], *row[1:]] for i, row in enumerate(fields)]
    for changed in ([[*row[:14], renamed[row[14]], *row[15:]] for row in fields], turned, fields * 2):
        write_lines(criteo, ["\t".join(row) for row in changed])
        with pytest.raises(UserError, match="had other data"):
            start(resume=True)


def test_validation_rows_of_one_class_have_no_auc(start, criteo, rng, outputs, capsys):
    lines = make_lines(rng, 700)
    write_lines(criteo, [("0" + x[1:]) if i >= 600 else x for i, x in enumerate(lines)])
    results = start(learning_rate=0.005, max_epochs=4, patience=2, on_regression=False)
    assert math.isnan(results["test"]["auc"]) and math.isnan(results["validation"]["auc"])
    line = "All 50 validation rows are of one class, so their AUC is undefined: the checkpoint is chosen by log loss."
    assert line in capsys.readouterr().out
    # the best validation is neither the first, nor the one after which patience ends a run without a better one
    folder = outputs / "runs" / "deepfm" / "version_0"
    history = pd.read_csv(folder / "metrics.csv")
    best = history["val_log_loss"].idxmin()
    assert best >= 2 and load_checkpoint(folder / "checkpoints" / "best.ckpt")["global_step"] == history["step"][best]
    assert results["validation"]["log_loss"] == pytest.approx(history["val_log_loss"][best], abs=1e-6)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    content = json.loads((folder / "results.json").read_text(), parse_constant=refuse)
    assert content["test"]["auc"] is None and content["test"]["log_loss"] == results["test"]["log_loss"] > 0


def test_batch_norm_needs_two_rows(start, criteo, rng, outputs):
    for settings, least in (({"batch_size": 1}, 2), ({"batch_size": 3, "devices": 2}, 4)):
        message = rf"batch_size is {settings['batch_size']}, .*must be at least {least}, 2 per process"
        with pytest.raises(UserError, match=message):
            start(batch_norm=True, **settings)
    assert not list(outputs.rglob("*.ckpt"))
    write_lines(criteo, make_lines(rng, 702))  # 601 for training: the last row does not make a batch by itself
    results = start(batch_norm=True, batch_size=2, max_epochs=1, validations_per_epoch=1)
    assert results["rows"]["train"] == 601 and math.isfinite(results["test"]["log_loss"])


def test_says_what_it_resumes(start, monkeypatch, capsys, outputs):
    start(resume=True)
    assert "No unfinished run" in capsys.readouterr().out
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt(patch, DeepFM, "training_step", 12)
        start()
    with pytest.raises(UserError, match=r"other settings: \{'learning_rate': 0.01\}"):
        start(resume=True, learning_rate=0.02)
    capsys.readouterr()
    left = outputs / "runs" / "deepfm" / "version_1" / "checkpoints" / "last.ckpt.0123abcd.tmp"  # by a kill
    left.touch()
    start(resume=True)
    assert f"Continuing {outputs}/runs/deepfm/version_1" in capsys.readouterr().out and not left.exists()
    assert [path.name for path in sorted((outputs / "runs" / "deepfm").iterdir())] == ["version_0", "version_1"]


@pytest.mark.parametrize(
    ("name", "call", "message", "kind", "code"),
    [
        ("training_step", 4, "there was no checkpoint yet", KeyboardInterrupt, 130),
        ("training_step", 12, "resume=True continues from .*last.ckpt", SIGTERMException, 143),
        ("test_step", 1, "resume=True continues from .*last.ckpt", KeyboardInterrupt, 130),
    ],
)
def test_ctrl_c_says_how_to_go_on(start, monkeypatch, capsys, name, call, message, kind, code):
    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    interrupt(monkeypatch, DeepFM, name, call, kind)
    with pytest.raises(SystemExit) as ended:
        run_script(start)
    signal.signal(signal.SIGINT, handler)  # Lightning turns it off
    assert ended.value.code == code
    assert re.fullmatch(f"interrupted; {message}.*", capsys.readouterr().err.splitlines()[-1])


def test_two_that_resume_at_once_take_different_runs(start, monkeypatch, outputs):
    for _ in range(2):
        with monkeypatch.context() as patch:
            interrupt(patch, common.training.fit, "write_json", 1)
            with pytest.raises(Interrupted):
                start()
    taken = [find_or_create_run(outputs / "runs" / "deepfm", True) for _ in range(3)]  # each is held by its lock
    assert [folder.name for folder, _ in taken] == ["version_1", "version_0", "version_2"]


def test_a_moved_folder_keeps_its_best_checkpoint(start, monkeypatch, outputs, tmp_path):
    settings = {"max_epochs": 4, "patience": 50, "learning_rate": 0.05}
    whole = start(**settings)
    history = pd.read_csv(outputs / "runs" / "deepfm" / "version_0" / "metrics.csv")
    best = int(history["val_auc"].idxmax())
    assert best < len(history) - 1, "no worse validation follows"
    with monkeypatch.context() as patch:
        interrupt(patch, DeepFM, "training_step", int(history["step"][best]) + 2)
        with pytest.raises(Interrupted):
            start(**settings)
    monkeypatch.setenv("OUTPUT_ROOT", str(outputs.rename(tmp_path / "moved")))
    resumed = start(resume=True, **settings)
    assert resumed["validation"] == whole["validation"] and resumed["test"] == whole["test"]


def test_training_rows_of_one_class_are_refused(start, criteo, rng, outputs):
    lines = ["0" + line[1:] if i < 620 else line for i, line in enumerate(make_lines(rng, 700))]
    for settings in ({}, {"negative_rate": 1e-9}):
        write_lines(criteo, make_lines(rng, 700) if settings else lines)
        with pytest.raises(UserError, match="training rows are of one class: use other rows"):
            start(**settings)
    assert not list((outputs / "runs").glob("*/version_*"))


def test_a_run_that_was_killed_before_its_first_checkpoint_leaves_nothing(start, outputs):
    home = outputs / "runs" / "deepfm"
    (home / "version_0" / "checkpoints").mkdir(parents=True)
    (home / "version_0" / "settings.json").write_text('{"seed": 7}')
    assert Path(start(max_epochs=1)["run_folder"]) == home / "version_0"
    (home / "version_1").mkdir()
    held = FileLock(home / "version_1" / "run.lock").acquire()  # by a run that has only begun
    assert Path(start(max_epochs=1, seed=2)["run_folder"]) == home / "version_2"
    held.lock.release()


def test_a_metric_that_there_is_not_is_one_line(start):
    with pytest.raises(UserError, match="there is no setting 'val_ac'; did you mean 'val_auc'"):
        start(monitor="val_ac")


def test_the_monitor_chooses_the_checkpoint_and_patience_may_be_none(start, outputs):
    settings = {"max_epochs": 3, "learning_rate": 0.2, "patience": None}
    highest, lowest = pd.Series.idxmax, pd.Series.idxmin
    for monitor, best in (("val_log_loss", lowest), ("val_auc", highest), ("auto", highest)):
        folder = Path(start(monitor=monitor, **settings)["run_folder"])
        history = pd.read_csv(folder / "metrics.csv")
        assert len(history) == 6
        chosen = load_checkpoint(folder / "checkpoints" / "best.ckpt")["global_step"]
        assert chosen == history["step"][best(history["val_auc" if monitor == "auto" else monitor])]
