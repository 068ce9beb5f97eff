"""TensorBoard's files and another Lightning logger, read back."""

import struct
import time
from collections import defaultdict
from pathlib import Path

import pandas as pd
import pytest
from pytorch_lightning.loggers import CSVLogger, MLFlowLogger, WandbLogger
from tensorboardX.proto.event_pb2 import Event

from common.errors import UserError
from common.training.seeds import train_seeds
from deepfm.deepfm import DeepFM
from deepfm.train import OPTIMIZER, train
from dlrm.train import train as train_dlrm
from tests.test_resume import Interrupted, interrupt

SMALL = dict(hidden_units=(8,), embedding_dim=3, max_epochs=2, batch_size=10, patience=9)  # 60 steps an epoch
pytestmark = pytest.mark.usefixtures("criteo", "undrawn")


def read_events(folder: Path) -> tuple[dict[str, dict[int, float]], dict[str, int]]:
    """Numbers by tag and step, without what was purged, and how many images each tag has."""
    numbers: dict[str, dict[int, float]] = defaultdict(dict)
    images: dict[str, int] = defaultdict(int)
    for path in sorted(folder.glob("events.*"), key=lambda path: path.stat().st_mtime_ns):
        content = path.read_bytes()
        while content:
            (size,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + size])
            content = content[16 + size :]
            if event.session_log.status == 1:  # START: values of this step or later are purged
                numbers = {tag: {s: v for s, v in line.items() if s < event.step} for tag, line in numbers.items()}
                numbers = defaultdict(dict, numbers)
            for value in event.summary.value:
                if value.HasField("image"):
                    images[value.tag] += 1
                elif value.HasField("simple_value"):
                    assert event.step not in numbers[value.tag], f"{value.tag} twice in step {event.step}"
                    numbers[value.tag][event.step] = value.simple_value
    return numbers, images


def test_tensorboard_gets_losses_metrics_settings_and_figures(outputs):
    results = train(**SMALL, logger="tensorboard")
    numbers, images = read_events(Path(results["run_folder"], "tensorboard"))
    assert list(numbers["train_loss_step"]) == list(numbers["learning_rate"]) == [50, 100]
    assert numbers["learning_rate"][50] == pytest.approx(1e-3 * (1 - 49 / 120), rel=1e-5)
    assert list(numbers["train_loss"]) == [30, 60, 90, 120] and len(numbers["val_auc"]) == 4
    assert numbers["test_auc"] == {120: pytest.approx(results["test"]["auc"], abs=1e-6)}
    assert images == {"learning_curves": 1, "reliability": 1, "roc": 1}
    settings = b"".join(path.read_bytes() for path in Path(results["run_folder"], "tensorboard").glob("events.*"))
    assert b"embedding_l2" in settings and results["settings"]["logger"] == "tensorboard"


def test_a_resumed_run_goes_on_in_the_same_files(monkeypatch):
    whole, _ = read_events(Path(train(**SMALL, logger="tensorboard")["run_folder"], "tensorboard"))
    with monkeypatch.context() as patch:
        interrupt(patch, DeepFM, "training_step", 105)  # the steps after 90 are repeated
        with pytest.raises(Interrupted):
            train(**SMALL, logger="tensorboard")
    time.sleep(1)  # files are named by the second; resuming in another process takes longer
    numbers, _ = read_events(Path(train(**SMALL, logger="tensorboard", resume=True)["run_folder"], "tensorboard"))
    assert numbers.keys() == whole.keys()
    for tag in ("train_loss", "train_loss_step", "learning_rate", "val_auc", "test_auc"):
        assert numbers[tag] == pytest.approx(whole[tag]), tag


