"""The key of a cache covers everything that decides its content; damage to an entry is detected."""

import inspect
import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import common.data.cache
import common.data.parallel
import common.data.raw_files
import common.errors
import common.files
import common.model.metrics
import common.paths
import data.history.module
import data.table.module
from bst.train import DATA as MOVIE_DATA
from common.data.cache import build_once
from common.data.data_module import RecommendationDataModule
from data.census_income import CENSUS_INCOME_KDD, MultiTaskDataModule
from data.criteo_data import ClickDataModule
from data.movie_rating_seq import HistoryDataModule
from data.samples.census import census_sample
from deepfm.train import DATA as CRITEO_DATA
from multitask.train import DATA as CENSUS_DATA
from tests.criteo_rows import make_lines, write_lines
from tests.movie_rows import make_ratings, write_1m

DEFAULTS = {ClickDataModule: CRITEO_DATA, MultiTaskDataModule: CENSUS_DATA, HistoryDataModule: MOVIE_DATA}
# other values of each setting: any two entries of a setting, and the defaults, give different arrays
CHANGES = {
    ClickDataModule: {"split": ["random"], "dense_transform": ["log", "bucket"], "min_count": [5]},
    MultiTaskDataModule: {
        "split": ["official"],
        "tasks": [("never_married", "income")],
        "min_count": [1],
        "num_bins": [4],
        "label_inputs": [True],
    },
    HistoryDataModule: {
        "split": ["time", "random"],
        "target": ["click"],
        "history_length": [3],
        "history_ratings": [False],
        "start_from_biases": [False],
    },
}
OF_LOADING = {"loading"}  # the same rows, in different batches
# of data without ratings alone: tests/test_interactions.py
OF_LOADING |= {"weighted", "negative_rate", "negatives", "negatives_power"}
UNUSED = {ClickDataModule: {"tasks", "num_bins", "label_inputs"}, MultiTaskDataModule: {"dense_transform"}}
# these functions only open and check; a change of the arrays by them is an error
HARMLESS = [common.errors, common.files, common.paths, common.data.cache, common.data.parallel, common.data.raw_files]
MODULES = dict.fromkeys((ClickDataModule, MultiTaskDataModule), data.table.module)
MODULES[HistoryDataModule] = data.history.module


def write_interactions(folder: Path, lines: list[tuple[int, ...]]) -> None:
    """Without ratings, with an attribute of items."""
    folder.mkdir()
    rows = "".join(f"{user},{item},{time}\n" for user, item, _, time in lines)
    (folder / "log.csv").write_text(f"user,item,time\n{rows}")
    items = "".join(f"{item},{item / 7}\n" for item in {line[1] for line in lines})
    (folder / "items.csv").write_text(f"item,price\n{items}")
    columns = {"user": {"role": "user"}, "item": {"role": "item"}, "time": {"role": "time", "unit": "s"}}
    attributes = {"file": "items.csv", "columns": {"item": {"role": "item"}, "price": {"role": "dense"}}}
    content = {"file": "log.csv", "columns": columns, "item_attributes": attributes}
    (folder / "columns.json").write_text(json.dumps(content))


@pytest.fixture
def root(tmp_path, rng) -> Path:
    """DATA_ROOT with a few raw rows of each kind."""
    write_lines(tmp_path / "criteo" / "train.txt", make_lines(rng, 300))
    write_1m(tmp_path / "ml-1m", make_ratings(rng, users=30))
    write_interactions(tmp_path / "mine", make_ratings(rng, users=30))
    (tmp_path / "census-income-kdd").symlink_to(census_sample(CENSUS_INCOME_KDD, 1_500, 600))
    return tmp_path


@pytest.fixture
def arrays(root, tmp_path, monkeypatch) -> Callable[..., dict[str, list[torch.Tensor]]]:
    """Open a data module with the caches of OUTPUT_ROOT/<home>; everything its loaders yield, and its state."""

    def arrays(module: type[RecommendationDataModule], home: str, **settings) -> dict[str, list[torch.Tensor]]:
        monkeypatch.setenv("OUTPUT_ROOT", str(tmp_path / home))
        opened = module(**{"seed": 0} | DEFAULTS[module] | {"data_root": str(root), "batch_size": 64} | settings)
        opened.setup()
        loaders = {"train": opened.train_dataloader, "val": opened.val_dataloader, "test": opened.test_dataloader}
        found = {name: [torch.cat(parts) for parts in zip(*loader(), strict=True)] for name, loader in loaders.items()}
        encoder = str(opened.encoder.state_dict()).encode()
        return found | {"encoder": [torch.from_numpy(np.frombuffer(encoder, np.uint8).copy())]}

    return arrays


