"""The raw files of Census-Income (KDD) and Adult: columns, tasks, and rows as text, every line checked.

Format of both: ", " separated, no header, missing is "?". Adult's test file begins with a comment line ("|"), its
labels end in a dot as those of Census-Income do, and both of Adult's files end with a blank line.
"""

import gzip
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from common.errors import UserError, check
from data.raw_text import limited_lines, text_of, whole_gzip

MISSING_TEXT = "?"
LARGEST = float(np.finfo(np.float32).max)
CHUNK_ROWS = 1_000  # small enough to stay in the processor's cache


@dataclass(frozen=True)
class Task:
    """A binary label: positive where `column` holds a text of `positive`."""

    column: str
    positive: frozenset[str]
    negative: frozenset[str]


@dataclass(frozen=True)
class Layout:
    """One raw format. never_inputs: the instance weight, and every column that a task is made of, trained or not."""

    name: str
    train_file: str
    test_file: str
    columns: tuple[str, ...]
    numbers: frozenset[str]
    never_inputs: frozenset[str]
    tasks: dict[str, Task]

    @property
    def inputs(self) -> list[str]:
        return [name for name in self.columns if name not in self.never_inputs]

    @property
    def number_inputs(self) -> list[str]:
        return [name for name in self.inputs if name in self.numbers]


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split("; "))


def _task(column: str, positive: str, negative: str) -> Task:
    return Task(column, frozenset(_names(positive)), frozenset(_names(negative)))


CENSUS_INCOME_KDD = Layout(
    "census-income-kdd",
    "census-income.data",
    "census-income.test",
    columns=_names(
        "age; class of worker; industry code; occupation code; education; wage per hour; enrolled last week; "
        "marital status; industry; occupation; race; hispanic origin; sex; labor union; reason for unemployment; "
        "employment status; capital gains; capital losses; dividends; tax filer status; previous region; "
        "previous state; household detail; household summary; instance weight; migration in msa; migration in region; "
        "migration within region; same house a year ago; migration in sunbelt; persons worked for employer; "
        "family members under 18; country of father; country of mother; country of birth; citizenship; own business; "
        "veteran questionnaire; veterans benefits; weeks worked; year; income"
    ),
    numbers=frozenset(
        _names(
            "age; wage per hour; capital gains; capital losses; dividends; persons worked for employer; weeks worked"
        )
    ),
    never_inputs=frozenset(_names("instance weight; income; marital status; education")),
    tasks={
        "income": _task("income", "50000+", "- 50000"),
        "never_married": _task(
            "marital status",
            "Never married",
            "Married-civilian spouse present; Divorced; Widowed; Separated; Married-spouse absent; "
            "Married-A F spouse present",
        ),
        # The paper does not define "at least college"; from associate degree up it has the paper's correlation
        "education": _task(
            "education",
            "Associates degree-academic program; Associates degree-occup /vocational; Bachelors degree(BA AB BS); "
            "Masters degree(MA MS MEng MEd MSW MBA); Prof school degree (MD DDS DVM LLB JD); Doctorate degree(PhD EdD)",
            "Children; Less than 1st grade; 1st 2nd 3rd or 4th grade; 5th or 6th grade; 7th and 8th grade; 9th grade; "
            "10th grade; 11th grade; 12th grade no diploma; High school graduate; Some college but no degree",
        ),
    },
)

ADULT = Layout(
    "adult",
    "adult.data",
    "adult.test",
    columns=_names(
        "age; class of worker; instance weight; education; years of education; marital status; occupation; "
        "relationship; race; sex; capital gains; capital losses; hours per week; country of birth; income"
    ),
    numbers=frozenset(_names("age; years of education; capital gains; capital losses; hours per week")),
    never_inputs=frozenset(_names("instance weight; income; marital status; education; years of education")),
    tasks={
        "income": _task("income", ">50K", "<=50K"),
        "never_married": _task(
            "marital status",
            "Never-married",
            "Married-civ-spouse; Divorced; Separated; Widowed; Married-spouse-absent; Married-AF-spouse",
        ),
        "education": _task(
            "education",
            "Assoc-acdm; Assoc-voc; Bachelors; Masters; Prof-school; Doctorate",
            "Preschool; 1st-4th; 5th-6th; 7th-8th; 9th; 10th; 11th; 12th; HS-grad; Some-college",
        ),
    },
)

