"""The random split is the published one (BARS Criteo_x4), made by scikit-learn 0.19."""

import numpy as np
import pytest

from common.errors import UserError
from data.criteo_data import ClickDataModule
from data.table.splits import file_split, random_split
from deepfm.train import DATA
from tests.criteo_rows import make_lines, write_lines


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


def test_the_official_split_keeps_the_test_file_whole():
    """The sizes that Gorishniy et al. (2021) have on Adult."""
    rows = file_split({"train": 32_561, "test": 16_281}, official=True)
    assert {part: len(found) for part, found in rows.items()} == {"train": 26_048, "val": 6_513, "test": 16_281}
    assert rows["test"].tolist() == list(range(32_561, 48_842))
    assert sorted(np.concatenate([rows["train"], rows["val"]]).tolist()) == list(range(32_561))
    assert 0.45 < (rows["val"] < 16_280).mean() < 0.55  # from all of the file


def test_the_official_split_needs_a_test_file(tmp_path, rng):
    write_lines(tmp_path / "criteo" / "train.txt", make_lines(rng, 50))
    data = ClickDataModule(**DATA | {"data_root": str(tmp_path), "split": "official"}, seed=0)
    with pytest.raises(UserError, match=r"train.txt has no test file; set split to 'time' or 'random'"):
        data.setup()
