"""To which split a row belongs. N: rows, K: tasks."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.data.data_module import SPLIT_SEED, SPLITS
from common.errors import UserError, check
from data.schema import ColumnSplit, Description

FOLDS = 10

Splits = dict[str, np.ndarray]  # row numbers int32, by split


def split_rows(
    description: Description,
    parts: Mapping[str, int],
    labels: np.ndarray,
    times: np.ndarray | None,
    texts: pa.ChunkedArray | None,
    split: str,
    name: str,
) -> tuple[Splits, str]:
    """Row numbers of each split, without rows that have no label; and how they were chosen.

    parts: rows of each file ("all", or one per split); labels (N, K), nan if unknown; times (N,); texts (N,) of the
    column that says the split, if one does; split: "time", "random" or "official", if the description does not say.

    Raises: UserError naming the table if there are too few rows.
    """
    has_label = ~np.isnan(labels).all(1)
    labelled = np.flatnonzero(has_label).astype(np.int32)
    own, seed = description.split, f"(seed {SPLIT_SEED})"
    if "all" not in parts:
        splits = {part: found[has_label[found]] for part, found in file_split(parts, split == "official").items()}
        how = "a fifth of the training rows validates" if split == "official" else "test rows split 1:1"
        protocol = "split by given files" if "val" in parts else f"published files, {how} {seed}"
    elif isinstance(own, ColumnSplit):
        assert texts is not None
        known = {text: i for i, part in enumerate(SPLITS) for text in getattr(own, part)}
        place = pc.index_in(texts, value_set=pa.array(known)).fill_null(-1).to_numpy()
        if len(others := np.flatnonzero(place < 0)):
            found, expected = texts[others[0]], ", ".join(map(repr, known))
            where = f"{name}, column {own.column}: found {str(found)!r} in row {others[0] + 1:,}"
            raise UserError(f'{where}, which "split" lacks: {expected}.')
        codes = np.array(list(known.values()))[place]
        splits = {part: labelled[codes[labelled] == i] for i, part in enumerate(SPLITS)}
        protocol = f"split by column {own.column!r}"
    else:
        check(len(labelled) >= 10, f"{name}: found {len(labelled)} rows with a label; a split needs at least 10.")
        if (own.by if own else split) == "time":
            # equal times stay in file order, which is also the order if there is no time column
            order = labelled if times is None else labelled[np.argsort(times[labelled], kind="stable")]
            splits, protocol = time_split(order), "time split"
        else:
            classes = np.nan_to_num(labels[labelled, 0]).astype(np.uint8)
            most = int(np.bincount(classes).max())
            check(most >= 10, f"{name}: found at most {most} rows of one class; a random split needs at least 10.")
            splits = {part: labelled[found] for part, found in random_split(classes).items()}
            protocol = f"random 8:1:1 split {seed}"
    counts = ", ".join(f"{part} {len(rows):,}" for part, rows in splits.items())
    check(all(map(len, splits.values())), f"{name}: the split has rows {counts}; each needs at least 1.")
    return splits, protocol


def time_split(order: np.ndarray) -> Splits:
    """The first 6/7 of the rows in `order` for training, then half of the rest for validation, half for test."""
    count = len(order)
    train = count * 6 // 7
    return dict(zip(SPLITS, np.split(order, [train, train + (count - train) // 2]), strict=True))


def random_split(label: np.ndarray) -> Splits:
    """Stratified tenths: the first for test, the second for validation, the others for training (BARS Criteo_x4).

    The folds of StratifiedKFold(10, shuffle=True, random_state=2018) in scikit-learn 0.19 (rewritten in 0.22): a KFold
    per class, all shuffled by one generator.
    """
    rng = np.random.RandomState(SPLIT_SEED)
    folds = np.empty(len(label), np.int8)
    for value in np.unique(label):
        rows = np.flatnonzero(label == value)
        order = np.arange(max(len(rows), FOLDS))
        rng.shuffle(order)
        for fold, part in enumerate(np.array_split(order, FOLDS)):  # the first parts have one row more
            folds[rows[part[part < len(rows)]]] = fold
    parts = [np.flatnonzero(folds > 1), np.flatnonzero(folds == 1), np.flatnonzero(folds == 0)]
    return {name: part.astype(np.int32) for name, part in zip(SPLITS, parts, strict=True)}


def file_split(counts: Mapping[str, int], official: bool = False) -> Splits:
    """Rows of files per split, read in the order train, val, test.

    Without a "val" file, test rows are split 1:1, or, if official, a random fifth of the training rows validates: the
    sizes of Gorishniy et al. 2021 on Adult, 26,048, 6,513 and 16,281 rows.
    """
    train, val, test = (counts.get(name, 0) for name in SPLITS)
    rows, rng = np.arange(train + val + test, dtype=np.int32), np.random.default_rng(SPLIT_SEED)
    parts = np.split(rows, [train, train + val])
    if official and not val:
        order = rng.permutation(train)
        chosen, rest = np.split(order, [-(-train // 5)])
        parts[:2] = rows[np.sort(rest)], rows[np.sort(chosen)]
    elif not val:
        parts[1:] = [rows[train + half] for half in np.array_split(rng.permutation(test), 2)]
    return dict(zip(SPLITS, parts, strict=True))
