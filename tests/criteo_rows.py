"""Raw Criteo rows for tests, and a plain parser to compare with."""

from pathlib import Path

import numpy as np

from data.criteo_data import CRITEO

DENSE, CATEGORICAL = CRITEO.of_role("dense"), CRITEO.of_role("categorical")
MISSING_DENSE = -(2**31)  # in the result of parse_plainly


def make_lines(rng: np.random.Generator, rows: int, labelled: bool = True, distinct: int = 50) -> list[str]:
    """Lines without line ends, with missing and negative numbers, missing categories and numbers of every size."""
    lines = []
    for _ in range(rows):
        dense = [str(int(rng.integers(-2, 10 ** int(rng.integers(1, 10))))) for _ in DENSE]
        categorical = [f"{int(rng.integers(distinct)) * 85899345:08x}" for _ in CATEGORICAL]
        fields = [field if rng.random() > 0.2 else "" for field in dense + categorical]
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
        "dense": [[int(x) if x else MISSING_DENSE for x in row[labelled : 13 + labelled]] for row in fields],
        "categorical": [row[13 + labelled :] for row in fields],
    }
