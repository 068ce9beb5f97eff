"""Row numbers of the training, validation and test rows of a table."""

import numpy as np

from common.errors import check
from data.table_schema import SPLITS

RANDOM_SEED = 2018  # of the published split, and of the halves of a test file; not that of the training run
FOLDS = 10

Rows = dict[str, np.ndarray]


def time_split(order: np.ndarray) -> Rows:
    """The first 6/7 of the rows in `order` train, then half validate, half test."""
    count = len(order)
    train = count * 6 // 7
    return dict(zip(SPLITS, np.split(order, [train, train + (count - train) // 2]), strict=True))


def random_split(label: np.ndarray) -> Rows:
    """Stratified tenths: the first tests, the second validates, the others train (BARS Criteo_x4).

    The folds of StratifiedKFold(10, shuffle=True, random_state=2018) of scikit-learn 0.19 (rewritten in 0.22): a KFold
    for each class, all shuffled by one generator.
    """
    rng = np.random.RandomState(RANDOM_SEED)
    folds = np.empty(len(label), np.int8)
    for value in np.unique(label):
        rows = np.flatnonzero(label == value)
        order = np.arange(max(len(rows), FOLDS))
        rng.shuffle(order)
        for fold, part in enumerate(np.array_split(order, FOLDS)):  # the first ones have a row more
            folds[rows[part[part < len(rows)]]] = fold
    parts = [np.flatnonzero(folds > 1), np.flatnonzero(folds == 1), np.flatnonzero(folds == 0)]
    return {name: part.astype(np.int32) for name, part in zip(SPLITS, parts, strict=True)}


def file_split(counts: dict[str, int]) -> Rows:
    """Rows of given files, read in the order train, val, test; without a "val" the test rows are split 1:1."""
    if "val" in counts:
        ends = np.cumsum([counts[name] for name in SPLITS])
        return dict(zip(SPLITS, np.split(np.arange(ends[-1], dtype=np.int32), ends[:-1]), strict=True))
    train, test = counts["train"], counts["test"]
    halves = np.array_split(np.random.default_rng(RANDOM_SEED).permutation(test), 2)
    return {"train": np.arange(train, dtype=np.int32), "val": train + halves[0], "test": train + halves[1]}


def check_split(rows: Rows, name: str) -> None:
    """Raise UserError where a split has no rows."""
    counts = ", ".join(f"{split} {len(part):,}" for split, part in rows.items())
    check(all(len(part) for part in rows.values()), f"{name}: the split has the rows {counts}; each needs some.")