def same(one: dict[str, list[torch.Tensor]], other: dict[str, list[torch.Tensor]]) -> bool:
    return all(len(one[name]) == len(other[name]) and all(map(torch.equal, one[name], other[name])) for name in one)


@pytest.mark.parametrize("module", CHANGES)
def test_settings_that_change_the_arrays_have_a_cache_of_their_own(arrays, module):
    """The result of a setting does not depend on which caches already exist."""
    changes = CHANGES[module]
    assert set(changes) == set(inspect.signature(module).parameters) - OF_LOADING - UNUSED.get(module, set())
    cases = [{}, *({name: value} for name, values in changes.items() for value in values)]
    alone = [arrays(module, f"alone_{i}", **case) for i, case in enumerate(cases)]
    for i, case in enumerate(cases):
        assert same(arrays(module, "shared", **case), alone[i]), f"{case} after {cases[:i]}"
        assert not any(same(alone[i], other) for other in alone[:i]), f"{case} changes nothing"


@pytest.mark.parametrize(
    ("module", "changed"), [*((module, {}) for module in MODULES), (HistoryDataModule, {"dataset": "mine"})]
)
def test_the_code_that_computes_is_part_of_the_key(root, tmp_path, monkeypatch, module, changed):
    """All functions of the repo that a build calls are in modules whose text is in the key."""
    calls = []

    def traced(name, sources, settings, build, *, code, **keywords) -> Path:
        files = set()

        def profile(frame, event, _) -> None:
            files.add(frame.f_code.co_filename)

        def profiled(folder: Path) -> None:
            outer = sys.getprofile()  # a build may need another
            threading.setprofile(profile)
            sys.setprofile(profile)
            try:
                build(folder)
            finally:
                sys.setprofile(outer)
                threading.setprofile(outer)

        entry = build_once(name, sources, settings, profiled, code=code, **keywords)
        repo = Path(common.errors.__file__).parents[1]
        used = {path for path in files if Path(path).is_relative_to(repo) and ".venv" not in path and path != __file__}
        modules = [sys.modules[part] if isinstance(part, str) else part for part in code]
        assert used, "was not built"
        assert not used - {part.__file__ for part in [*modules, *HARMLESS, MODULES[module]]}, name
        calls.append(name)
        return entry

    monkeypatch.setenv("OUTPUT_ROOT", str(tmp_path / "output"))
    monkeypatch.setattr(MODULES[module], "build_once", traced)
    module(**DEFAULTS[module] | {"data_root": str(root), "batch_size": 64} | changed, seed=0).setup()
    assert calls


def test_settings_and_code_are_part_of_the_key(tmp_path, monkeypatch, capsys):
    source = tmp_path / "raw.txt"
    source.touch()
    name, text, build = "common.data.parallel", inspect.getsource, lambda folder: (folder / "a.npy").touch()

    def entry(split: str) -> Path:
        return build_once("code", [source], {"split": split}, build, code=[name])

    one, other = entry("time"), entry("random")
    assert one != other and one.exists() and other.exists()
    for added, is_other in (("", False), ("# a comment\n", False), ("THREADS = 3\n", True)):
        monkeypatch.setattr(inspect, "getsource", lambda module, added=added: f"{text(module)}\n{added}")
        capsys.readouterr()
        assert (entry("time") != one) == is_other and one.exists() != is_other
        assert ("or the code that reads them, have changed" in capsys.readouterr().out) == is_other


@pytest.mark.parametrize("module", [ClickDataModule, HistoryDataModule])
def test_a_flipped_bit_is_noticed(root, tmp_path, monkeypatch, capsys, module):
    """In any file of an entry that is read, without a change of its size and time."""
    monkeypatch.setenv("OUTPUT_ROOT", str(tmp_path / "output"))

    def state(**changes) -> list[torch.Tensor]:
        opened = module(**DEFAULTS[module] | {"data_root": str(root), "batch_size": 64} | changes, seed=0)
        opened.setup()
        return [torch.cat(parts) for parts in zip(*opened.train_dataloader(), strict=True)]

    whole = state()
    files = [path for path in common.data.cache.cache_root().rglob("*") if path.is_file() and path.stat().st_size]
    generator = np.random.default_rng(0)
    for i, path in enumerate(generator.permutation(files)[:4]):
        stat, content = path.stat(), bytearray(path.read_bytes())
        content[generator.integers(len(content))] ^= 1 << int(generator.integers(8))
        path.write_bytes(content)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        capsys.readouterr()
        if "-rows-" in str(path):  # these are read only when other entries are made from them
            assert all(map(torch.equal, whole, state())) and "damaged" not in capsys.readouterr().out
            state(min_count=100 + i)
        again = state()
        assert "is damaged; rebuilding it" in capsys.readouterr().out, path
        assert all(map(torch.equal, whole, again)), path
