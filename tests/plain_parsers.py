"""Small raw files of every format, a plain parser of each for comparison, and the reader under test.

A plain parser takes the bytes of a file and returns its rows; it raises ValueError if the file must be refused.
"""

import csv
import gzip
import io
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from data.census_schema import ADULT, CENSUS_INCOME_KDD, Release
from data.criteo_schema import CRITEO
from data.movie_raw import GENRES_100K, ML_1M, ML_100K, ML_CSV, read_movies, read_ratings, read_users
from data.table_reader import Rows, read_stream
from data.table_schema import Column, Schema
from data.table_values import read_labels, read_numbers, read_texts

from tests.criteo_rows import make_lines

CONTROL = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]")
BOM = b"\xef\xbb\xbf"
FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Form:
    """One kind of file. lines: valid ones, without line ends; header: how many of them are not rows."""

    name: str
    lines: tuple[bytes, ...]
    separator: bytes
    read: Callable[[Path], list]
    plain: Callable[[bytes], list]
    header: int = 0


def require(condition: object) -> None:
    if not condition:
        raise ValueError


def whole(text: str, digits: int = 9) -> int:
    require(re.fullmatch(rf"[0-9]{{1,{digits}}}", text))
    return int(text)


def split_lines(content: bytes) -> list[bytes]:
    """Lines without LF or CRLF."""
    require(content)
    return [line.removesuffix(b"\r") for line in content.removesuffix(b"\n").split(b"\n")]


def table(schema: Schema, path: Path, labelled: bool = True) -> list[tuple]:
    """Rows as the table reader returns them: texts and numbers of the inputs, labels."""

    def rows_of(rows: Rows) -> list[tuple]:
        columns = [as_optional(read_numbers(rows, column).tolist()) for column in schema.of_role("dense")]
        columns += [texts_of(rows, column.name, schema) for column in schema.of_role("categorical")]
        if labelled:
            columns += read_labels(rows, schema, list(schema.tasks)).T.tolist()
        return list(zip(*columns, strict=True))

    with open(path, "rb") as file:
        stream = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
        return [row for part in read_stream(stream, str(path), schema, rows_of, not labelled) for row in part]


def texts_of(rows: Rows, name: str, schema: Schema) -> list[str | None]:
    """A column's texts as written in the file."""
    codes, texts, _ = read_texts(rows, Column(name, "categorical"), schema)
    entries = [*texts.to_pylist(), None]
    return [entries[code] for code in codes.tolist()]


def as_optional(numbers: list[float]) -> list:
    return [None if math.isnan(value) else value for value in numbers]


def criteo(labelled: bool) -> Form:
    def plain(content: bytes) -> list:
        lines = [line.decode("utf-8") for line in split_lines(content.removeprefix(BOM))]
        rows = []
        for line in lines:
            require(not CONTROL.search(line.encode()))
            fields = line.split("\t")
            require(len(fields) == 39 + labelled)
            label = [float(fields.pop(0) == "1")] if labelled and fields[0] in ("0", "1") else []
            require(len(label) == labelled)
            require(all(re.fullmatch("(-?[0-9]+)?", field, re.ASCII) for field in fields[:13]))
            numbers = [int(field) if field else None for field in fields[:13]]
            require(all(number is None or -(2**31) <= number < 2**31 for number in numbers))
            rows.append((*numbers, *(field or None for field in fields[13:]), *label))
        return rows

    lines = make_lines(np.random.default_rng(0), 6, labelled)
    name = "criteo-train" if labelled else "criteo-test"
    return Form(name, encoded(lines, "ascii"), b"\t", lambda path: table(CRITEO, path, labelled), plain)


def census(release: Release) -> Form:
    schema = release.schema

    def plain(content: bytes) -> list:
        rows = []
        for line in split_lines(content.removeprefix(BOM)):
            if line.strip() and not (line.strip().startswith(b"|") and not rows):
                require(not CONTROL.search(line))
                rows.append(row([field.strip(" \t") for field in line.decode("utf-8").split(",")]))
        require(rows)
        return rows

    def row(fields: list[str]) -> tuple:
        require(len(fields) == len(schema.names))
        by_name = dict(zip(schema.names, fields, strict=True))
        numbers = [number(by_name[column.name]) for column in schema.of_role("dense")]
        texts = [by_name[column.name] for column in schema.of_role("categorical")]
        labels = []
        for task in schema.tasks.values():
            text = by_name[task.column].rstrip(".")
            require((text in task.positive) != (text in task.negative))
            labels.append(float(text in task.positive))
        return *numbers, *(None if text == "?" else text for text in texts), *labels

    def number(text: str) -> float | None:
        if text == "?":
            return None
        require(re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text))
        require(abs(float(text)) <= FLOAT32_MAX)
        return float(text)

    rng, lines = np.random.default_rng(0), []
    label_texts = {task.column: sorted(task.positive + task.negative) for task in schema.tasks.values()}
    for _ in range(5):
        fields = {name: rng.choice(["Not in universe", "?", "Yes", "94"]) for name in schema.names}
        fields |= {column.name: str(rng.integers(100)) for column in schema.of_role("dense", "weight", "excluded")}
        fields |= {name: rng.choice(texts) for name, texts in label_texts.items()}
        lines.append(", ".join(fields.values()) + "." * (release is CENSUS_INCOME_KDD))
    return Form(release.name, encoded(lines, "ascii"), b",", lambda path: table(schema, path), plain)


