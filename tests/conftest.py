"""Every test writes to a temporary folder; tests marked real_data need the real datasets."""

import gc
import os
from functools import cache
from pathlib import Path
from threading import RLock

# models are small here, and on a busy machine threads spend more time waiting for each other than working
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_worker_niceness", "0")  # its workers would hardly run beside other tests
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a process that imports Ray at each start

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imsave
from tqdm import tqdm

from common.paths import data_root
from tests.criteo_rows import make_lines, write_lines

# the longest files, so that no process has one left when the others are done; those of Ray wait for other processes
FIRST = [
    f"test_{name}.py" for name in ("cluster", "tune", "gate", "processes", "scripts", "export", "bst_train", "resume")
]

tqdm.set_lock(RLock())  # its own is shared with forked processes, which tests kill: one that held it would stop all


@pytest.fixture(autouse=True)
def outputs(tmp_path_factory, monkeypatch) -> Path:
    """OUTPUT_ROOT of the test; caches are shared by the tests of a session, runs are not."""
    root = tmp_path_factory.mktemp("output")
    shared = tmp_path_factory.getbasetemp() / "cache"
    shared.mkdir(exist_ok=True)
    (root / "data").mkdir()
    (root / "data" / "cache").symlink_to(shared)
    monkeypatch.setenv("OUTPUT_ROOT", str(root))
    return root


@cache
def criteo_lines() -> list[str]:
    return make_lines(np.random.default_rng(0), 700)


@pytest.fixture
def criteo(tmp_path, monkeypatch) -> Path:
    """A file of 700 rows in DATA_ROOT/criteo."""
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    return write_lines(tmp_path / "criteo" / "train.txt", criteo_lines())


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """Figures are composed but not drawn, which would take most of the time of such small runs: each is one pixel."""
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: imsave(path, np.zeros((1, 1))))


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def pytest_collection_finish() -> None:
    """Each training run begins with a garbage collection: leave the modules and collected tests out of it."""
    gc.freeze()


def pytest_collection_modifyitems(items) -> None:
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))
    for item in items:
        if (marker := item.get_closest_marker("real_data")) and not (data_root() / marker.args[0]).exists():
            where = os.environ.get("DATA_ROOT", "DATA_ROOT (not set)")
            item.add_marker(pytest.mark.skip(reason=f"no real {marker.args[0]} below {where}"))
