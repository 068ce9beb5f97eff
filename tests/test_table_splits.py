"""The random split is the published one (BARS Criteo_x4), made by scikit-learn 0.19."""

import numpy as np
import pytest
from data.table_rows import random_split


def published_folds(label: list[int]) -> np.ndarray:
    """The fold of each row, by the loops in StratifiedKFold(10, shuffle=True, random_state=2018), scikit-learn 0.19."""
    rng, label = np.random.RandomState(2018), np.array(label)
    tests = []
    for value in sorted(set(label.tolist())):
        count = max(int((label == value).sum()), 10)
        indices = np.arange(count)
        rng.shuffle(indices)
        sizes = [count // 10 + (fold < count % 10) for fold in range(10)]
        ends = np.cumsum(sizes)
        tests.append((value, [indices[end - size : end] for size, end in zip(sizes, ends, strict=True)]))
    folds = np.zeros(len(label), int)
    for fold in range(10):
        for value, parts in tests:
            of_class = folds[label == value]
            of_class[parts[fold][parts[fold] < len(of_class)]] = fold
            folds[label == value] = of_class
    return folds


@pytest.mark.parametrize("rows", [20, 137, 1_000])
def test_folds_are_those_of_the_loop(rng, rows):
    label = (rng.random(rows) < 0.3).astype(np.uint8)
    folds, found = published_folds(label.tolist()), random_split(label)
    for part, expected in (("test", folds == 0), ("val", folds == 1), ("train", folds > 1)):
        assert found[part].tolist() == np.flatnonzero(expected).tolist()


def test_sizes_are_the_published_ones():
    label = np.zeros(45_840_617, np.uint8)
    label[:11_745_438] = 1
    rows = random_split(label)
    assert {name: len(part) for name, part in rows.items()} == {
        "train": 36_672_493,
        "val": 4_584_062,
        "test": 4_584_062,
    }
    clicks = {name: int(label[part].sum()) for name, part in rows.items()}
    assert clicks == {"train": 9_396_350, "val": 1_174_544, "test": 1_174_544}
