"""tune_dlrm.py: small searches, with failing trials, killed and started again."""

import json
import os
import re
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace

import optuna
import pandas as pd
import pytest
from ray import tune
from ray.tune.schedulers import ASHAScheduler

import dlrm.train
from common.cluster.search import SearchProgress, TuneReporter, make_scheduler
from common.cluster.study import end_trial, open_study, trial_folder
from common.errors import UserError
from common.files import write_json
from common.paths import REPO
from common.settings import Settings
from common.training.run_folder import continued_folder
from data.criteo_data import CRITEO
from data.samples.criteo import criteo_sample
from dlrm.train import train
from tests.criteo_rows import make_lines, write_lines
from tests.script_process import start_process, written
from tune_dlrm import is_complete, search

FIXED_HERE = "{'dataset': 'criteo', 'max_epochs': 1, 'validations_per_epoch': 4, 'seed': 23}"  # the third trial fails
SETTINGS = f"fixed={FIXED_HERE}, grace_validations=4, concurrent_trials=1"
SMALL = "'top_mlp_units': tune.choice([(8,)]), 'embedding_dim': tune.choice([4]), 'batch_size': tune.choice([8])"
RATE = "'learning_rate': tune.loguniform(1e-3, 1e-2)"


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts a search in another process, from another folder."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "criteo").symlink_to(criteo_sample(CRITEO, 2000))

    def start(space: str, trials: int, **environment: str) -> BaseProcess:
        code = f"""import sys; sys.path.insert(0, {str(REPO)!r})
from ray import tune
from common.errors import run_script
from tune_dlrm import search
run_script(lambda: search(trials={trials}, space={{{space}}}, {SETTINGS}))"""
        (tmp_path / "search.py").write_text(code)
        return start_process(tmp_path / "search.py", folder=tmp_path, DATA_ROOT=tmp_path, **environment)

    return start


def read_trials(outputs: Path) -> list[dict]:
    """State, settings and validations of each trial of the search."""
    folder = outputs / "runs" / "tune_dlrm" / "version_0"
    if not (folder / "trials").exists():  # before it, the search may still be creating its study
        return []
    return [
        trial.user_attrs | {"params": trial.params, "values": trial.intermediate_values}
        for trial in open_study(folder, "val_auc").trials
    ]


def scheduler_of(study: optuna.Study) -> ASHAScheduler:
    settings = Settings(dlrm.train.DATA, dlrm.train.MODEL, dlrm.train.OPTIMIZER, dlrm.train.TRAINING)
    options = {"grace_validations": 1, "reduction_factor": 2}
    return make_scheduler(study, settings.changed({"max_epochs": 1, "validations_per_epoch": 3}), options)


def new_trial(study: optuna.Study, state: str = "started") -> int:
    trial = study.ask()
    trial.set_user_attr("state", state)
    return trial.number


def wait_until(condition: Callable[[], bool], process: BaseProcess) -> None:
    while not condition():
        assert process.is_alive()
        time.sleep(0.1)


