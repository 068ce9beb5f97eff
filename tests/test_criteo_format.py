"""Criteo's raw text: every row as a plain parser reads it, any damage reported with file, line and column."""

import gzip
import io

import pytest
from data.criteo_schema import CATEGORICAL, CRITEO, DENSE
from data.table_reader import read_files, read_stream
from data.table_values import read_labels, read_numbers

from common.data.raw_files import LINE_BYTES
from common.errors import UserError
from data import table_reader
from tests.criteo_rows import MISSING_DENSE, make_lines, parse_plainly
from tests.plain_parsers import texts_of

GOOD = "\t".join(["1"] + ["5"] * 13 + ["68fd1e64"] * 26)


def replaced(column: int, text: str) -> str:
    fields = GOOD.split("\t")
    fields[column] = text
    return "\t".join(fields)


def read(content: bytes, labelled: bool = True) -> dict[str, list]:
    """In the form of parse_plainly."""

    def columns(rows) -> list:
        dense = [read_numbers(rows, CRITEO[name]).tolist() for name in DENSE]
        categories = [texts_of(rows, name, CRITEO) for name in CATEGORICAL]
        label = read_labels(rows, CRITEO, ["click"], not labelled)[:, 0].tolist()
        return list(zip(label, zip(*dense, strict=True), zip(*categories, strict=True), strict=True))

    parts = read_stream(io.BytesIO(content), "train.txt", CRITEO, columns, scoring=not labelled)
    label, dense, categories = zip(*(row for part in parts for row in part), strict=True)
    return {
        "label": [int(value) for value in label] if labelled else None,
        "dense": [[MISSING_DENSE if x != x else int(x) for x in row] for row in dense],
        "categorical": [[text or "" for text in row] for row in categories],
        "missing": [[text is None for text in row] for row in categories],
    }


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("block_bytes", [300, 8 << 20])
def test_equals_a_plain_parser(rng, monkeypatch, labelled, line_end, block_bytes):
    monkeypatch.setattr(table_reader, "BLOCK_BYTES", block_bytes)
    lines = make_lines(rng, 300, labelled)
    content = "".join(line + line_end for line in lines).encode()
    for given in (content, content.removesuffix(line_end.encode())):
        assert read(given, labelled) == parse_plainly(lines, labelled)


@pytest.mark.parametrize(
    "number", ["0", "-1", "-2", "007", "99999999", "100000000", "-123456789", "2147483647", "-2147483647", ""]
)
def test_numbers(number):
    lines = [replaced(3, number), replaced(13, number), GOOD]
    assert read(("\n".join(lines) + "\n").encode()) == parse_plainly(lines)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (GOOD + "\t", "line 7: found 41 fields separated by TAB, expected 40"),
        (GOOD.rsplit("\t", 1)[0], "line 7: found 39 fields .* expected 40"),
        ("", "line 7: found 1 fields"),
        (
            GOOD.replace("\t", " "),
            "line 7: found 1 fields .* With space as the separator the line has the expected number",
        ),
        (GOOD.replace("\t", ","), "line 7: found 1 fields .* With comma as the separator .*: convert the file"),
        (replaced(0, "2"), "line 7, column label: found '2', expected '0' or '1'"),
        (replaced(0, ""), "line 7, column label: found ''"),
        (replaced(0, "label"), "column label: found 'label', expected '0' or '1' .the file must have no header"),
        (replaced(1, "1.5"), "column I1: found '1.5', expected a 32-bit integer"),
        (replaced(2, "-"), "column I2: found '-'"),
        (replaced(3, "+5"), "column I3"),
        (replaced(4, "5-"), "column I4"),
        (replaced(5, " 5"), "column I5"),
        (replaced(6, "2147483648"), "column I6"),
        (replaced(7, "-2147483649"), "column I7"),
        (replaced(8, "1" * 30), "column I8"),
        (replaced(9, "0x10"), "column I9: found '0x10'"),
        (replaced(13, "1_0"), "column I13"),
        (replaced(13, "--12345678"), "column I13"),
        (replaced(19, "68fd\x001e6"), "line 7: found control characters"),
        (replaced(39, "68fd1e64\r\r"), "line 7: found control characters"),
    ],
)
def test_a_wrong_line_is_named(line, message):
    block = "".join(f"{text}\n" for text in [*[GOOD] * 6, line, GOOD]).encode()
    with pytest.raises(UserError, match=f"train.txt, {message}" if message.startswith("line") else message):
        read(block)


def test_another_encoding_is_named():
    content = f"{GOOD}\n{replaced(20, '68fd1e' + chr(0xE4))}\n".encode("latin-1")
    with pytest.raises(UserError, match=r"train.txt, line 2: found bytes that are not UTF-8"):
        read(content)


def test_a_file_without_labels_cannot_be_trained_on():
    with pytest.raises(UserError, match=r"line 1: found 39 fields .* Is it a file without labels"):
        read(f"{GOOD[2:]}\n".encode())


def test_a_line_without_an_end_is_read_to_the_limit():
    stream = io.BytesIO(GOOD.encode() + b"\n" + b"0" * 40 * LINE_BYTES)
    with pytest.raises(UserError, match=r"f, line 2 is longer than 1,048,576 bytes"):
        list(read_stream(stream, "f", CRITEO, len))
    assert stream.tell() <= len(GOOD) + LINE_BYTES + 2 * table_reader.BLOCK_BYTES


def test_empty_and_cut_files(tmp_path):
    with pytest.raises(UserError, match=r"train.txt is empty"):
        read(b"")
    path = tmp_path / "train.txt.gz"
    path.write_bytes(gzip.compress((GOOD + "\n").encode() * 100)[:-20])
    with pytest.raises(UserError, match=r"train.txt.gz: the compressed file is truncated"):
        list(read_files([path], CRITEO, len))
