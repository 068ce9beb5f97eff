"""The parser of raw Criteo text against a plain one, and what it says of wrong input."""

import gzip
import io

import pytest

from common.errors import UserError
from data.criteo_raw import blocks, open_raw, parse
from data.raw_text import LINE_BYTES
from tests.criteo_rows import as_lists, make_lines, parse_plainly

GOOD = "\t".join(["1"] + ["5"] * 13 + ["68fd1e64"] * 26)


def replaced(column: int, text: str) -> str:
    fields = GOOD.split("\t")
    fields[column] = text
    return "\t".join(fields)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_equals_a_plain_parser(rng, labelled, line_end):
    lines = make_lines(rng, 500, labelled)
    block = "".join(line + line_end for line in lines).encode()
    assert as_lists(parse(block, labelled, "f", 1)) == parse_plainly(lines, labelled)


@pytest.mark.parametrize(
    "number", ["0", "-1", "-2", "007", "99999999", "100000000", "-123456789", "2147483647", "-2147483647", ""]
)
def test_numbers(number):
    lines = [replaced(3, number), replaced(13, number), GOOD]
    assert as_lists(parse(("\n".join(lines) + "\n").encode(), True, "f", 1)) == parse_plainly(lines)


@pytest.mark.parametrize("digits", ["00000000", "ffffffff", "0123456789abcdef"[:8], "89abcdef", ""])
def test_categories(digits):
    lines = [replaced(14, digits), replaced(39, digits)]
    assert as_lists(parse(("\n".join(lines) + "\n").encode(), True, "f", 1)) == parse_plainly(lines)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (GOOD + "\t", "line 7: found 41 fields separated by TAB, expected 40"),
        (GOOD.rsplit("\t", 1)[0], "line 7: found 39 fields .* expected 40 .test.txt has 39"),
        ("", "line 7: found 1 fields"),
        (GOOD.replace("\t", " "), "line 7: found 1 fields"),
        (replaced(0, "2"), "line 7, column label: found '2', expected 0 or 1"),
        (replaced(0, ""), "line 7, column label: found ''"),
        (replaced(0, "label"), "column label: found 'label', expected 0 or 1 .the file must have no header"),
        (replaced(1, "1.5"), "column I1: found '1.5', expected an integer"),
        (replaced(2, "-"), "column I2: found '-'"),
        (replaced(3, "+5"), "column I3"),
        (replaced(4, "5-"), "column I4"),
        (replaced(5, " 5"), "column I5"),
        (replaced(6, "2147483648"), "column I6"),
        (replaced(7, "-2147483648"), "column I7"),
        (replaced(8, "1" * 30), "column I8"),
        (replaced(13, "1_0"), "column I13"),
        (replaced(13, "12345678a"), "column I13"),
        (replaced(13, "--12345678"), "column I13"),
        (replaced(14, "68fd1e6"), "column C1: found '68fd1e6', expected 8 hexadecimal digits"),
        (replaced(15, "68fd1e644"), "column C2"),
        (replaced(16, "68FD1E64"), "column C3"),
        (replaced(17, "68fd1e6g"), "column C4"),
        (replaced(18, "68fd1e6:"), "column C5"),
        (replaced(19, "68fd\x001e6"), "column C6"),
        (replaced(20, "68fd1e\xe4"), "column C7"),
        (replaced(39, "68fd1e6/"), "column C26"),
        (replaced(39, "68fd1e6`"), "column C26"),
        (replaced(39, "68fd1e64\r\r"), "column C26"),
    ],
)
def test_a_wrong_line_is_named(line, message):
    block = f"{GOOD}\n{GOOD}\n{line}\n{GOOD}\n".encode()
    with pytest.raises(UserError, match=f"train.txt, {message}" if message.startswith("line") else message):
        parse(block, True, "train.txt", 5)


@pytest.mark.parametrize("block_bytes", [1, 7, 300, 10_000])
def test_blocks_are_whole_lines_and_lose_nothing(block_bytes):
    text = b"ab\nc\n\nlong line\nno end"
    lines, pieces = zip(*blocks(io.BytesIO(text), "f", block_bytes), strict=True)
    assert b"".join(pieces) == text + b"\n"
    assert all(piece.endswith(b"\n") for piece in pieces)
    assert [*lines] == [1 + b"".join(pieces[:i]).count(b"\n") for i in range(len(pieces))]


@pytest.mark.parametrize("block_bytes", [100_000, 8 << 20])
def test_a_line_without_an_end_is_read_to_the_limit(block_bytes):
    stream = io.BytesIO(GOOD.encode() + b"\n" + b"0" * 40 * LINE_BYTES)
    with pytest.raises(UserError, match=r"f, line 2 is longer than 1,048,576 bytes"):
        list(blocks(stream, "f", block_bytes))
    assert stream.tell() <= len(GOOD) + LINE_BYTES + 2 * block_bytes


def test_empty_and_cut_files(tmp_path):
    with pytest.raises(UserError, match="f is empty"):
        list(blocks(io.BytesIO(b""), "f"))
    path = tmp_path / "train.txt.gz"
    path.write_bytes(gzip.compress((GOOD + "\n").encode() * 100)[:-20])
    stream, file = open_raw(path)
    with file, pytest.raises(UserError, match=r"train.txt.gz: the compressed file is cut"):
        list(blocks(stream, path))