def test_killed_and_started_again_with_failing_trials(start, tmp_path, outputs):
    """The driver is killed while the second trial runs; an optimizer that does not exist makes the last one fail.

    Ray's files are in a folder that is closed to other users and removed after the search.
    """
    space = (
        f"{SMALL}, 'bottom_mlp_units': tune.choice([(8,), (4,)]), {RATE}, 'optimizer': tune.choice(['adam', 'none'])"
    )
    process = start(space, 3)
    wait_until(lambda: len(trials := read_trials(outputs)) > 1 and len(trials[1]["values"]) > 0, process)
    process.kill()
    process.join()
    before = read_trials(outputs)
    assert before[0]["state"] == "finished" and before[1]["state"] == "started"
    folder = outputs / "runs" / "tune_dlrm" / "version_0"
    kept = (folder / "trials" / "trial_000" / "metrics.csv").stat().st_mtime_ns

    with tempfile.TemporaryDirectory(dir="/tmp") as short:  # because sockets are created in it
        process = start(space, 3, RAY_TMPDIR=short)
        wait_until(lambda: os.listdir(short), process)
        assert next(Path(short).iterdir()).stat().st_mode & 0o777 == 0o700
        process.join(300)
        output = written(tmp_path, "stdout")
        assert process.exitcode == 0, output + written(tmp_path, "stderr")
        assert not os.listdir(short)
    assert "trial   1  starts, again from validation" in output
    after = read_trials(outputs)
    assert len(after) == 3 and after[0] == before[0]
    assert (folder / "trials" / "trial_000" / "metrics.csv").stat().st_mtime_ns == kept
    assert before[1]["values"].items() <= after[1]["values"].items() and len(after[1]["values"]) == 4
    failed = [trial for trial in after if trial["params"]["optimizer"] == "none"]
    assert failed and [trial for trial in after if trial["state"] == "failed"] == failed
    assert "UserError: optimizer is 'none'" in failed[0]["cause"] and failed[0]["cause"] in output

    names = {path.name for path in folder.iterdir() if path.is_file()}
    assert names > {"best.json", "search.db", "search.png", "settings.png", "trials.csv"}
    best, table = json.loads((folder / "best.json").read_text()), pd.read_csv(folder / "trials.csv")
    finished = table[table.state == "finished"]
    assert len(table) == 3 and best["trial"] == finished.trial.iloc[0]
    assert best["validation"]["auc"] == pytest.approx(finished.val_auc.max(), abs=1e-6)
    assert Path(best["checkpoint"]).exists() and 0 < best["test"]["auc"] < 1
    tested = [each["trial"] for each in best["tested"]]
    assert tested == finished.trial.tolist()[:3] and "Standard error of an AUC: 0." in output
    assert (folder / "importance.csv").read_text().startswith("setting,importance")
    assert not (folder / "ray").exists() and not list(folder.glob("checkpoints"))
    assert f"optimizer={best['settings']['optimizer']!r}," in output


def test_all_fail(outputs, monkeypatch, criteo):
    def fail(trial, space, settings, options, study, folder) -> None:
        for _ in range(options["trials"]):
            end_trial(study, folder, new_trial(study), "failed", "UserError: optimizer is 'none'")

    monkeypatch.setattr("tune_dlrm.run_search", fail)
    message = "all 2 trials failed; the first one: UserError: optimizer is 'none'\nFix the cause, then remove "
    with pytest.raises(UserError, match=f"{message}{outputs}"):
        search(trials=2)


WRONG = {"trials": 0, "fixed": 3, "reduction_factor": 1, "gpus_per_trial": -1, "space": [], "concurrent_trials": "1"}
UNSEARCHED = [2e-3, tune.grid_search([1e-3]), tune.randn(), tune.sample_from(lambda spec: 1e-3), {"low": 1e-3}]


def test_what_cannot_be_searched_is_refused(outputs):
    for name, value in WRONG.items():
        with pytest.raises(UserError, match=f"{name} is {re.escape(repr(value))}; it must be"):
            search(**{name: value})
    for entry in UNSEARCHED:
        with pytest.raises(UserError, match=re.escape("SPACE['learning_rate'] must be tune.choice, ")):
            search(space={"top_mlp_units": tune.choice([(8,)]), "learning_rate": entry})
    assert not (outputs / "runs").exists()


