"""Raw files of Census-Income and Adult: every row as a plain parser reads it, every damage named with file and line."""

import csv
import gzip
import io
import tracemalloc

import numpy as np
import pytest

from common.errors import UserError
from data.census_format import ADULT, CENSUS_INCOME_KDD, read_file, read_rows
from data.census_income import CensusIncomeDataModule
from data.census_scoring import CensusScoring
from data.raw_text import LINE_BYTES
from data.sample_census import census_sample

ADULT_LINE = "39, Private, 77516, Bachelors, 13, Never-married, Sales, Husband, White, Male, 2174, 0, 40, ?, <=50K"


@pytest.fixture
def lines() -> list[str]:
    return (census_sample(1_500, 600) / "census-income.data").read_text().splitlines()


def read(lines: list[str], layout=CENSUS_INCOME_KDD):
    """All rows as one chunk's columns."""
    chunks = list(read_rows([line.encode() + b"\n" for line in lines], "raw.data", layout))
    return {name: [text for chunk in chunks for text in chunk.columns[name]] for name in layout.columns}


def test_rows_equal_those_of_the_csv_module(lines):
    columns = read(lines)
    expected = [[field.strip() for field in row] for row in csv.reader(lines, skipinitialspace=True)]
    assert [list(row) for row in zip(*columns.values(), strict=True)] == expected


@pytest.mark.parametrize("ending", ["\r\n", "\n\n", " \n"])
def test_other_line_ends_make_no_difference(lines, ending):
    chunks = read_rows([line.encode() + ending.encode() for line in lines], "raw.data", CENSUS_INCOME_KDD)
    assert [row for chunk in chunks for row in chunk.columns["income"]] == read(lines)["income"]


def test_gz_equals_plain(tmp_path, lines):
    plain, packed = tmp_path / "a.data", tmp_path / "a.data.gz"
    plain.write_text("\n".join(lines))
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    one, other = ([chunk.columns for chunk in read_file(path, CENSUS_INCOME_KDD)] for path in (plain, packed))
    assert one == other


def test_cut_gz(tmp_path, lines):
    path = tmp_path / "a.data.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode())[:-1000])
    with pytest.raises(UserError, match=rf"{path}.*cut or damaged"):
        list(read_file(path, CENSUS_INCOME_KDD))


def test_a_line_without_an_end(tmp_path, lines):
    path = tmp_path / "a.data.gz"
    path.write_bytes(gzip.compress(f"{lines[0]}\n".encode() + b"0" * 2 * LINE_BYTES))
    with pytest.raises(UserError, match=rf"{path}, line 2 is longer than 1,048,576 bytes"):
        list(read_file(path, CENSUS_INCOME_KDD))


