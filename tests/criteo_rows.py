"""Raw Criteo rows for tests, and a plain parser to compare with."""

from pathlib import Path

import numpy as np

from data.criteo_raw import CATEGORIES, MISSING_NUMBER, NUMBERS, Rows


def make_lines(rng: np.random.Generator, rows: int, labelled: bool = True, distinct: int = 50) -> list[str]:
    """Lines without their end, with missing and negative numbers, missing categories and every size of number."""
    lines = []
    for _ in range(rows):
        numbers = [str(int(rng.integers(-2, 10 ** int(rng.integers(1, 10))))) for _ in NUMBERS]
        categories = [f"{int(rng.integers(distinct)) * 85899345:08x}" for _ in CATEGORIES]
        fields = [field if rng.random() > 0.2 else "" for field in numbers + categories]
        lines.append("\t".join([str(rng.integers(2))] * labelled + fields))
    return lines


def write_lines(path: Path, lines: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(line + "\n" for line in lines).encode())
    return path


def parse_plainly(lines: list[str], labelled: bool = True) -> dict[str, list]:
    fields = [line.split("\t") for line in lines]
    assert all(len(row) == 39 + labelled for row in fields)
    return {
        "label": [int(row[0]) for row in fields] if labelled else None,
        "numbers": [[int(x) if x else MISSING_NUMBER for x in row[labelled : 13 + labelled]] for row in fields],
        "categories": [[int(x, 16) if x else 0 for x in row[13 + labelled :]] for row in fields],
        "missing": [[x == "" for x in row[13 + labelled :]] for row in fields],
    }


def as_lists(rows: Rows) -> dict[str, list]:
    return {
        "label": None if rows.label is None else rows.label.tolist(),
        "numbers": np.stack(rows.numbers, 1).tolist(),
        "categories": np.stack(rows.categories, 1).tolist(),
        "missing": np.stack(rows.missing, 1).tolist(),
    }
