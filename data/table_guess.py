"""Guesses the roles of a file's columns from its first rows, as the draft of a columns.json that you correct."""

import re
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from common.errors import UserError, check
from common.settings import POOLINGS
from data.table_reader import Rows, data_files, first_names, read_files
from data.table_schema import Column, Schema
from data.table_values import parse_number, read_texts

SAMPLE_ROWS = 100_000
MISSING_TEXTS = ("", "?", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "\\N")
LABEL_NAMES = re.compile(r"(is_?)?(label|target|click(ed)?|y|conver(ted|sion)|purchased?|income|churn)", re.I)
TIME_NAMES = re.compile(r".*(time|date|timestamp|_at|_ts)|ts|day|hour", re.I)
WEIGHT_NAMES = re.compile(r".*weight", re.I)
SPLIT_NAMES = re.compile(r"split|fold|set|partition", re.I)
LIST_SEPARATORS = "|;"
MANY_VALUES = 20  # a column with more distinct numbers is dense
FREE_TEXT_LENGTH, FREE_TEXT_SHARE = 40, 0.5  # average characters and distinct texts per row that suggest sentences
POSITIVE_TEXTS = ("1", "true", "yes", "y", "t", "click", "clicked", "positive", "pos", ">50k", "50000+", "50000+.")
EXAMPLES = 3
TIME_WHY = "not an input; orders the rows"


@dataclass(frozen=True)
class Inspection:
    """The first rows of a file: the content of columns.json except "columns", and a look at each column."""

    path: Path
    content: dict[str, Any]
    looks: dict[str, "Look"]
    rows: int

    def report(self, entries: dict[str, tuple]) -> str:
        """The guess as a table for the terminal. entries: results of Look.entry, by column."""
        lines = [
            [name, entry["role"], kind, distinct, f"{missing:.1%}", examples, why]
            for name, (entry, kind, distinct, missing, examples, why) in entries.items()
        ]
        table = pd.DataFrame(lines, columns=["column", "role", "type", "distinct", "missing", "examples", "why"])
        return f"{self.path}: the first {self.rows:,} rows, {len(entries)} columns\n\n{table.to_string(index=False)}\n"


def inspect(path: Path) -> Inspection:
    """Look at a file or a folder of files. Raises: UserError for a file that cannot be read as a table."""
    files = data_files(path)
    separator, names = first_names(files[0])
    check(len(names) > 1, f"{files[0]}: found only one column ({names[0][:80]!r}). Is it a table with a header line?")
    if all(parse_number(name) is not None or name in MISSING_TEXTS for name in names):
        raise UserError(
            f"{files[0]}, line 1: found values instead of column names ({', '.join(names[:4])} ...). Add a line of "
            'names, or write columns.json by hand with "header": false and the columns in order.'
        )
    columns = tuple(Column(name, "kept") for name in names)
    schema = Schema(columns, {}, separator=separator, missing=MISSING_TEXTS)
    rows, blocks = 0, []
    for block in read_files(files[:1], schema, lambda rows: rows):
        blocks.append(block)
        rows += len(block)
        if rows >= SAMPLE_ROWS:
            break
    content = {"file": str(path.resolve()), "separator": separator, "header": True, "missing": list(MISSING_TEXTS)}
    return Inspection(path, content, {name: Look(name, blocks, schema) for name in names}, rows)


def guess_table(path: Path) -> tuple[dict[str, Any], str]:
    """Content of a columns.json for a file or a folder of files, and the guess as a table for the terminal.

    Raises: UserError for a file that cannot be read as a table.
    """
    inspected = inspect(path)
    looks = inspected.looks
    entries = {name: look.entry() for name, look in looks.items()}
    _choose_labels(entries, looks)
    times = [name for name, (entry, *_) in entries.items() if entry["role"] == "time"]
    for name in times[1:]:
        entries[name] = ({"role": "excluded"}, *entries[name][1:-1], "another time")
    inputs = ("categorical", "excluded")
    splits = [n for n, (entry, *_) in entries.items() if SPLIT_NAMES.fullmatch(n) and entry["role"] in inputs]
    columns = {name: entry for name, (entry, *_) in entries.items()}
    text = inspected.report(entries)
    if splits:
        text += f'\nColumn {splits[0]!r} may be a split: see "split" in docs/your_data.md.\n'
    if not any(entry["role"] == "label" for entry in columns.values()):
        text += '\nNo column looks like a label: give one the role "label" and "positive", a list of its values.\n'
    return inspected.content | {"split": None, "columns": columns}, text


