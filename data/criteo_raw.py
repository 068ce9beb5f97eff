"""Criteo's raw text as arrays: blocks of bytes are converted with whole-array operations, every field checked.

Format: TAB-separated, LF (or CRLF), no header; train.txt: label, I1-I13, C1-C26; test.txt: the same without the label.
Empty means missing, also at the end of a line. N: lines of a block.
"""

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from common.errors import UserError, check
from data.raw_text import line_blocks

NUMBERS = [f"I{i}" for i in range(1, 14)]
CATEGORIES = [f"C{i}" for i in range(1, 27)]
MISSING_NUMBER = np.iinfo(np.int32).min  # no raw number can have this value: such a one is an error
BLOCK_BYTES = 8 << 20  # read at a time: some 35,000 lines

TAB, LF, CR, MINUS = (ord(c) for c in "\t\n\r-")
EVERY_BYTE = np.uint64(0x0101010101010101)


@dataclass
class Rows:
    """Raw rows as columns."""

    label: np.ndarray | None  # (N,) uint8, None if the file has none
    numbers: list[np.ndarray]  # 13 of (N,) int32, MISSING_NUMBER where empty
    categories: list[np.ndarray]  # 26 of (N,) uint32, the 8 hex digits; 0 where missing
    missing: list[np.ndarray]  # 26 of (N,) bool: all 2^32 values are legal categories, so missing needs its own place

    def __len__(self) -> int:
        return len(self.numbers[0])

    def __getitem__(self, rows: slice) -> "Rows":
        part = [[column[rows] for column in columns] for columns in (self.numbers, self.categories, self.missing)]
        return Rows(None if self.label is None else self.label[rows], *part)


def open_raw(path: Path) -> tuple[BinaryIO, BinaryIO]:
    """The (decompressed) stream of bytes, and the file on disk below it, whose position is the progress."""
    file = open(path, "rb")
    return (gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file), file


def blocks(stream: BinaryIO, name: str | Path, block_bytes: int = BLOCK_BYTES) -> Iterator[tuple[int, bytes]]:
    """line_blocks; UserError for an empty file too."""
    empty = True
    for piece in line_blocks(stream, name, block_bytes):
        empty = False
        yield piece
    check(not empty, f"{name} is empty; expected Criteo rows.")


def parse(block: bytes, labelled: bool, name: str | Path, first_line: int) -> Rows:
    """One block of whole lines as arrays.

    Raises: UserError naming file, line and column of the first wrong line.
    """
    # 8 bytes of margin on both sides, so that an 8-byte word may be read at any field's start or end
    text = np.frombuffer(b"\0" * 8 + block + b"\0" * 8, np.uint8)
    ends = np.flatnonzero((text == TAB) | (text == LF))
    columns = (["label"] if labelled else []) + NUMBERS + CATEGORIES
    line_ends = np.flatnonzero(text[ends] == LF)
    fields = np.diff(line_ends, prepend=-1)
    if (fields != len(columns)).any():
        row = int((fields != len(columns)).argmax())
        hint = " (test.txt has 39, without the label)" if labelled and fields[row] == 39 else ""
        raise UserError(
            f"{name}, line {first_line + row}: found {fields[row]} fields separated by TAB, "
            f"expected {len(columns)}{hint}. Correct or remove the line."
        )
    starts = np.concatenate([[8], ends[:-1] + 1]).reshape(-1, len(columns)).T  # (fields, N)
    ends = ends.reshape(-1, len(columns)).T.copy()
    ends[-1] -= text[ends[-1] - 1] == CR
    lengths = ends - starts
    words = np.ndarray(len(text) - 7, "<u8", text, strides=(1,))  # words[i]: the 8 bytes from byte i on

    valid = np.empty(starts.shape, bool)  # (fields, N)
    label, first = None, len(columns) - len(NUMBERS) - len(CATEGORIES)
    if labelled:
        label = text[starts[0]] - np.uint8(ord("0"))
        valid[0] = (lengths[0] == 1) & (label <= 1)
    numbers, categories, missing = [], [], []
    for i in range(first, first + len(NUMBERS)):
        value, valid[i] = _integers(text, words, starts[i], ends[i])
        numbers.append(value)
    for i in range(first + len(NUMBERS), len(columns)):
        value, valid[i] = _hex_digits(words[starts[i]], lengths[i])
        categories.append(value)
        missing.append(lengths[i] == 0)
    if not valid.all():
        row = int(valid.all(0).argmin())
        column = int(valid[:, row].argmin())
        found = bytes(text[starts[column, row] : ends[column, row]])
        _raise_bad_field(name, first_line + row, columns[column], found)
    return Rows(label, numbers, categories, missing)