def test_an_output_root_that_cannot_be_written_is_refused(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("OUTPUT_ROOT", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot write .*file"):
        search()


def test_a_search_goes_on_while_no_constant_of_the_training_changes(monkeypatch, outputs, criteo):
    def refuse(*values: object, **keywords: object) -> None:
        raise UserError("no Ray here")

    monkeypatch.setattr("common.cluster.search.start_ray", refuse)
    for group, edited in [("OPTIMIZER", {})] * 2 + [
        ("OPTIMIZER", {"optimizer": "adagrad"}),
        ("DATA", {"num_workers": 1}),
    ]:
        with monkeypatch.context() as patch, pytest.raises(UserError, match="no Ray here"):
            patch.setattr(f"dlrm.train.{group}", getattr(dlrm.train, group) | edited)
            search()
    with pytest.raises(UserError, match="no Ray here"):
        search(trials=40)  # more trials continue the same search
    criteo.write_text(criteo.read_text().replace("0", "1", 1))  # one label, or a digit
    with pytest.raises(UserError, match=r"version_0 had other data: \{'fingerprint': \d+\}"):
        search()
    searches = (outputs / "runs" / "tune_dlrm").glob("version_*/settings.json")
    assert {json.loads(path.read_text())["optimizer"] for path in searches} == {"adam", "adagrad"}
    assert len(list((outputs / "runs" / "tune_dlrm").iterdir())) == 2


def test_validation_rows_of_one_class_are_refused_before_any_trial(monkeypatch, outputs, criteo, rng):
    lines = [("0" + line[1:]) if i >= 600 else line for i, line in enumerate(make_lines(rng, 700))]
    write_lines(criteo, lines)
    monkeypatch.setattr("common.cluster.search.start_ray", None)  # must not be called
    with pytest.raises(UserError, match=r"all 50 validation rows of 'criteo' are of one class: trials cannot be comp"):
        search()
    assert not (outputs / "runs").exists()


@pytest.mark.parametrize("name", ["settings.json", "search.db"])
@pytest.mark.parametrize("damaged", ["[{}]", '[{"number": 0', "3" * 5000])
def test_a_damaged_file_of_a_search_blocks_no_later_one(tmp_path, capsys, name, damaged):
    settings = {"trials": 1}
    chosen = partial(continued_folder, tmp_path, settings, partial(is_complete, metric="val_auc", trials=1))
    first = chosen()
    write_json(first / "settings.json", settings)
    new_trial(open_study(first, "val_auc"))
    (first / "best.json").touch()
    assert chosen() == first
    (first / name).write_text(damaged)
    assert chosen() == tmp_path / "version_1"
    assert f"{name} is damaged" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("batch_size", "validations"),
    [(300, 2), (120, 5), (86, 3)],  # of 600 rows: 2, 5 and 7 batches, the last of which no validation follows
)
def test_a_trial_is_finished_however_many_validations_it_has(monkeypatch, tmp_path, criteo, batch_size, validations):
    reports = []
    monkeypatch.setattr("common.cluster.search.tune.report", reports.append)
    small = {"bottom_mlp_units": (4,), "top_mlp_units": (4,), "embedding_dim": 2, "max_epochs": 1}
    small |= {"validations_per_epoch": 3, "batch_size": batch_size}
    train(**small, run_folder=trial_folder(tmp_path, 0), callbacks=[TuneReporter()], test=False)

    study = open_study(tmp_path, "val_auc")
    progress, scheduler = SearchProgress(study, tmp_path, 1), scheduler_of(study)
    for seen, state in (reports, "finished"), (reports[:1], "stopped"):
        trial = SimpleNamespace(trial_id=state, config={"number": new_trial(study)})
        scheduler.on_trial_add(None, trial)
        for trial.last_result in seen:
            assert scheduler.on_trial_result(None, trial, trial.last_result) == "CONTINUE"
            progress.on_trial_result(0, [], trial, trial.last_result)
        progress.on_trial_complete(0, [], trial)
        assert study.trials[-1].user_attrs["state"] == state
    assert len(study.trials[0].intermediate_values) == validations


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"gpus_per_trial": 0.5}, "gpus_per_trial: 0.5 GPUs are needed, but Ray has 0 "),
        ({"cpus_per_trial": 3}, "cpus_per_trial times workers_per_trial: 3 CPUs are needed, but Ray has 2 "),
        ({"workers_per_trial": 4}, "cpus_per_trial times workers_per_trial: 4 CPUs are needed, but Ray has 2 "),
    ],
)
def test_a_trial_that_fits_on_no_machine_is_refused(monkeypatch, criteo, asked, message):
    monkeypatch.setattr("common.cluster.search.start_ray", lambda *values, **keywords: None)
    monkeypatch.delattr("common.cluster.search.tune.Tuner")  # it would wait forever
    machines = [{"Alive": True, "Resources": {"CPU": 2.0}}] * 2 + [{"Alive": False, "Resources": {"GPU": 1.0}}]
    monkeypatch.setattr("ray.nodes", lambda: machines)
    with pytest.raises(UserError, match=re.escape(message)):
        search(**asked)


