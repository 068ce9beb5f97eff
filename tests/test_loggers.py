"""TensorBoard's files and another Lightning logger, read back."""

import struct
import time
from collections import defaultdict
from pathlib import Path

import pytest
from pytorch_lightning.loggers import CSVLogger
from tensorboardX.proto.event_pb2 import Event

from common.errors import UserError
from deepfm.deepfm import DeepFM
from deepfm.train import train
from dlrm.train import train as train_dlrm
from tests.criteo_rows import make_lines, write_lines
from tests.test_resume import Interrupted, interrupt

SMALL = {"hidden_units": (8,), "embedding_dim": 3, "max_epochs": 2, "batch_size": 10, "patience": 9}  # 60 steps a epoch


@pytest.fixture(autouse=True)
def rows(tmp_path, rng, monkeypatch) -> None:
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    write_lines(tmp_path / "criteo" / "train.txt", make_lines(rng, 700))


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
    settings = b"".join(
        path.read_bytes() for path in Path(results["run_folder"], "tensorboard").rglob("*") if path.is_file()
    )
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


def test_any_logger_of_lightning(tmp_path):
    results = train(**SMALL, logger=CSVLogger(tmp_path / "mine"))
    (path,) = (tmp_path / "mine").rglob("metrics.csv")
    assert {"train_loss", "learning_rate", "val_auc", "test_auc"} <= set(path.read_text().splitlines()[0].split(","))
    assert "embedding_l2: 0.005" in path.with_name("hparams.yaml").read_text()
    assert results["settings"]["logger"] == "CSVLogger"
    with pytest.raises(UserError, match="logger is 'wandb'; it must be 'csv', 'tensorboard' or a Lightning logger"):
        train(**SMALL, logger="wandb")


def test_a_trial_of_a_search_is_a_run_of_its_own(tmp_path):
    small = {"bottom_mlp_units": (4,), "top_mlp_units": (4,), "embedding_dim": 2, "batch_size": 10}
    folder = tmp_path / "trials" / "trial_000"
    train_dlrm(**small, run_folder=folder, test=False, logger="tensorboard")
    numbers, images = read_events(folder / "tensorboard")
    assert "val_auc" in numbers and "best_val_auc" in numbers and "test_auc" not in numbers and not images
