"""Training in processes of a Ray cluster, which here is just this machine."""

import os
import signal
from pathlib import Path

import pandas as pd
import pytest
import pytorch_lightning as pl
import ray

from common.errors import UserError
from dlrm.train import train


class KillOnce(pl.Callback):
    """Kills the second process in mid-training, but only once; records where each start begins."""

    def __init__(self, folder: Path):
        self.mark, self.starts = folder / "killed", folder / "starts.txt"

    def on_train_start(self, trainer, module) -> None:
        if trainer.global_rank == 1:
            with open(self.starts, "a") as file:
                file.write(f"{trainer.global_step} ")

    def on_train_batch_start(self, trainer, module, batch, batch_index) -> None:
        if trainer.global_rank == 1 and trainer.global_step == 9 and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def settings(criteo, undrawn, monkeypatch) -> dict:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    yield {"bottom_mlp_units": (8,), "top_mlp_units": (8,), "embedding_dim": 4, "batch_size": 60}
    ray.shutdown()


def test_a_killed_process_starts_again_and_the_run_ends_the_same(tmp_path, outputs, settings):
    settings |= {"max_epochs": 2, "precision": "32-true"}
    whole = train(**settings)
    killed = train(**settings, devices=2, strategy="ray", callbacks=[KillOnce(tmp_path)])
    # validations, and with them checkpoints, are after steps 2, 4, ...
    first, second = map(int, (tmp_path / "starts.txt").read_text().split())
    assert (first, second) == (0, 8)
    for metrics in ("test", "validation"):
        assert killed[metrics] == pytest.approx(whole[metrics], abs=1e-5)
    one, two = (pd.read_csv(outputs / "runs" / "dlrm" / f"version_{run}" / "metrics.csv") for run in (0, 1))
    assert two.step.tolist() == one.step.tolist()


@pytest.fixture
def two_processors(monkeypatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.cluster_resources", dict)
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": 1.0}}] * 2)


@pytest.mark.usefixtures("two_processors")
def test_more_processes_than_the_cluster_has_cpus_for_are_refused(monkeypatch, outputs, settings):
    monkeypatch.delattr("common.cluster.ray_cluster.TorchTrainer")  # it would wait forever
    with pytest.raises(UserError, match=r"devices times num_nodes .*: 3 CPUs are needed, but Ray has 2 "):
        train(**settings, devices=3, strategy="ray")
    assert not (outputs / "runs").exists()


@pytest.mark.usefixtures("two_processors")
def test_an_output_root_that_cannot_be_written_is_refused(monkeypatch, tmp_path, settings):
    (tmp_path / "file").touch()
    monkeypatch.setenv("OUTPUT_ROOT", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot write .*file"):
        train(**settings, devices=2, strategy="ray")


def test_settings_are_refused_before_anything_starts(settings):
    with pytest.raises(UserError, match="batch_size is"):
        train(**(settings | {"batch_size": 0}), devices=2, strategy="ray")
    assert not ray.is_initialized()