DISK = "ray::train()\nOSError: [Errno 28] No space left on device\n\ncommon.errors.UserError: Make room.\n"
FAULT = "ray::train()\ncommon.errors.UserError: it is\n'none'\n"
DEATH = "Failure # 1\nThe actor died.\nThe process was killed.\n"


def test_how_a_trial_fails(monkeypatch, tmp_path):
    """By its own fault; by a full disk, after which it goes on; by the death of its process, at most three times."""
    monkeypatch.setattr("common.cluster.search.ray.nodes", lambda: [{"Alive": True}])
    study, kept = open_study(tmp_path, "val_auc"), tmp_path / "error.txt"
    progress = SearchProgress(study, tmp_path, 1)
    fates = [(DISK, ["started"]), (FAULT, ["failed"]), (DEATH, ["started", "started", "failed"])]
    for error, states in fates:
        kept.write_text(error)
        trial = SimpleNamespace(config={"number": new_trial(study)}, error_file=str(kept))
        for state in states:
            with pytest.raises(UserError, match=r"^Make room\. Then the same") if error is DISK else nullcontext():
                progress.on_trial_error(0, [], trial)
            assert study.trials[-1].user_attrs["state"] == state
    causes = [trial.user_attrs.get("cause") for trial in study.trials]
    assert causes == [None, "UserError: it is\n'none'", "its process died: The process was killed."]


@pytest.mark.parametrize(("epoch", "state"), [(1.5, "stopped"), (2.0, "finished")])
def test_a_trial_that_is_stopped_at_its_end_is_finished(tmp_path, epoch, state):
    study = open_study(tmp_path, "val_auc")
    trial = SimpleNamespace(config={"number": new_trial(study)}, last_result={"complete": False, "epoch": epoch})
    progress = SearchProgress(study, tmp_path, 2)
    progress.on_trial_result(0, [], trial, {"validation": 1, "epoch": epoch, "val_auc": 0.7})
    progress.on_trial_complete(0, [], trial)
    assert study.trials[0].user_attrs["state"] == state and study.trials[0].value == 0.7


@pytest.mark.parametrize("error", [UserError("Make room."), OSError(28, "No space left on device")])
def test_a_full_disk_ends_a_search_with_a_message(monkeypatch, outputs, criteo, error):
    class Tuner:
        def __init__(self, *values: object, **keywords: object):
            pass

        def fit(self) -> None:
            try:
                raise error
            except Exception:  # as Ray does with what its callbacks raise
                raise tune.TuneError("a traceback")  # noqa: B904

    monkeypatch.setattr("common.cluster.search.tune.Tuner", Tuner)
    for name in ("start_ray", "check_resources", "tune.with_parameters", "tune.with_resources"):
        monkeypatch.setattr(f"common.cluster.search.{name}", lambda *values, **keywords: None)
    with pytest.raises(UserError, match=r"Make room|No space left"):
        search()


def test_a_search_whose_ray_is_gone_ends_with_a_message(monkeypatch, tmp_path, capsys):
    def end(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr("common.cluster.search.os._exit", end)
    progress = SearchProgress(open_study(tmp_path, "val_auc"), tmp_path, 3)
    monkeypatch.setattr("common.cluster.search.ray.nodes", lambda: [{"Alive": False}, {"Alive": True}])
    progress.on_step_end(1, [])
    monkeypatch.setattr("common.cluster.search.ray.nodes", lambda: [{"Alive": False}])
    with pytest.raises(SystemExit, match="1"):
        progress.on_step_end(2, [])
    assert "The same command continues" in capsys.readouterr().err
