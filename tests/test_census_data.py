"""From raw file to batches: what is fitted on which rows, splits, the sample and the real files."""

import csv
import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from common.data.raw_files import Published
from common.errors import UserError
from common.model.metrics import TaskMetrics
from data.census_income import ADULT, CENSUS_INCOME_KDD, MultiTaskDataModule
from data.criteo_data import ClickDataModule
from data.reader import source_of
from data.samples.census import census_sample
from data.table.rows import TableReader, inputs_of, label_name
from data.table.scoring import TableScorer
from deepfm.train import DATA as CLICK_DATA
from multitask.train import DATA

COLUMNS = list(CENSUS_INCOME_KDD.columns)
INPUTS, DENSE = list(inputs_of(CENSUS_INCOME_KDD)), CENSUS_INCOME_KDD.of_role("dense")
TRAIN_FILE, TEST_FILE = "census-income.data", "census-income.test"
TRAIN, TEST = 1_500, 600
ADULT_LINE = "39, Private, 77516, Bachelors, 13, Never-married, Sales, Husband, White, Male, 2174, 0, 40, ?, <=50K"


@pytest.fixture
def raw() -> list[list[list[str]]]:
    """Rows of fields of both files."""
    folder = census_sample(CENSUS_INCOME_KDD, TRAIN, TEST)
    return [[line.split(", ") for line in (folder / name).read_text().splitlines()] for name in (TRAIN_FILE, TEST_FILE)]


def open_data(root: Path, raw: list[list[list[str]]] | None = None, **settings) -> MultiTaskDataModule:
    if raw is not None:
        (root / "census-income-kdd").mkdir(parents=True)
        for name, rows in zip((TRAIN_FILE, TEST_FILE), raw, strict=True):
            text = "".join(", ".join(row) + "\n" for row in rows)
            (root / "census-income-kdd" / name).write_text(text)
    data = MultiTaskDataModule(**{"seed": 0} | DATA | {"data_root": str(root), "batch_size": 64} | settings)
    data.setup()
    return data


def in_file_order(data: MultiTaskDataModule) -> list[np.ndarray]:
    return [np.load(data.folder / f"{name}.npy") for name in ("dense", "ids", "label")]


def test_what_is_fitted_comes_from_training_rows_only(tmp_path, raw, capsys):
    bins = open_data(tmp_path / "one", raw).bin_edges
    assert "unseen" not in capsys.readouterr().out
    for row in raw[1]:
        row[0], row[9] = "1000", "Astronaut"
    data = open_data(tmp_path / "two", raw)
    assert "more than nine in ten validation and test values of 'occupation' are unseen" in capsys.readouterr().out
    assert data.summary["held_out"]["occupation"][0] == TEST and data.bin_edges == bins
    _, ids, _ = in_file_order(data)
    for i, name in enumerate(INPUTS):
        values = [row[COLUMNS.index(name)] for rows in raw for row in rows]
        counts = Counter(values[:TRAIN])
        known = sorted(text for text, count in counts.items() if count >= DATA["min_count"] and text != "?")
        assert ids[:, i].tolist() == [1 if v == "?" else known.index(v) + 2 if v in known else 0 for v in values], name
        assert data.cardinalities[i] == len(known) + 2


def test_instance_weight_and_task_columns_have_no_influence_on_the_inputs(tmp_path, raw):
    numbers, ids, label = in_file_order(open_data(tmp_path / "one", raw))
    columns = [COLUMNS.index(name) for name in DENSE]
    assert numbers.tolist() == [[float(row[i]) for i in columns] for rows in raw for row in rows]  # as in the file
    for rows in raw:
        for row in rows:
            row[24], row[4], row[7], row[41] = "1", "Children", "Divorced", "- 50000."
    other_numbers, other_ids, other_label = in_file_order(open_data(tmp_path / "two", raw))
    assert (numbers == other_numbers).all() and (ids == other_ids).all()
    assert label.any() and not other_label.any()