def test_scoring_takes_no_memory_for_what_comes_before_the_rows(tmp_path, lines):
    (tmp_path / "census-income-kdd").symlink_to(census_sample(1_500, 600))
    data = CensusIncomeDataModule("census-income-kdd", str(tmp_path))
    data.setup()
    scoring = CensusScoring(data.state_dict())
    stream = io.BytesIO(b"|\n" * 300_000 + f"{lines[0]}\n{lines[1][:-1]}x\n".encode())
    tracemalloc.start()
    with pytest.raises(UserError, match=r"raw.data, line 300002, column income"):
        list(scoring.batches(stream, "raw.data"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
    with pytest.raises(UserError, match=r"raw.data, line 1 is longer than"):
        list(scoring.batches(io.BytesIO(b"0" * 2 * LINE_BYTES), "raw.data"))


def test_the_columns_of_tasks_and_the_instance_weight_are_no_inputs():
    assert len(CENSUS_INCOME_KDD.columns) == 42 and len(CENSUS_INCOME_KDD.inputs) == 38
    assert set(CENSUS_INCOME_KDD.columns) - set(CENSUS_INCOME_KDD.inputs) == {
        "education", "marital status", "income", "instance weight",
    }  # fmt: skip
    assert [CENSUS_INCOME_KDD.columns.index(name) for name in CENSUS_INCOME_KDD.number_inputs] == [
        0,
        5,
        16,
        17,
        18,
        30,
        39,
    ]
    assert set(ADULT.columns) - set(ADULT.inputs) == {
        "education", "years of education", "marital status", "income", "instance weight",
    }  # fmt: skip


@pytest.mark.parametrize("layout", [CENSUS_INCOME_KDD, ADULT])
def test_every_text_of_a_task_is_on_one_side(layout):
    sizes = {"income": 2, "never_married": 7, "education": 17 if layout is CENSUS_INCOME_KDD else 16}
    for name, task in layout.tasks.items():
        assert not task.positive & task.negative
        assert len(task.positive | task.negative) == sizes[name]
        assert task.column in layout.never_inputs


def test_labels(lines):
    (chunk,) = list(read_rows([line.encode() for line in lines[:50]], "raw.data", CENSUS_INCOME_KDD))
    for name, index, positive in (("income", 41, ["50000+."]), ("never_married", 7, ["Never married"])):
        expected = [float(line.split(", ")[index] in positive) for line in lines[:50]]
        assert chunk.label(CENSUS_INCOME_KDD.tasks[name]).tolist() == expected


def test_adult_has_comments_dots_and_a_blank_end():
    lines = ["|1x3 Cross validator", ADULT_LINE + ".", ADULT_LINE.replace("<=50K", ">50K"), ""]
    (chunk,) = list(read_rows([line.encode() + b"\n" for line in lines], "adult.test", ADULT))
    assert chunk.lines == (2, 3)
    assert chunk.label(ADULT.tasks["income"]).tolist() == [0, 1]
    assert chunk.label(ADULT.tasks["education"]).tolist() == [1, 1]
    assert chunk.number("hours per week").tolist() == [40, 40]


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda fields: fields[:-1], "line 7: found 41 fields .* expected 42"),
        (lambda fields: [*fields, "x"], "line 7: found 43 fields"),
        (lambda fields: [*fields[:20], "caf\xe9", *fields[21:]], "line 7: found bytes that are not ASCII"),
        (
            lambda fields: [*fields[:41], "- 5000"],
            "line 7, column income: found '- 5000', expected '- 50000' or '50000",
        ),
        (lambda fields: [*fields[:41], "?"], "line 7, column income: found '\\?'"),
        (lambda fields: [*fields[:7], "Nevermarried", *fields[8:]], "line 7, column marital status: found 'Never"),
        (lambda fields: ["old", *fields[1:]], "line 7, column age: found 'old', expected a number"),
        (lambda fields: ["1e60", *fields[1:]], "line 7, column age: found '1e60', expected a number"),
        (lambda fields: ["1_000", *fields[1:]], "line 7, column age: found '1_000', expected a number"),
        (lambda fields: ["|" + fields[0], *fields[1:]], "line 7, column age: found '|"),
        (lambda fields: [*fields[:20], "a\0b", *fields[21:]], "line 7: found control characters"),
        (lambda fields: ["nan", *fields[1:]], "line 7, column age: found 'nan', expected a number"),
    ],
)
def test_damaged_lines_are_named(lines, change, words):
    lines[6] = ", ".join(change(lines[6].split(", ")))
    with pytest.raises(UserError, match=f"raw.data, {words}"):
        for chunk in read_rows([line.encode("latin-1") for line in lines], "raw.data", CENSUS_INCOME_KDD):
            for task in CENSUS_INCOME_KDD.tasks.values():
                chunk.label(task)
            chunk.number("age")


def test_an_error_in_a_later_chunk_names_its_line(lines):
    lines[1234] = "x" + lines[1234]
    with pytest.raises(UserError, match="line 1235, column age"):
        for chunk in read_rows([line.encode() for line in lines], "raw.data", CENSUS_INCOME_KDD):
            chunk.number("age")


def test_a_file_that_is_cut_in_the_middle_of_a_line(lines):
    with pytest.raises(UserError, match=r"line 11: found .* the file is cut"):
        read([*lines[:10], lines[10][:100]])


def test_an_empty_file():
    with pytest.raises(UserError, match=r"raw.data has no rows"):
        read(["", "|comment"])


def test_missing_numbers_are_nan(lines):
    lines[0] = "?" + lines[0][lines[0].index(",") :]
    (chunk,) = list(read_rows([line.encode() for line in lines[:3]], "raw.data", CENSUS_INCOME_KDD))
    assert np.isnan(chunk.number("age")).tolist() == [True, False, False]
