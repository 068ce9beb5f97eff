"""Raw files of Census-Income and Adult: every row as a plain parser reads it, damage reported with file and line."""

import csv
import gzip
import io
import tracemalloc

import numpy as np
import pytest
from data.census_schema import ADULT, CENSUS_INCOME_KDD
from data.table_reader import Rows, read_files, read_stream
from data.table_schema import Schema
from data.table_values import read_labels, read_numbers

from common.data.raw_files import LINE_BYTES
from common.errors import UserError
from data import table_reader
from data.samples.census import census_sample
from tests.plain_parsers import texts_of

ADULT_LINE = "39, Private, 77516, Bachelors, 13, Never-married, Sales, Husband, White, Male, 2174, 0, 40, ?, <=50K"
KDD = CENSUS_INCOME_KDD.schema


@pytest.fixture
def lines() -> list[str]:
    return (census_sample(1_500, 600) / "census-income.data").read_text().splitlines()


def values(schema: Schema, rows: Rows) -> dict[str, list]:
    found = {column.name: read_numbers(rows, column).tolist() for column in schema.of_role("dense")}
    found |= {column.name: texts_of(rows, column.name, schema) for column in schema.of_role("categorical")}
    return found | dict(zip(schema.tasks, read_labels(rows, schema, list(schema.tasks)).T.tolist(), strict=True))


def read(lines: list[str], schema: Schema = KDD, end: str = "\n", encoding: str = "utf-8") -> dict[str, list]:
    """All columns of a file of these lines."""
    stream = io.BytesIO("".join(line + end for line in lines).encode(encoding))
    parts = list(read_stream(stream, "raw.data", schema, lambda rows: values(schema, rows)))
    return {name: [value for part in parts for value in part[name]] for name in parts[0]}


def test_rows_equal_those_of_the_csv_module(lines):
    found = read(lines)
    for name, *expected in zip(KDD.names, *csv.reader(lines, skipinitialspace=True), strict=True):
        expected = [None if text.strip() == "?" else text.strip() for text in expected]
        if KDD[name].role == "categorical":
            assert found[name] == expected
        elif KDD[name].role == "dense":
            assert found[name] == list(map(float, expected))


@pytest.mark.parametrize("end", ["\r\n", "\n\n", " \n", "\n \n"])
def test_other_line_ends_make_no_difference(lines, end):
    assert read(lines, end=end) == read(lines)


def test_gz_equals_plain_and_a_cut_one_is_an_error(tmp_path, lines):
    path = tmp_path / "a.data.gz"
    packed = gzip.compress("\n".join(lines).encode())
    path.write_bytes(packed)
    assert sum(read_files([path], KDD, len)) == len(lines)
    path.write_bytes(packed[:-1000])
    with pytest.raises(UserError, match=rf"{path}.*truncated or damaged"):
        list(read_files([path], KDD, len))


def test_a_line_without_an_end(tmp_path, lines):
    path = tmp_path / "a.data.gz"
    path.write_bytes(gzip.compress(f"{lines[0]}\n".encode() + b"0" * 2 * LINE_BYTES))
    with pytest.raises(UserError, match=rf"{path}, line 2 is longer than 1,048,576 bytes"):
        list(read_files([path], KDD, len))


def test_what_comes_before_the_rows_takes_no_memory(monkeypatch, lines):
    monkeypatch.setattr(table_reader, "BLOCK_BYTES", 1 << 16)
    stream = io.BytesIO(b"|\n" * 300_000 + f"{lines[0]}\n{lines[1][:-1]}x\n".encode())
    tracemalloc.start()
    with pytest.raises(UserError, match=r"raw.data, line 300002, column income"):
        list(read_stream(stream, "raw.data", KDD, lambda rows: values(KDD, rows), scoring=True))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**21


def test_the_columns_of_tasks_and_the_instance_weight_are_no_inputs():
    inputs = [column.name for column in KDD.inputs]
    assert len(KDD.columns) == 42 and len(inputs) == 38
    assert set(KDD.names) - set(inputs) == {"education", "marital status", "income", "instance weight"}
    assert [KDD.names.index(column.name) for column in KDD.of_role("dense")] == [0, 5, 16, 17, 18, 30, 39]
    assert set(ADULT.schema.names) - {column.name for column in ADULT.schema.inputs} == {
        "education", "years of education", "marital status", "income", "instance weight",
    }  # fmt: skip


@pytest.mark.parametrize("release", [CENSUS_INCOME_KDD, ADULT])
def test_every_text_of_a_task_is_on_one_side(release):
    sizes = {"income": 2, "never_married": 7, "education": 17 if release is CENSUS_INCOME_KDD else 16}
    for name, task in release.schema.tasks.items():
        assert not set(task.positive) & set(task.negative)
        assert len(task.positive + task.negative) == sizes[name]
        assert release.schema[task.column].role == "label"


def test_labels(lines):
    found = read(lines[:50])
    for name, index, positive in (("income", 41, ["50000+."]), ("never_married", 7, ["Never married"])):
        assert found[name] == [float(line.split(", ")[index] in positive) for line in lines[:50]]


def test_adult_has_comments_dots_and_a_blank_end():
    lines = ["|1x3 Cross validator", ADULT_LINE + ".", ADULT_LINE.replace("<=50K", ">50K"), ""]
    found = read(lines, ADULT.schema)
    assert found["income"] == [0, 1] and found["education"] == [1, 1] and found["hours per week"] == [40, 40]
    with pytest.raises(UserError, match=r"raw.data, line 3, column income: found '50K'"):
        read([*lines[:2], ADULT_LINE.replace("<=50K", "50K")], ADULT.schema)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda fields: fields[:-1], "line 7: found 41 fields .* expected 42"),
        (lambda fields: [*fields, "x"], "line 7: found 43 fields"),
        (lambda fields: [*fields[:20], "caf\xe9", *fields[21:]], "line 7: found bytes that are not UTF-8"),
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
        read(lines, encoding="latin-1")


def test_an_error_in_a_later_block_names_its_line(lines, monkeypatch):
    monkeypatch.setattr(table_reader, "BLOCK_BYTES", 5_000)
    lines[1234] = "x" + lines[1234]
    lines.insert(100, "")  # blank lines count
    with pytest.raises(UserError, match="line 1236, column age"):
        read(lines)


def test_a_file_that_is_cut_in_the_middle_of_a_line(lines):
    with pytest.raises(UserError, match=r"line 11: found .* the file is truncated"):
        read([*lines[:10], lines[10][:100]])


def test_an_empty_file():
    with pytest.raises(UserError, match=r"raw.data is empty"):
        read(["", "|comment"])


def test_missing_numbers_are_nan(lines):
    lines[0] = "?" + lines[0][lines[0].index(",") :]
    assert np.isnan(read(lines[:3])["age"]).tolist() == [True, False, False]