def _hex_digits(word: np.ndarray, length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """8 ASCII bytes in a word (N,) -> (value (N,) uint32, valid (N,)); length 0 is missing: value 0."""
    is_letter = (word >> 6) & EVERY_BYTE
    digit = (word & (EVERY_BYTE * 0x0F)) + is_letter * 9  # in each byte
    in_range = (digit & (EVERY_BYTE * 0xF0)) == 0
    # writing the digits again must give the bytes that were read: this refuses all but 0-9 and a-f
    ascii_again = digit + EVERY_BYTE * 0x30 + (((digit + EVERY_BYTE * 6) >> 4) & EVERY_BYTE) * 0x27
    valid = (length == 0) | ((length == 8) & in_range & (ascii_again == word))
    # the first character is the lowest byte: join neighbours, 4 -> 8 -> 16 -> 32 bits
    value = ((digit << 4) | (digit >> 8)) & 0x00FF00FF00FF00FF
    value = ((value << 8) | (value >> 16)) & 0x0000FFFF0000FFFF
    value = ((value << 16) | (value >> 32)) & 0x00000000FFFFFFFF
    return np.where(length == 0, 0, value).astype(np.uint32), valid


def _integers(
    text: np.ndarray, words: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Decimal integers -> (value (N,) int32, valid (N,)); an empty field is MISSING_NUMBER."""
    negative = (text[starts] == MINUS) & (ends > starts)
    length = ends - starts - negative
    # the 8 bytes before the end, those before the digits replaced by "0"
    kept = np.minimum(length, 8).astype(np.uint64) * 8
    keep = np.where(kept == 0, 0, ~np.uint64(0) << (64 - kept))
    word = (words[ends - 8] & keep) | ((EVERY_BYTE * 0x30) & ~keep)
    digit = word ^ (EVERY_BYTE * 0x30)
    valid = ((digit | (digit + EVERY_BYTE * 6)) & (EVERY_BYTE * 0xF0)) == 0
    # the first digit is the lowest byte: join neighbours, 1 -> 2 -> 4 -> 8 digits
    value = (digit * 10 + (digit >> 8)) & 0x00FF00FF00FF00FF
    value = (value * 100 + (value >> 16)) & 0x0000FFFF0000FFFF
    value = (value * 10_000 + (value >> 32)) & 0x00000000FFFFFFFF
    value = np.where(negative, -value.astype(np.int64), value.astype(np.int64))
    for row in np.flatnonzero(length > 8):  # rare: longer than a word
        field = bytes(text[starts[row] : ends[row]])
        is_number = length[row] <= 10 and field[int(negative[row]) :].isdigit()
        value[row] = int(field) if is_number else MISSING_NUMBER
        valid[row] = MISSING_NUMBER < value[row] <= np.iinfo(np.int32).max
    empty = ends == starts
    valid &= (length > 0) | empty
    return np.where(empty, MISSING_NUMBER, value).astype(np.int32), valid


def _raise_bad_field(name: str | Path, line: int, column: str, found: bytes) -> None:
    if column == "label":
        expected = "0 or 1 (the file must have no header line)"
    elif column in NUMBERS:
        expected = "an integer of 32 bits, or nothing"
    else:
        expected = "8 hexadecimal digits in lower case, or nothing"
    shown = repr(found[:40].decode("utf-8", "backslashreplace"))
    raise UserError(f"{name}, line {line}, column {column}: found {shown}, expected {expected}. Correct the file.")