def test_splits(tmp_path, raw):
    data = open_data(tmp_path, raw)
    assert list(data.rows["train"]) == list(range(TRAIN))
    halves = [set(data.rows[name].tolist()) for name in ("val", "test")]
    assert not halves[0] & halves[1]
    assert halves[0] | halves[1] == set(range(TRAIN, TRAIN + TEST))
    assert {len(half) for half in halves} == {TEST // 2}
    other = open_data(tmp_path, seed=77)
    assert (other.rows["test"] == data.rows["test"]).all()  # the split has its own seed


def test_batches_hold_the_labels_of_the_tasks_in_their_order(tmp_path, raw):
    data = open_data(tmp_path, raw, tasks=("education", "income"), batch_size=100)
    numbers, ids, label = next(iter(data.test_dataloader()))
    rows = data.rows["test"][: len(label)]
    expected = in_file_order(data)
    assert (numbers.numpy() == expected[0][rows]).all() and (ids.numpy() == expected[1][rows]).all()
    order = [list(CENSUS_INCOME_KDD.tasks).index(task) for task in ("education", "income")]
    assert (label.numpy() == expected[2][rows][:, order]).all()
    assert ids.dtype == torch.int32 and label.dtype == torch.float32


def test_labels_of_other_tasks_can_be_inputs(tmp_path, raw):
    tasks, name = ("education", "income"), "marital status"
    data = open_data(tmp_path, raw, tasks=tasks, label_inputs=True, min_count=1)
    inputs = [column for column in COLUMNS if column in (*INPUTS, name)]
    assert [field.name for field in data.encoder.fields] == inputs
    _, ids, label = data.read(data.rows["val"])
    assert (label == open_data(tmp_path, tasks=tasks).read(data.rows["val"])[-1]).all()
    values = [[row[COLUMNS.index(name)] for row in rows] for rows in raw]
    known = ["unseen", "missing", *sorted(set(values[0]))]
    found = [known[i] for i in ids[:, inputs.index(name)]]
    assert found == [values[1][row - TRAIN] for row in data.rows["val"]]


def test_models_of_one_label_learn_the_income_from_all_other_columns(tmp_path, raw):
    data = ClickDataModule(**CLICK_DATA | {"dataset": "census-income-kdd", "data_root": str(tmp_path)}, seed=0)
    expected = open_data(tmp_path, raw, tasks=("income",), label_inputs=True, min_count=data.settings["min_count"])
    data.setup()
    assert data.protocol == expected.protocol and data.description.columns == expected.description.columns
    of_texts = [[field.name for field in m.encoder.fields if field.kind == "text"] for m in (data, expected)]
    assert of_texts[0] == of_texts[1] == [name for name in COLUMNS if name not in {*DENSE, "income", "instance weight"}]
    chosen = [[field.kind == "text" for field in m.encoder.fields] for m in (data, expected)]
    for name, rows in data.rows.items():
        (_, ids, label), (_, expected_ids, expected_label) = data.read(rows), expected.read(expected.rows[name])
        assert (label == expected_label[:, 0]).all() and (ids[:, chosen[0]] == expected_ids[:, chosen[1]]).all()


def test_numbers_written_another_way_are_the_same(tmp_path, raw):
    """In training and in scoring, as dense values and as categories."""
    one = in_file_order(open_data(tmp_path / "one", raw))
    for rows in raw:
        for i, row in enumerate(rows):
            row[0] = [f"{row[0]}.0", f"0{row[0]}", f"{row[0]}e0", row[0]][i % 4]
    data = open_data(tmp_path / "two", raw)
    for a, b in zip(one, in_file_order(data), strict=True):
        np.testing.assert_array_equal(a, b)
    torch.save(data.state_dict(), tmp_path / "state.pt")
    scorer = TableScorer(torch.load(tmp_path / "state.pt", weights_only=True))
    ((inputs, labels, _),) = scorer.batches(source_of(tmp_path / "one" / "census-income-kdd" / TEST_FILE))
    order = [list(CENSUS_INCOME_KDD.tasks).index(task) for task in data.tasks]
    for found, expected in zip((*inputs, labels), (*one[:2], one[2][:, order]), strict=True):
        np.testing.assert_array_equal(found.numpy(), expected[TRAIN:])


def test_adult_is_recognised_by_its_files(tmp_path):
    """Its test file has a comment and a blank last line, and a dot behind each label."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "adult.data").write_text(f"{ADULT_LINE}\n" * 7 + ADULT_LINE.replace("<=50K", ">50K") + "\n\n")
    (folder / "adult.test").write_text("|1x3 Cross validator\n" + f"{ADULT_LINE}.\n" * 4 + "\n")
    data = open_data(tmp_path, dataset="mine", tasks=("income", "education"))
    assert [len(rows) for rows in data.rows.values()] == [8, 2, 2]
    assert len(data.cardinalities) == 10
    labels = in_file_order(data)[2][:, [list(ADULT.tasks).index(task) for task in data.tasks]]
    assert labels.tolist() == [*[[0, 1]] * 7, [1, 1], *[[0, 1]] * 4]
    (folder / "adult.test").write_text("|1x3 Cross validator\n" + ADULT_LINE.replace("<=50K", "50K"))
    with pytest.raises(UserError, match=r"adult.test, line 2, column income: found '50K', expected '<=50K' or"):
        open_data(tmp_path, dataset="mine")


def test_rows_equal_those_of_the_csv_module(tmp_path, raw, monkeypatch):
    """Whatever the line ends, in small blocks; the labels by their texts."""
    lines = [", ".join(row) for row in raw[0][:60]]
    rows = [[text.strip() for text in row] for row in csv.reader(lines, skipinitialspace=True)]
    monkeypatch.setattr("data.text.BLOCK_BYTES", 2_000)
    for end in ("\n", "\r\n", "\n\n", " \n", "\n \n"):
        (tmp_path / "rows").write_bytes("".join(line + end for line in lines).encode())
        batches = TableReader(CENSUS_INCOME_KDD, {}, ["income"]).batches(source_of(tmp_path / "rows"))
        found = pa.Table.from_batches(batches).to_pydict()
        for name, expected in zip(COLUMNS, zip(*rows, strict=True), strict=True):
            if name in INPUTS:
                assert found[name] == [float(x) if name in DENSE else x for x in expected], (name, end)
        assert found[label_name("income")] == [float(row[-1] == "50000+.") for row in rows]


def test_every_text_of_a_task_is_on_one_side():
    for description, education, adults in ((CENSUS_INCOME_KDD, 17, 0), (ADULT, 16, 2)):
        for task, size in (("income", 2 + adults), ("never_married", 7), ("education", education)):
            label = description.columns[description.tasks[task]]
            assert not set(label.positive) & set(label.negative) and len(label.positive + label.negative) == size
        others = description.columns.keys() - inputs_of(description).keys()
        assert {"instance weight", *description.tasks.values()} <= others
    assert len(COLUMNS) == 42 and len(INPUTS) == 38 and "years of education" not in inputs_of(ADULT)


@pytest.mark.parametrize(("column", "text", "message"), [
    (41, None, "line 7: found 41 fields separated by .*, expected 42"), (41, "- 50000., x", "line 7: found 43 fields"),
    (41, "- 5000", "line 7, column income: found '- 5000', expected '- 50000.' or '50000"),
    (41, "?", None), (0, "?", None), (0, "|39", "line 7, column age: found '|39"),
    (7, "Nevermarried", "line 7, column marital status: found 'Never"),
    (0, "old", "line 7, column age: found 'old', expected a number"), (0, "nan", "column age: found 'nan'"),
    (20, "caf\xe9", "line 7: found bytes that are not UTF-8"),
])  # fmt: skip
def test_damaged_lines_are_named(tmp_path, raw, column, text, message):
    fields = [", ".join(row) for row in raw[0][:20]]
    row = raw[0][6]
    fields[6] = ", ".join([*row[:column], *([] if text is None else [text]), *row[column + 1 :]])
    (tmp_path / "rows").write_bytes("".join(f"{line}\n" for line in fields).encode("latin-1"))
    batches = TableReader(CENSUS_INCOME_KDD, {}, list(CENSUS_INCOME_KDD.tasks)).batches(source_of(tmp_path / "rows"))
    if message is None:  # an unknown label or number
        found = pa.Table.from_batches(batches).to_pydict()
        value = found[label_name("income")][6] if column else found["age"][6]
        assert value is None or np.isnan(value)
    else:
        with pytest.raises(UserError, match=message.replace("|", r"\|")):
            list(batches)


def test_a_folder_without_raw_files_is_an_error(tmp_path):
    (tmp_path / "census-income-kdd").mkdir()
    with pytest.raises(UserError, match=r"no census-income.data, adult.data.*python data/census_income.py"):
        open_data(tmp_path)


def test_sample_is_the_same_everywhere():
    """In every process, with its own seed of hashes."""
    rows = (census_sample(CENSUS_INCOME_KDD, 300, 100) / TRAIN_FILE).read_bytes()
    assert hashlib.md5(rows).hexdigest() == "151f910fb47486608443633f58b9f6ae"


def test_best_possible_auc_is_that_of_the_planted_probabilities(tmp_path, monkeypatch):
    sample = Published("", lambda: census_sample(CENSUS_INCOME_KDD, TRAIN, 20_000))
    monkeypatch.setitem(MultiTaskDataModule.published, "census-income-kdd", sample)
    data = open_data(tmp_path, tasks=("education", "income", "never_married"))
    assert data.is_sample
    best = TaskMetrics(data.tasks).measure(data.best_prediction(), data.targets("test"))
    truth = np.load(data.table.folder / "true_probability.npy")[data.rows["test"]]
    for name, column in zip(CENSUS_INCOME_KDD.tasks, range(3), strict=True):
        label = data.read(data.rows["test"])[-1][:, data.tasks.index(name)]
        assert abs(truth[:, column].mean() - label.mean()) < 0.02
        # the expected AUC of true probabilities: P(p_i > p_j) for i positive, j negative
        p = np.sort(truth[:, column])
        expected = (p * ((1 - p).cumsum() - (1 - p))).sum() / (p.sum() * (1 - p).sum())
        assert abs(best[f"auc_{name}"] - expected) < 0.01


@pytest.mark.real_data("census-income-kdd")
def test_real_files_have_the_papers_rows_rates_and_correlations():
    data = MultiTaskDataModule(**DATA | {"tasks": ("income", "never_married", "education")}, seed=0)
    data.setup()
    assert [len(rows) for rows in data.rows.values()] == [199_523, 49_881, 49_881]
    assert len(data.cardinalities) == 38
    train = data.read(data.rows["train"])[-1]
    both = np.concatenate([data.read(data.rows["val"])[-1], data.read(data.rows["test"])[-1]])
    assert train.mean(0).round(4).tolist() == pytest.approx([0.0621, 0.4335, 0.1964], abs=1e-6)
    for pair, expected in (((0, 1), (0.1782, 0.1787)), ((2, 1), (0.2400, 0.2376))):  # 0.1768 and 0.2373 in the paper
        found = [abs(np.corrcoef(labels[:, pair].T)[0, 1]) for labels in (train, both)]
        assert found == pytest.approx(expected, abs=1e-4), pair


@pytest.mark.real_data("adult")
def test_real_adult_files():
    data = MultiTaskDataModule(**DATA | {"dataset": "adult"}, seed=0)
    data.setup()
    assert [len(rows) for rows in data.rows.values()] == [32_561, 8_141, 8_140]
    assert data.read(data.rows["train"])[-1].mean(0).round(4).tolist() == pytest.approx([0.2408, 0.3281], abs=1e-6)
