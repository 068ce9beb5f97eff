"""Two processes with half batches against one process with whole batches."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common.data.loader import BatchLoader, EpochSampler
from deepfm.train import train
from models import MODELS
from tests import two_processes
from tests.criteo_rows import make_lines, write_lines
from tests.script_process import REPO, start_process, written


def wait_until(condition: Callable[[], bool], process: BaseProcess) -> None:
    ends = time.monotonic() + 300
    while not condition():
        assert process.exitcode is None and time.monotonic() < ends, "the process ended, or does nothing"
        time.sleep(0.1)


SETTINGS = {"hidden_units": (8,), "dropout": 0.0, "batch_size": 60, "precision": "32-true"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Path]:
    """DATA_ROOT, with rows of Criteo's, and TMPDIR, with a name that would mean another path in a URL."""
    folder = tmp_path_factory.mktemp("data")
    write_lines(folder / "criteo" / "train.txt", make_lines(np.random.default_rng(0), 701))
    (folder / "tmp?a=1#é%20").mkdir()
    return {"DATA_ROOT": folder, "TMPDIR": folder / "tmp?a=1#é%20"}


@pytest.fixture(scope="module")
def started(tmp_path_factory, data) -> Iterator[SimpleNamespace]:
    """A script whose two processes train all models, make two whole runs, and then train until they die."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "script.py").write_text(f"""import sys; sys.path.insert(0, {str(REPO)!r})
from lightning_fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from common.errors import run_script
from deepfm.train import train
from models import MODELS
from tests import two_processes
_ChildProcessObserver._run = lambda self: True  # it kills without a line, up to 5 seconds later

def trainings():
    two_processes.main(2, "2.pt")
    for seed in (1, 2):
        train(**{SETTINGS}, seed=seed, devices=2)
    train(hidden_units=(8,), batch_size=10, max_epochs=9999, patience=9999, devices=2)