def ratings(release, separator: str) -> Form:
    def read(path: Path) -> list:
        return list(zip(*(column.tolist() for column in read_ratings(path, release).values()), strict=True))

    def plain(content: bytes) -> list:
        lines = [line.decode("latin-1") for line in split_lines(content)]
        if release is ML_CSV:
            require(lines.pop(0) == "userId,movieId,rating,timestamp" and '"' not in "".join(lines))
            rows = csv_rows(lines)
            require(not any("\r" in line for line in lines))
        else:
            rows = [line.split(separator) for line in lines]
        require(rows and all(len(row) == 4 for row in rows))
        values = r"0\.5|[1-4](\.[05])?|5(\.0)?" if release is ML_CSV else "[1-5]"
        require(all(re.fullmatch(values, row[2]) for row in rows))
        return [(whole(row[0]), whole(row[1]), float(row[2]), whole(row[3], 12)) for row in rows]

    values = ["5", "1", "3", "4"] if release is not ML_CSV else ["5.0", "0.5", "3", "4.5"]
    lines = [separator.join(map(str, (user, movie, rating, 978_300_760 + user)))
             for user, movie, rating in zip((7, 3, 7, 600), (10, 2000, 30, 30), values, strict=True)]  # fmt: skip
    header = [release.header.decode()] if release.header else []
    return Form(release.ratings_file, encoded(header + lines, "ascii"), separator.encode(), read, plain, len(header))


def movies(release, separator: str, lines: list[str]) -> Form:
    def read(path: Path) -> list:
        return [(number, *rest) for number, rest in read_movies(path, release).items()]

    def plain(content: bytes) -> list:
        rows = text_table(content, release.encoding, separator)
        if release is ML_CSV:
            require(rows.pop(0) == ["movieId", "title", "genres"])
        if release is ML_100K:
            require(all(len(row) == 24 and set(row[5:]) <= {"0", "1"} for row in rows))
            genres = [[GENRES_100K[i] for i in range(19) if row[5 + i] == "1"] for row in rows]
        else:
            require(all(len(row) == 3 for row in rows))
            genres = [row[2].split("|") if row[2] != "(no genres listed)" or release is ML_1M else [] for row in rows]
            require(all("" not in names for names in genres))
        return distinct([(whole(row[0]), row[1], names) for row, names in zip(rows, genres, strict=True)])

    return Form(release.movies_file, encoded(lines, release.encoding), separator.encode(), read, plain,
                int(release is ML_CSV))  # fmt: skip


def users(release, separator: str, lines: list[str]) -> Form:
    def read(path: Path) -> list:
        return [(number, *features) for number, features in read_users(path, release).items()]

    def plain(content: bytes) -> list:
        rows = text_table(content, release.encoding, separator)
        require(all(len(row) == 5 for row in rows))
        if release is ML_1M:
            return distinct([(whole(row[0]), row[1], str(whole(row[2])), row[3]) for row in rows])
        groups = [[group for group in ("1", "18", "25", "35", "45", "50", "56")
                   if int(group) <= max(1, whole(row[1]))][-1] for row in rows]  # fmt: skip
        return distinct([(whole(row[0]), row[2], group, row[3]) for row, group in zip(rows, groups, strict=True)])

    return Form(release.users_file, encoded(lines, release.encoding), separator.encode(), read, plain)


def text_table(content: bytes, encoding: str, separator: str) -> list[list[str]]:
    """Fields of a file of texts."""
    require(not any(CONTROL.search(line) for line in split_lines(content)))
    text = content.decode(encoding)
    if separator != ",":
        return [line.removesuffix("\r").split(separator) for line in text.removesuffix("\n").split("\n")]
    rows = csv_rows(io.StringIO(text, newline=""))
    require(not any("\n" in field for row in rows for field in row))  # a title has one line
    return rows


def csv_rows(lines: Iterable[str]) -> list[list[str]]:
    try:
        return list(csv.reader(lines, strict=True))
    except csv.Error as error:
        raise ValueError from error


def distinct(rows: list[tuple]) -> list[tuple]:
    """The rows; refused if two have the same id."""
    require(rows and len({row[0] for row in rows}) == len(rows))
    return rows


def encoded(lines: list[str], encoding: str) -> tuple[bytes, ...]:
    return tuple(line.encode(encoding) for line in lines)


ITEMS = [
    f"{number}|{title}|01-Jan-1995||http://x/?{number}|{'|'.join(flags)}"
    for number, title, flags in (
        (10, "Léon (1994)", "0100000010000000000"),
        (20, "A: B (1995)", "0000010000000000000"),
        (300, "unknown", "1000000000000000000"),
    )
]
TITLES = [
    "movieId,title,genres",
    "10,Léon (1994),Action|Drama",
    '20,"A, ""B"" (1995)",Comedy',
    "30,東京物語 (1953),(no genres listed)",
]
FORMS = [
    criteo(True),
    criteo(False),
    census(CENSUS_INCOME_KDD),
    census(ADULT),
    ratings(ML_1M, "::"),
    movies(ML_1M, "::", ["10::Léon (1994)::Action|Drama", "20::A: B (1995)::Comedy", "3952::Été (2000)::Drama"]),
    users(ML_1M, "::", ["3::F::1::10::48067", "7::M::56::16::70072-12", "600::M::25::0::0"]),
    ratings(ML_100K, "\t"),
    movies(ML_100K, "|", ITEMS),
    users(ML_100K, "|", ["3|17|F|writer|48067", "7|73|M|none|V3N4P", "60|25|M|doctor|"]),
    ratings(ML_CSV, ","),
    movies(ML_CSV, ",", TITLES),
]