LAYOUTS = {layout.name: layout for layout in (CENSUS_INCOME_KDD, ADULT)}


@dataclass(frozen=True)
class Chunk:
    """Some rows of a file, as columns of text."""

    file: str
    lines: tuple[int, ...]  # where each row is in the file
    columns: dict[str, tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.lines)

    def error(self, row: int, column: str, expected: str) -> UserError:
        found = self.columns[column][row][:40]
        return UserError(
            f"{self.file}, line {self.lines[row]}, column {column}: found {found!r}, expected {expected}. "
            "Correct or remove the line."
        )

    def label(self, task: Task) -> np.ndarray:
        """(rows,) float32 of 0 and 1; UserError for a text that is neither."""
        texts = [text.rstrip(".") for text in self.columns[task.column]]
        for row, text in enumerate(texts):
            if text not in task.positive and text not in task.negative:
                raise self.error(row, task.column, " or ".join(map(repr, sorted(task.positive | task.negative))))
        return np.array([text in task.positive for text in texts], np.float32)

    def number(self, column: str) -> np.ndarray:
        """(rows,) float32, nan where missing; UserError for what is no number."""
        texts = self.columns[column]
        values = {text: parse_number(text) for text in set(texts)}
        for text, value in values.items():
            if math.isinf(value):
                raise self.error(texts.index(text), column, f"a number, or {MISSING_TEXT!r}")
        return np.array([values[text] for text in texts], np.float32)


def parse_number(text: str) -> float:
    """nan where missing, infinite for what is no number or does not fit into float32."""
    if text == MISSING_TEXT:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        return math.inf
    return value if abs(value) <= LARGEST and "_" not in text else math.inf  # float takes "1_0" for 10


def recognise(folder: Path, get_command: str) -> Layout:
    """The layout whose training file is in `folder`; UserError if there is none."""
    for layout in LAYOUTS.values():
        if list(folder.glob(f"{layout.train_file}*")):
            return layout
    names = " nor ".join(layout.train_file for layout in LAYOUTS.values())
    raise UserError(f"{folder} has neither {names} (nor one of them as .gz); `{get_command}` gets it.")


def read_file(path: Path, layout: Layout) -> Iterator[Chunk]:
    """The rows of a plain or .gz file; errors as in read_rows, and for a cut .gz."""
    with whole_gzip(path), (gzip.open if path.suffix == ".gz" else open)(path, "rb") as stream:
        yield from read_rows(limited_lines(stream, path), str(path), layout)


def read_rows(lines: Iterable[bytes], file: str, layout: Layout) -> Iterator[Chunk]:
    """The rows without blank lines, and without comments before the first row.

    Raises: UserError naming `file` and line for a wrong number of fields and for what is no text.
    """
    rows, empty = _fields(lines, file, len(layout.columns)), True
    while part := list(islice(rows, CHUNK_ROWS)):
        empty = False
        numbers, fields = zip(*part, strict=True)
        yield Chunk(file, numbers, dict(zip(layout.columns, zip(*fields, strict=True), strict=True)))
    check(not empty, f"{file} has no rows; expected those of {layout.train_file}.")


def _fields(lines: Iterable[bytes], file: str, expected: int) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of each row."""
    number, in_rows = 0, False
    try:
        for number, raw in enumerate(lines, 1):
            line = text_of(raw, "ascii").strip()
            if not line or (line.startswith("|") and not in_rows):
                continue
            in_rows = True
            fields = [field.strip() for field in line.split(",")]
            if len(fields) != expected:
                raise UserError(
                    f"{file}, line {number}: found {len(fields)} fields separated by commas, expected {expected}. "
                    "If it is the last line, the file is cut: get it again; else correct or remove the line."
                )
            yield number, fields
    except ValueError as error:
        raise UserError(f"{file}, line {number}: found {error}. Correct the file.") from error