def test_any_logger_of_lightning_or_several(tmp_path):
    loggers = [CSVLogger(tmp_path / name) for name in ("mine", "other")]
    results = train(**SMALL, logger=loggers)
    for path in (tmp_path / "mine", tmp_path / "other"):
        (path,) = path.rglob("metrics.csv")
        found = pd.read_csv(path)
        assert {"train_loss", "learning_rate", "val_auc", "test_auc"} <= set(found)
        assert found["epoch"].dropna().tolist() == [0.5, 1.0, 1.5, 2.0]
        settings = path.with_name("hparams.yaml").read_text()
        assert f"embedding_l2: {OPTIMIZER['embedding_l2']}" in settings and "cardinalities" not in settings
        assert f"run_folder: {results['run_folder']}" in settings
    assert results["settings"]["logger"] == "tuple"
    for wrong in ("wandb", lambda folder: folder):
        with pytest.raises(UserError, match=r"logger is .*; it must be 'csv', 'tensorboard', a Lightning logger"):
            train(**SMALL, logger=wrong)


@pytest.mark.parametrize("function", ["log_hyperparams", "log_metrics", "finalize"])
def test_a_logger_that_fails_costs_a_warning(tmp_path, monkeypatch, capsys, function):
    def fail(*values: object, **keywords: object) -> None:
        raise OSError(28, "the server's disk is full")

    class Mine(CSVLogger):
        pass

    monkeypatch.setattr(Mine, function, fail)
    results = train(**SMALL, logger=lambda folder: [Mine(folder), CSVLogger(folder, "kept")])
    printed = capsys.readouterr().out
    assert printed.count("warning: Mine failed, and is told nothing more: [Errno 28] the server's disk is full") == 1
    assert "Test metrics" in printed and Path(results["run_folder"], "results.json").exists()
    (kept,) = Path(results["run_folder"], "kept").rglob("metrics.csv")
    assert "test_auc" in kept.read_text()
    if function == "finalize":
        assert printed.index("Test metrics") < printed.index("warning")


def two_seeds(logger) -> list[dict]:
    return train_seeds(train, (1, 2), "runs", **SMALL | {"max_epochs": 1}, logger=logger)


def test_two_seeds_are_two_runs_of_mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    address = f"sqlite:///{tmp_path}/mlflow.db"
    results = two_seeds(
        lambda folder: MLFlowLogger("here", folder.name, address, artifact_location=str(tmp_path / "a"))
    )
    client = mlflow.MlflowClient(address)
    runs = client.search_runs([client.get_experiment_by_name("here").experiment_id])
    assert sorted(run.data.params["seed"] for run in runs) == ["1", "2"]
    for run in runs:
        result = results[int(run.data.params["seed"]) - 1]
        assert run.data.metrics["test_auc"] == pytest.approx(result["test"]["auc"]) and run.info.status == "FINISHED"
        assert run.data.params["run_folder"] == result["run_folder"] and "cardinalities" not in run.data.params
        assert [each.value for each in client.get_metric_history(run.info.run_id, "epoch")] == [0.5, 1.0]
        figures = {path.path for path in client.list_artifacts(run.info.run_id)}
        assert figures == {"learning_curves.png", "reliability.png", "roc.png"}


def test_two_seeds_are_two_runs_of_weights_and_biases(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    stored, finish = {}, wandb.Run.finish

    def record(run) -> None:
        stored[run.id] = dict(run.config), run.summary._as_dict()
        finish(run)

    monkeypatch.setattr(wandb.Run, "finish", record)
    results = two_seeds(lambda folder: WandbLogger(folder.name, tmp_path, offline=True, project="here"))
    assert wandb.run is None and len(stored) == 2
    for (config, summary), result in zip(stored.values(), results, strict=True):
        assert config["seed"] == result["seed"] and config["run_folder"] == result["run_folder"]
        assert "cardinalities" not in config
        assert summary["test_auc"] == pytest.approx(result["test"]["auc"]) and summary["epoch"] == 1
        assert {"learning_curves", "reliability", "roc"} <= summary.keys()


def test_a_trial_of_a_search_is_a_run_of_its_own(tmp_path):
    small = {"bottom_mlp_units": (4,), "top_mlp_units": (4,), "embedding_dim": 2, "batch_size": 10}
    folder = tmp_path / "trials" / "trial_000"
    train_dlrm(**small, run_folder=folder, test=False, logger="tensorboard")
    numbers, images = read_events(folder / "tensorboard")
    assert "val_auc" in numbers and "best_val_auc" in numbers and "test_auc" not in numbers and not images
