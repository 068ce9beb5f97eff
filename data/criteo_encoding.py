"""From raw Criteo columns to what a model takes; everything is fitted on training rows only.

N: rows, F: categorical fields. Ids of a field: 0 unseen or rare, 1 missing, then its vocabulary in order of value.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.criteo_raw import CATEGORIES, MISSING_NUMBER, NUMBERS, Rows
from data.parallel import ordered_map

UNSEEN, MISSING, FIRST_ID = 0, 1, 2
NUMBER_FORMS = ("log", "log+missing", "bucket")


def log_numbers(raw: np.ndarray) -> np.ndarray:
    """log(1 + max(x, 0)), missing 0: int32 -> float32."""
    return np.log1p(np.maximum(raw, 0).astype(np.float32))  # MISSING_NUMBER is negative, so it becomes 0 too


def bucket_numbers(raw: np.ndarray) -> np.ndarray:
    """floor(ln(x)^2) for x > 2, else x (BARS Criteo x4): int32 -> bucket as uint32."""
    logarithm = np.log(np.maximum(raw, 1).astype(np.float64))
    return np.where(raw > 2, np.floor(logarithm**2).astype(np.int32), raw).astype(np.uint32)


class CriteoEncoder:
    """Vocabularies and scaling of the training rows.

    numbers: "log": 13 logarithms over their standard deviation, beside 26 fields; "log+missing": the same and
    13 times 0 or 1 for missing; "bucket": no numbers, 39 fields.
    """

    def __init__(self, numbers: str, vocabularies: list[np.ndarray], scale: np.ndarray):
        self.numbers, self.vocabularies, self.scale = numbers, vocabularies, scale
        self.fields = (NUMBERS if numbers == "bucket" else []) + CATEGORIES

    @classmethod
    def fit(
        cls, open_rows: Callable[[], Rows], train: slice | np.ndarray, numbers: str, min_count: int
    ) -> "CriteoEncoder":
        """Fit on the rows `train` of what `open_rows()` maps (anew for each column: only those in use are mapped)."""

        def vocabulary(name: str) -> np.ndarray:
            values, missing = raw_column(open_rows(), name)
            distinct, counts = np.unique(values[train][~missing[train]], return_counts=True)
            return distinct[counts >= min_count]

        def deviation(i: int) -> float:
            return log_numbers(open_rows().numbers[i][train]).std(dtype=np.float64)

        fields = (NUMBERS if numbers == "bucket" else []) + CATEGORIES
        bar = tqdm(ordered_map(vocabulary, fields), "Fitting vocabularies", len(fields), unit="field")
        vocabularies = list(bar)
        scale = np.array(list(ordered_map(deviation, range(0 if numbers == "bucket" else len(NUMBERS)))))
        return cls(numbers, vocabularies, np.where(scale > 0, scale, 1.0))  # a constant column stays as it is

    @property
    def num_numbers(self) -> int:
        return len(self.scale) * (2 if self.numbers == "log+missing" else 1)

    @property
    def field_sizes(self) -> list[int]:
        """Number of ids of each field, those for unseen and missing included."""
        return [FIRST_ID + len(vocabulary) for vocabulary in self.vocabularies]

    def encode(self, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
        """Raw rows -> (numbers (N, num_numbers) float32, ids (N, F) int32)."""
        ids = np.empty((len(rows), len(self.fields)), np.int32)
        for i, (name, vocabulary) in enumerate(zip(self.fields, self.vocabularies, strict=True)):
            ids[:, i] = _ids(vocabulary, *raw_column(rows, name))
        if self.numbers == "bucket":
            return np.empty((len(rows), 0), np.float32), ids
        raw = np.stack(rows.numbers, 1)
        # not centred: a missing number, 0, then adds nothing to a product with its value
        scaled = (log_numbers(raw) / self.scale).astype(np.float32)
        return (np.hstack([scaled, raw == MISSING_NUMBER]) if self.numbers == "log+missing" else scaled), ids

    def state_dict(self) -> dict:
        """What a checkpoint carries: plain values and tensors."""
        joined = np.concatenate(self.vocabularies).view(np.int32)
        return {
            "numbers": self.numbers,
            "vocabulary": torch.from_numpy(joined),
            "sizes": [len(vocabulary) for vocabulary in self.vocabularies],
            "scale": self.scale.tolist(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Tensor | list | str]) -> "CriteoEncoder":
        joined = state["vocabulary"].numpy().view(np.uint32)
        if joined.shape != (sum(state["sizes"]),):
            raise ValueError(f"a vocabulary of the shape {joined.shape} for fields of {sum(state['sizes'])} categories")
        vocabularies = np.split(joined, np.cumsum(state["sizes"])[:-1])
        return cls(state["numbers"], vocabularies, np.array(state["scale"]))


def raw_column(rows: Rows, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Values (N,) uint32 and missing mask (N,) of a field; a number is taken as its bucket."""
    if name in NUMBERS:
        raw = rows.numbers[NUMBERS.index(name)]
        return bucket_numbers(raw), raw == MISSING_NUMBER
    i = CATEGORIES.index(name)
    return rows.categories[i], rows.missing[i]


def _ids(vocabulary: np.ndarray, values: np.ndarray, missing: np.ndarray) -> np.ndarray:
    if len(vocabulary) == 0:
        return np.where(missing, MISSING, UNSEEN)
    order = np.argsort(values)  # sorted values walk through a large vocabulary instead of jumping: 3 times faster
    position = np.empty(len(values), np.int64)
    position[order] = np.searchsorted(vocabulary, values[order])
    found = vocabulary[np.minimum(position, len(vocabulary) - 1)] == values
    return np.where(missing, MISSING, np.where(found, position + FIRST_ID, UNSEEN))
