"""From raw file to batches: what is fitted on which rows, splits, kills, and order and resumption of the loaders."""

import multiprocessing
import os
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from common.data.loader import BatchLoader, EpochSampler, MemmapDataset
from common.data.raw_files import Published
from common.errors import UserError
from common.model.metrics import auc
from data.criteo_data import CRITEO, ClickDataModule
from data.reader import Reader, source_of
from data.samples.criteo import criteo_sample
from data.table import module
from data.table.encoder import MISSING
from data.table.scoring import TableScorer
from deepfm.train import DATA
from tests.criteo_rows import MISSING_DENSE, make_lines, parse_plainly, write_lines
from tests.test_table_splits import published_folds

ROWS = 700


@pytest.fixture
def lines(rng) -> list[str]:
    return make_lines(rng, ROWS)


def open_data(root: Path, lines: list[str] | None = None, **settings) -> ClickDataModule:
    if lines is not None:
        write_lines(root / "criteo" / "train.txt", lines)
    data = ClickDataModule(**{"seed": 0} | DATA | {"data_root": str(root), "batch_size": 64} | settings)
    data.setup()
    return data


def everything(data: ClickDataModule) -> list[np.ndarray]:
    return data.read(np.arange(sum(len(rows) for rows in data.rows.values())))


def test_categories_are_fitted_on_training_rows_only(tmp_path, lines):
    data = open_data(tmp_path, lines, min_count=3, dense_transform="log")
    _, ids, label = everything(data)
    raw = parse_plainly(lines)
    assert label.tolist() == raw["label"]
    for field, values in enumerate(zip(*raw["categorical"], strict=True)):
        counts = Counter(values[: ROWS * 6 // 7])
        known = sorted(text for text, count in counts.items() if count >= 3 and text)
        assert ids[:, field].tolist() == [known.index(v) + 2 if v in known else int(v == "") for v in values]
        assert data.cardinalities[field] == len(known) + 2


def test_log_numbers_are_centred_and_scaled_by_the_training_rows(tmp_path, lines):
    data = open_data(tmp_path, lines, dense_transform="log")
    raw = np.array(parse_plainly(lines)["dense"], float)
    missing = raw == MISSING_DENSE
    logs = np.where(missing, np.nan, np.copysign(np.log1p(np.abs(raw)), raw))
    train = logs[: ROWS * 6 // 7]
    assert (raw[~missing] < 0).any()  # which are not cut
    expected = np.where(missing, 0, (logs - np.nanmean(train, 0)) / np.nanstd(train, 0))
    dense, ids, _ = everything(data)
    np.testing.assert_allclose(dense, expected, rtol=1e-5, atol=1e-6)
    with_missing = open_data(tmp_path, dense_transform="log+missing")
    np.testing.assert_array_equal(everything(with_missing)[0], np.hstack([dense, missing]))
    assert (data.num_dense, with_missing.num_dense) == (13, 26)

    both, both_ids, _ = everything(open_data(tmp_path, dense_transform="log+quantile"))
    quantiles = everything(open_data(tmp_path, dense_transform="quantile"))[1]
    np.testing.assert_array_equal(both, dense)
    np.testing.assert_array_equal(both_ids, quantiles)
    assert (both_ids[:, :13] == 1).tolist() == missing.tolist() and ids.shape == (ROWS, 26)


def test_splits_by_time_and_at_random(tmp_path, lines):
    rows = [open_data(tmp_path, lines).rows[name] for name in ("train", "val", "test")]
    assert [len(part) for part in rows] == [600, 50, 50]
    assert np.concatenate(rows).tolist() == list(range(ROWS))
    data = open_data(tmp_path, split="random")
    label = parse_plainly(lines)["label"]
    folds = published_folds(label)
    for part, expected in (("test", folds == 0), ("val", folds == 1), ("train", folds > 1)):
        assert data.rows[part].tolist() == np.flatnonzero(expected).tolist()


def scored(root: Path, data: ClickDataModule) -> list[np.ndarray]:
    """Inputs of the rows of train.txt, encoded with just a checkpoint."""
    torch.save(data.state_dict(), root / "state.pt")
    scorer = TableScorer(torch.load(root / "state.pt", weights_only=True))
    batches = scorer.batches(source_of(root / "criteo" / "train.txt"))
    return [torch.cat(parts).numpy() for parts in zip(*(inputs for inputs, *_ in batches), strict=True)]


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("block", [400, 8 << 20])
def test_rows_equal_those_of_a_plain_parser(tmp_path, rng, monkeypatch, labelled, block):
    monkeypatch.setattr("data.text.BLOCK_BYTES", block)
    lines = make_lines(rng, 300, labelled)
    batches = list(Reader(CRITEO, scoring=not labelled).batches(source_of(write_lines(tmp_path / "rows", lines))))
    expected = parse_plainly(lines, labelled)

    def rows(names: list[str]) -> list[list]:
        columns = ([value for batch in batches for value in batch.column(name).to_pylist()] for name in names)
        return [list(row) for row in zip(*columns, strict=True)]

    assert rows(CRITEO.of_role("categorical")) == expected["categorical"]
    dense = [[MISSING_DENSE if x is None else x for x in row] for row in rows(CRITEO.of_role("dense"))]
    assert dense == expected["dense"]
    if labelled:
        assert [int(text) for (text,) in rows(["label"])] == expected["label"]


@pytest.mark.parametrize(("column", "text", "message"), [
    (0, "2", "line 7, column label: found '2', expected '0' or '1'"), (1, "1.5", "line 7, column I1: found '1.5'"),
    (0, "label", r"column label: found 'label', expected '0' or '1', .* \(the file must have no header line\)"),
    (6, "2147483648", "column I6: found '2147483648', expected a 32-bit integer, or nothing"),
    (9, "x" * 60, "column I9: found 'x{60}', expected"),
    (39, "68fd1e64\tx", "line 7: found 41 fields separated by '\\\\t', exp"), (20, "\0", "line 7: found a NUL byte"),
])  # fmt: skip
def test_a_wrong_line_is_named(tmp_path, lines, column, text, message):
    fields = lines[6].split("\t")
    lines[6] = "\t".join([*fields[:column], text, *fields[column + 1 :]])
    with pytest.raises(UserError, match=f"train.txt, .*{message}"):
        open_data(tmp_path, lines)


def test_a_file_without_labels_cannot_be_trained_on(tmp_path, rng):
    with pytest.raises(UserError, match=r"train.txt, line 1: found 39 fields .*, expected 40"):
        open_data(tmp_path, make_lines(rng, 20, labelled=False))


def test_a_changed_file_is_read_again(tmp_path, lines, capsys):
    first = open_data(tmp_path, lines)
    other = open_data(tmp_path, min_count=5)
    assert first.folder.exists() and other.folder.exists()  # entries of other settings stay
    again = open_data(tmp_path, lines[:-70])
    assert "have changed" in capsys.readouterr().out
    assert sum(len(rows) for rows in again.rows.values()) == ROWS - 70
    assert not first.folder.exists() and not other.folder.exists()


def test_a_failed_build_leaves_nothing(tmp_path, lines, outputs):
    with pytest.raises(UserError, match=r"train.txt, line 701: found 1 fields"):
        open_data(tmp_path, [*lines, "broken"])
    name = next((outputs / "data" / "cache").glob("criteo-rows-*"))
    assert not [path for home in name.parent.glob("criteo-*") for path in home.glob("*.partial")]
    assert name.exists()
    assert sum(len(rows) for rows in open_data(tmp_path, lines).rows.values()) == ROWS


@pytest.mark.parametrize("step", ["write_rows", "write_encoded"])
def test_a_file_that_changes_while_it_is_prepared(tmp_path, lines, monkeypatch, step):
    write, raw = getattr(module, step), tmp_path / "criteo" / "train.txt"

    def replaced_meanwhile(*arguments) -> None:
        write_lines(raw, [*lines, *lines])
        write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, step, replaced_meanwhile)
        with pytest.raises(UserError, match=r"train.txt changed while being read; start again"):
            open_data(tmp_path, lines)
    assert sum(len(rows) for rows in open_data(tmp_path).rows.values()) == 2 * ROWS


@pytest.mark.skipif(not hasattr(os, "fork"), reason="starts processes by fork, for speed")
def test_killed_while_building_and_started_again(tmp_path, rng):
    """After SIGKILL at ten moments of the preparation, the next start reads nothing half-written."""
    write_lines(tmp_path / "criteo" / "train.txt", make_lines(rng, 500) * 60)
    exit_codes = []
    for i in range(10):
        process = multiprocessing.get_context("fork").Process(target=open_data, args=(tmp_path,))
        process.start()
        time.sleep(0.04 * i)
        process.kill()
        process.join()
        exit_codes.append(process.exitcode)
    assert -signal.SIGKILL in exit_codes
    data = open_data(tmp_path)
    for a, b in zip(scored(tmp_path, data), everything(data)[:2], strict=True):
        np.testing.assert_array_equal(a, b)


def test_missing_files_and_settings_out_of_range(tmp_path):
    (tmp_path / "criteo").mkdir()
    with pytest.raises(UserError, match=r"has no train.txt.*python data/criteo_data.py"):
        open_data(tmp_path)
    for settings, message in (
        ({"split": "hash"}, "split is"),
        ({"dense_transform": "raw"}, "dense_transform is"),
        ({"min_count": 0}, "min_count is"),
        ({"batch_size": 0}, "batch_size is"),
    ):
        with pytest.raises(UserError, match=message):
            ClickDataModule(**{"seed": 0} | DATA | settings)
    line = make_lines(np.random.default_rng(0), 1)[0][1:]
    with pytest.raises(UserError, match=r"train.txt: found 9 rows with a label; a split needs at least 10"):
        open_data(tmp_path, ["1" + line] * 9)
    with pytest.raises(UserError, match=r"train.txt: found at most 9 rows of one class"):
        open_data(tmp_path, ["0" + line, "1" + line] * 9, split="random")


@pytest.mark.parametrize(("rows", "batch_size", "expected"), [
    (7, 3, [3, 4]), (8, 3, [3, 3, 2]), (1, 3, [1]), (2, 1, [1, 1]), (6, 3, [3, 3]),
])  # fmt: skip
def test_no_batch_of_one_row_is_left_over(tmp_path, rows, batch_size, expected):
    np.save(tmp_path / "x.npy", np.arange(9))
    for seed in (None, 1):
        loader = BatchLoader(MemmapDataset(tmp_path, ["x"]), EpochSampler(range(rows), seed), batch_size)
        sizes = [len(x) for (x,) in loader]
        assert len(sizes) == len(loader) == len(expected) and sum(sizes) == rows
        assert seed is None or sizes == expected


def test_loader_gives_each_row_once_in_an_order_of_seed_and_epoch(tmp_path, lines):
    data = open_data(tmp_path, lines, batch_size=64, seed=3)

    def labels_and_order(epoch: int, loader: BatchLoader) -> tuple[list, torch.Tensor]:
        loader.sampler.set_epoch(epoch)
        return torch.cat([ids for _, ids, _ in loader]).tolist(), loader.sampler.indices()

    loader = data.train_dataloader()
    first, order = labels_and_order(0, loader)
    second, _ = labels_and_order(1, loader)
    again, _ = labels_and_order(0, data.train_dataloader())
    assert first == again != second
    assert sorted(order.tolist()) == list(range(600)) and len(loader) == 10
    assert first == everything(data)[1][order.numpy()].tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_restored_in_mid_epoch_goes_on_with_the_rows_that_are_left(tmp_path, lines, workers):
    data = open_data(tmp_path, lines)

    def make_loader() -> BatchLoader:
        loader = BatchLoader(MemmapDataset(data.folder, ["ids"]), EpochSampler(data.rows["train"], 1), 64, workers)
        loader.sampler.set_epoch(5)
        return loader

    whole = [batch[0] for batch in make_loader()]
    interrupted = make_loader()
    iterator = iter(interrupted)
    for _ in range(4):
        next(iterator)
    restored = make_loader()
    restored.load_state_dict(interrupted.state_dict())
    for rows, expected in zip(restored, whole[4:], strict=True):
        assert torch.equal(rows[0], expected)
    assert all(torch.equal(a[0], b) for a, b in zip(restored, whole, strict=True))  # and then another whole epoch


def test_sample_is_as_it_should_be(tmp_path, monkeypatch):
    """A quarter of its rows, with fewer distinct values."""
    sample = Published("", lambda: criteo_sample(CRITEO, 55_000))
    monkeypatch.setitem(ClickDataModule.published, "criteo", sample)
    data = open_data(tmp_path / "nothing here", min_count=1)
    assert data.is_sample
    assert sum(size > 5_000 for size in data.cardinalities) >= 3
    assert 0.22 < data.summary["positive"]["click"] < 0.28
    assert 0.78 <= auc(data.best_prediction(), data.targets("test")) <= 0.82
    assert ((data.read(data.rows["test"])[1] == MISSING).mean(0) > 0.4).any()


@pytest.mark.real_data("criteo")
def test_real_rows():
    data = ClickDataModule(**DATA, seed=0)
    data.setup()
    assert {name: len(rows) for name, rows in data.rows.items()} == {"train": 117547, "val": 9796, "test": 9796}
    assert np.mean(everything(data)[2]) == pytest.approx(0.2568, abs=5e-5)