class Look:
    """One column in the first rows."""

    def __init__(self, name: str, blocks: list[Rows], schema: Schema):
        self.name, self.schema = name, schema
        self.rows = sum(len(rows) for rows in blocks)
        self.counts: Counter = Counter()
        missing, self.is_list = 0, False
        for rows in blocks:
            codes, texts, counts = read_texts(rows, Column(name, "categorical"), schema)
            times = np.bincount(codes, minlength=len(texts) + 1)
            if counts is not None:
                self.is_list = True
                missing += int((counts == 0).sum())
                times = np.repeat(times[: len(counts)], counts)
            elif len(times) > len(texts):
                missing += int(times[-1])
            for text, number in zip(texts.to_pylist(), times.tolist(), strict=False):
                self.counts[text] += number
        self.missing = (missing + self.counts.pop(None, 0)) / max(self.rows, 1)

    def entry(self) -> tuple[dict, str, int, float, str, str]:
        """Entry in columns.json, type, number of distinct values, missing share, examples, and a reason or remark."""
        values = list(self.counts)
        numeric = bool(values) and all(parse_number(text) is not None for text in values)
        codes = any(re.fullmatch("0[0-9]+", text) for text in values)  # "007" is a code, not a number
        kind = "list" if self.is_list else "number" if numeric and not codes else "text"
        examples = ", ".join(text if len(text) <= 16 else f"{text[:13]}..." for text in islice(self.counts, EXAMPLES))
        role, why = self._role(kind, values)
        return role, kind, len(values), self.missing, examples, why

    def _role(self, kind: str, values: list[str]) -> tuple[dict, str]:
        distinct, known = len(values), sum(self.counts.values())
        if distinct <= 1:
            return {"role": "excluded"}, "constant"
        if self.is_list:
            return {"role": "categorical", "pooling": POOLINGS[0]}, ""
        if TIME_NAMES.fullmatch(self.name) and (kind == "number" or are_dates(values)) and distinct > MANY_VALUES:
            return {"role": "time"}, TIME_WHY
        if are_dates(values):
            return ({"role": "time"}, TIME_WHY) if distinct > MANY_VALUES else ({"role": "excluded"}, "dates")
        if WEIGHT_NAMES.fullmatch(self.name) and kind == "number":
            return {"role": "weight"}, "not an input"
        whole = kind == "number" and all(float(text).is_integer() for text in values[:1000])
        if distinct == known and known > MANY_VALUES and (kind == "text" or whole):
            return {"role": "excluded"}, "unique per row"
        if kind == "text":
            separator = self._separator(values)
            if separator:
                entry = {"role": "categorical", "separator": separator, "pooling": POOLINGS[0]}
                return entry, f"several values, {separator!r}"
            length = sum(map(len, values)) / distinct
            if length > FREE_TEXT_LENGTH and distinct > FREE_TEXT_SHARE * known:
                return {"role": "excluded"}, "free text"
            return {"role": "categorical", "type": "text"}, ""
        if re.fullmatch(r".*(_|\b)id|id|.*Id|.*ID|.*code|zip.*", self.name) or distinct <= MANY_VALUES:
            return {"role": "categorical", "type": "number"}, ""
        return {"role": "dense"}, ""

    def _separator(self, values: list[str]) -> str | None:
        """The separator of several values in a cell: one that splits the cells into fewer distinct parts than cells."""
        for separator in LIST_SEPARATORS:
            several = [text for text in values if separator in text]
            parts = {part for text in values for part in text.split(separator)}
            if len(several) > len(values) / 4 and len(parts) < len(values):
                return separator
        return None


def are_dates(values: list[str]) -> bool:
    return all(re.match(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text) for text in values[:1000])


def _choose_labels(entries: dict[str, tuple], looks: dict[str, Look]) -> None:
    """Give the role "label" to columns with a typical name and two values, one of which is clearly positive."""
    for name, (_, kind, distinct, missing, examples, _) in entries.items():
        texts = list(looks[name].counts)
        positive = [text for text in texts if text.lower() in POSITIVE_TEXTS]
        if len(texts) == 2 and len(positive) == 1 and LABEL_NAMES.fullmatch(name):
            entry = {"role": "label", "positive": positive, "negative": [t for t in texts if t not in positive]}
            entries[name] = (entry, kind, distinct, missing, examples, "")