run_script(trainings)
""")
    process = start_process(folder / "script.py", folder=folder, OUTPUT_ROOT=folder, **data)
    try:
        two_processes.main(1, folder / "1.pt")
        runs = folder / "runs" / "deepfm"
        wait_until(lambda: (runs / "version_2" / "checkpoints" / "last.ckpt").exists(), process)
        trained = [torch.load(folder / f"{devices}.pt") for devices in (1, 2)]
        yield SimpleNamespace(process=process, folder=folder, runs=runs, trained=trained)
    finally:
        process.kill()


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the other process in /proc")
def test_whole_runs_and_a_death(started, data):
    """The same metrics, one folder, one table; a script that trains several times does so in all its processes.

    When the other process dies, the first ends with one line. Both listen only on the loopback interface.
    """
    first, runs = started.process, started.runs
    for seed in (1, 2):
        one = train(**SETTINGS, seed=seed, data_root=data["DATA_ROOT"])
        two = json.loads((runs / f"version_{seed - 1}" / "results.json").read_text())
        for metrics in ("test", "validation"):
            assert two[metrics] == pytest.approx(one[metrics], abs=1e-5)
        assert two["baselines"] == one["baselines"] and two["rows"] == one["rows"]
    other = child(first.pid)
    assert listening({first.pid, other}) == {"127.0.0.1"}
    os.kill(other, signal.SIGKILL)
    first.join(60)
    output, errors = written(started.folder, "stdout"), written(started.folder, "stderr")
    assert output.count("Test metrics") == 2
    assert first.exitcode == 1 and "Traceback" not in errors and "Warning" not in errors
    assert errors.endswith("error: another process of this run died; resume=True continues from the last checkpoint.\n")
    assert not list(data["TMPDIR"].iterdir())
    assert sorted(path.name for path in runs.iterdir()) == [f"version_{i}" for i in range(3)]


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "dense_adam"])
@pytest.mark.parametrize("model", MODELS)
def test_training_is_the_same(started, model, optimizer):
    """With SGD also each weight; an Adam turns rounding of a gradient near 0 into a whole step."""
    one, two = (results[f"{model} {optimizer}"] for results in started.trained)
    torch.testing.assert_close(two["logits"], one["logits"], rtol=0, atol=1e-5)
    for name, weight in one["weights"].items() if optimizer == "sgd" else ():
        torch.testing.assert_close(
            two["weights"][name], weight, rtol=0, atol=1e-5, msg=lambda text, name=name: name + text
        )


def make_loaders(world: int, rows: int, batch_size: int, seed: int | None) -> list[BatchLoader]:
    """The loaders of all processes; the dataset returns row numbers."""

    class Numbers(torch.utils.data.Dataset):
        def __getitem__(self, rows: torch.Tensor) -> torch.Tensor:
            return rows

    loaders = [BatchLoader(Numbers(), EpochSampler(range(rows), seed), batch_size) for _ in range(world)]
    for rank, loader in enumerate(loaders):
        loader.rank, loader.world_size = rank, world
    return loaders


@pytest.mark.parametrize("rows", [40, 41, 43, 47])
@pytest.mark.parametrize("world", [2, 3, 4])
def test_processes_share_the_rows_of_each_batch(rows, world):
    (whole,), loaders = make_loaders(1, rows, 8, seed=3), make_loaders(world, rows, 8, seed=3)
    parts = [list(loader) for loader in loaders]
    assert {len(part) for part in parts} == {len(loader) for loader in loaders} and len(set(map(len, loaders))) == 1
    batches = list(zip(*parts, strict=True))
    assert torch.cat([torch.cat(batch) for batch in batches]).tolist() == torch.cat(list(whole)).tolist()
    for index, batch in enumerate(batches):
        shares = [loader.local_share(index) for loader in loaders]
        assert shares == [len(part) / sum(map(len, batch)) for part in batch] and min(shares) > 0


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_each_process_has_two_rows_of_each_batch_where_batches_are_large_enough(world):
    """As batch norm needs."""
    for batch_size in range(2 * world, 4 * world + 1):
        for rows in range(2 * world, 6 * world + 1):
            for loader in make_loaders(world, rows, batch_size, seed=3):
                assert min(map(len, loader)) >= 2, (batch_size, rows)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluated_rows_come_in_file_order_once_gathered(world):
    parts = [list(loader) for loader in make_loaders(world, 41, 8, seed=None)]
    assert len({len(part) for part in parts}) == 1
    assert torch.cat([torch.cat(part) for part in parts]).tolist() == list(range(41))


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the other process in /proc")
@pytest.mark.parametrize("dying", [0, 1])
def test_one_process_dies_before_they_meet(tmp_path, data, dying):
    """The other process, which would wait for it, ends in seconds, with one line, and leaves no temporary folder."""
    script, here = tmp_path / "script.py", [tmp_path / "0", tmp_path / "1"]
    script.write_text(f"""import os, pathlib, sys, time; sys.path.insert(0, {str(REPO)!r})
rank = os.environ.get("LOCAL_RANK", "0")

def wait():
    pathlib.Path({str(tmp_path)!r}, rank).touch()
    time.sleep(60 * (rank == "{dying}"))

if rank == "{dying}" == "1":
    wait()  # before the imports, which take seconds
from common.process_group import LocalDDPStrategy
from deepfm.train import train
setup = LocalDDPStrategy.setup_distributed
LocalDDPStrategy.setup_distributed = lambda self: [wait(), setup(self)]
train(hidden_units=(8,), devices=2)
""")
    first = start_process(script, folder=tmp_path, **data)
    wait_until(lambda: all(path.exists() for path in here), first)
    other = child(first.pid)
    os.kill(other if dying else first.pid, signal.SIGKILL)
    message, ends = "error: another process of this run died.\n", time.monotonic() + 40
    while not written(tmp_path, "stderr").endswith(message) or list(data["TMPDIR"].iterdir()):
        if time.monotonic() > ends:
            with suppress(ProcessLookupError):
                os.kill(first.pid if dying else other, signal.SIGKILL)
            pytest.fail(written(tmp_path, "stderr"))
        time.sleep(0.1)


def child(process: int) -> int:
    (other,) = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return int(other)


def listening(processes: set[int]) -> set[str]:
    """Addresses on which processes wait for connections (IPv4 as it is; IPv6 as the bytes of /proc)."""
    links = [link for process in processes for link in Path(f"/proc/{process}/fd").iterdir() if link.is_symlink()]
    sockets = {os.readlink(link).removeprefix("socket:[").removesuffix("]") for link in links}
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    addresses = {row[1].split(":")[0] for row in rows if row[3] == "0A" and row[9] in sockets}
    return {socket.inet_ntoa(bytes.fromhex(text)[::-1]) if len(text) == 8 else text for text in addresses}
