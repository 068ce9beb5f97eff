"""The benchmarks in tiny sizes; the packages that they compare with are not installed here."""

import os
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from torch.testing import assert_close

import multitask.train
from benchmarks import bst_plain, criteo_shaped, mmoe_rechub, ours, preparation, sasrec
from benchmarks.dlrm_reference import ReferenceDLRM, reference
from benchmarks.studies import boosted_trees
from benchmarks.studies.step_profile import kind
from benchmarks.turns import Comparison, Contender, summarise
from common.data.raw_files import Published
from data.census_income import CENSUS_INCOME_KDD, MultiTaskDataModule
from data.samples.census import census_sample
from tests.movie_rows import make_ratings, write_1m


@pytest.fixture
def data(monkeypatch, tmp_path) -> criteo_shaped.RawRows:
    monkeypatch.setattr(criteo_shaped, "OUTPUT", tmp_path)
    monkeypatch.setattr(criteo_shaped, "ROWS", 2000)
    return criteo_shaped.RawRows(64, train_rows=256)


def test_ratios_are_medians_within_a_turn():
    speeds = {"ours": [10.0, 40.0, 30.0], "peer": [5.0, 10.0, 20.0]}  # ratios 2, 4, 1.5
    turns = pd.DataFrame(
        {"turn": turn, "contender": name, "per_second": speed, "peak_anonymous_gib": 1.0, "peak_rss_gib": turn + 1.0}
        for name, values in speeds.items()
        for turn, speed in enumerate(values)
    )
    contenders = {"ours": Contender(lambda: 0.0), "peer": Contender(lambda: 0.0, 1.8)}
    table = summarise(turns, Comparison("", 3, contenders))
    assert list(table.index) == ["ours", "peer"]
    ratio = ["our speed ÷ theirs", "ratio, least", "ratio, most", "goal"]
    assert table.loc["peer", ratio].tolist() == [2.0, 1.5, 4.0, 1.8]
    assert table.loc["peer", ["median per second", "least", "most", "peak RSS GiB"]].tolist() == [10.0, 5.0, 20.0, 3.0]
    assert table.loc["ours", ratio[:3]].tolist() == [1.0, 1.0, 1.0]


def test_the_papers_step_is_the_same_model(data):
    model, peer = ours.dlrm(data), ReferenceDLRM(data.num_dense, data.cardinalities)
    for table, rows in zip(peer.tables, model.embedding.weight.split(data.cardinalities), strict=True):
        table.weight.data = rows.detach()
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("embedding")}
    peer.load_state_dict(weights, strict=False)
    dense, ids, _ = data.batches()[0]
    assert_close(peer(dense, [*ids.T.long()]), model(dense, ids))
    assert reference(data) > 0


def test_a_table_of_ones_own_is_prepared_without_the_other_comparison(tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "OUTPUT", tmp_path)
    monkeypatch.setattr(preparation, "ROWS", 2_000)
    monkeypatch.setattr(preparation.os, "environ", os.environ.copy())
    assert preparation.own_table("csv") > 0


def test_contenders_get_the_same_rows(data):
    columns, label = data.columns()
    dense, ids, labels = (torch.cat(parts) for parts in zip(*data.batches(), strict=True))
    assert len(label) == 256 and np.array_equal(label, labels)
    assert all(np.array_equal(columns[f"C{i}"], ids[:, i]) for i in range(26))
    assert all(np.array_equal(columns[f"I{i}"], dense[:, i]) for i in range(13))
    assert ours.speed(ours.deepfm(data), data, "32-true") > 0


def test_the_plain_port_gets_the_same_inputs(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    write_1m(tmp_path / "ml-1m", make_ratings(np.random.default_rng(0)))
    data = bst_plain.rows(50)
    assert len(data.rows["train"]) == 50
    plain_rows = zip(*map(bst_plain.PlainRows(data).__getitem__, data.rows["train"]), strict=True)
    for column, expected in zip(plain_rows, data.read(data.rows["train"]), strict=True):
        found = np.stack(column)
        np.testing.assert_allclose(found, expected.reshape(found.shape), rtol=1e-5, atol=1e-6)
    assert bst_plain.plain(data) > 0 and bst_plain.ours(data, "32-true") > 0


def test_sasrec_sees_no_later_item():
    item, start = np.arange(2, 22), np.array([0] * 12 + [12] * 8)
    sequence, lengths = sasrec.sequences(item, start, np.array([12, 5, 14]))
    assert [row[:length].tolist() for row, length in zip(sequence, lengths, strict=True)] == [
        list(range(2, 14)), list(range(2, 7)), [14, 15],
    ]  # fmt: skip
    model = sasrec.SASRec(30).eval()
    before, changed = model(sequence), sequence.clone()
    changed[:, 2:] = changed[:, 2:].flip(1)
    torch.testing.assert_close(model(changed)[:, :2], before[:, :2], rtol=0, atol=1e-6)
    assert not torch.allclose(model(changed)[0, 2:], before[0, 2:])


def test_mmoe_has_the_sizes_of_the_comparison(monkeypatch):
    sample = Published("", partial(census_sample, CENSUS_INCOME_KDD, 1500, 600))
    monkeypatch.setitem(MultiTaskDataModule.published, "census-income-kdd", sample)
    data = mmoe_rechub.sample()
    model = mmoe_rechub.model(data)
    dense, ids, label = map(torch.from_numpy, data.read(data.rows["train"][:8]))
    assert data.is_sample and model(dense, ids).shape == label.shape == (8, 2)
    assert ours.speed(model, data, "32-true", "val_auc_mean") > 0


def test_boosted_trees_are_compared_on_the_test_rows_of_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(boosted_trees, "TREES", 50)
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    sample = census_sample(CENSUS_INCOME_KDD, 1500, 600)
    (tmp_path / "census-income-kdd").mkdir()
    for name in ("census-income.data", "census-income.test"):
        rows = [line.split(", ") for line in (sample / name).read_text().splitlines()]
        lines = [", ".join([*row[:-1], "50000+." if int(row[0]) > 40 else "- 50000."]) for row in rows]
        (tmp_path / "census-income-kdd" / name).write_text("\n".join(lines) + "\n")
    results = multitask.train.train(tasks=("never_married", "income"), max_epochs=1, num_experts=2)
    capsys.readouterr()
    boosted_trees.main(results["run_folder"])
    printed = capsys.readouterr().out
    assert f"50 trees: test AUC 1.0000; the run's is {results['test']['auc_income']:.4f} (" in printed


def test_full_vocabulary(monkeypatch, tmp_path):
    sizes = [3, 50, 1000]
    monkeypatch.setattr(criteo_shaped, "OUTPUT", tmp_path)
    monkeypatch.setattr(criteo_shaped, "CARDINALITIES", sizes)
    monkeypatch.setattr(criteo_shaped.FullVocabulary, "rows_written", 5000)
    data = criteo_shaped.FullVocabulary(64, train_rows=128)
    dense, ids, label = data.read(np.arange(5000))
    assert data.cardinalities == [5, 52, 1002] and len(data.rows["train"]) == 128
    assert dense.shape == (5000, 13) and set(label) == {0, 1}
    assert ids.min() == 2 and (ids.max(0) < data.cardinalities).all()
    assert len(np.unique(ids[:, 1])) > 40  # few values are frequent, but most occur


def test_a_profile_finds_the_embedding(data):
    model = ours.deepfm(data)
    dense, ids, label = data.batches()[0]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        model.loss(model(dense, ids), label).backward()
    assert {"embedding, lookup", "embedding, backward (sort and sum)"} < {kind(event) for event in profiler.events()}
