"""Write any number of raw rows like Criteo's, for measurements of speed and memory.

`python benchmarks/generate_criteo.py FOLDER ROWS` writes FOLDER/criteo/train.txt: the first ROWS rows of a stream of
45,840,617 rows, in which each column has exactly as many distinct values as in the full Kaggle dataset.
"""

import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

FULL_ROWS = 45_840_617
# distinct values of C1-C26 in the full dataset: 33.8 million in total
CARDINALITIES = [1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194]
CARDINALITIES += [27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572]
MISSING_DENSE, MISSING_CATEGORICAL = 0.15, 0.08  # rates
SKEW = 4  # a repeated value is number n * u^SKEW of the n seen so far, with u uniform: few are frequent, most are rare
CLICK_RATE = 0.256
CHUNK = 100_000  # rows written at a time
DIGITS = 6  # of a dense value
HEX = np.frombuffer(b"0123456789abcdef", np.uint8)


def generate(folder: Path, rows: int, seed: int = 0) -> Path:
    """Write folder/criteo/train.txt and return its path."""
    path = folder / "criteo" / "train.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    with open(path, "wb") as file, tqdm(total=rows, unit="row", unit_scale=True, desc="Generating") as bar:
        for start in range(0, rows, CHUNK):
            count = min(CHUNK, rows - start)
            file.write(_chunk(rng, start, count))
            bar.update(count)
    return path


def _chunk(rng: np.random.Generator, start: int, count: int) -> bytes:
    """Text of the rows start to start + count: built with fixed field widths, from which unused bytes are dropped."""
    categorical_text, score = [], np.zeros(count)
    row = start + np.arange(count)
    for column, cardinality in enumerate(CARDINALITIES):
        seen = row * cardinality // FULL_ROWS  # distinct values of the column before this row
        is_new = (row + 1) * cardinality // FULL_ROWS > seen
        value = np.where(is_new, seen, (seen * rng.random(count) ** SKEW).astype(np.int64))
        score += np.sin(value * (column + 1.0)) * (cardinality < 1000) * 0.3  # some signal for a model to find
        hashed = (value * 2_654_435_761 + column * 40_503) % 2**32  # odd factor: a different hash for each value
        text = HEX[(hashed[:, None] >> np.arange(28, -4, -4)) & 15]
        kept = (rng.random(count) >= MISSING_CATEGORICAL) | is_new
        categorical_text.append((text, np.broadcast_to(kept[:, None], text.shape)))
    dense_text = []
    for column in range(13):
        value = np.minimum(np.exp(rng.normal(1 + 0.4 * column, 1.5, count)), 10**DIGITS - 1).astype(np.int64)
        score += 0.1 * (np.log1p(value) - 1 - 0.4 * column)
        powers = 10 ** np.arange(DIGITS - 1, -1, -1)
        digits = value[:, None] // powers
        kept = ((digits > 0) | (powers == 1)) & (rng.random(count) >= MISSING_DENSE)[:, None]
        dense_text.append(((digits % 10 + ord("0")).astype(np.uint8), kept))
    odds = CLICK_RATE / (1 - CLICK_RATE) * np.exp(score - score.mean() - score.var() / 4)
    label = (rng.random(count) < odds / (1 + odds)).astype(np.uint8) + ord("0")
    fields = [(label[:, None], np.ones((count, 1), bool)), *dense_text, *categorical_text]
    parts, masks = [], []
    for i, (text, kept) in enumerate(fields):
        end = ord("\n") if i == len(fields) - 1 else ord("\t")
        parts += [text, np.full((count, 1), end, np.uint8)]
        masks += [kept, np.ones((count, 1), bool)]
    return np.hstack(parts)[np.hstack(masks)].tobytes()


if __name__ == "__main__":
    generate(Path(sys.argv[1]), int(sys.argv[2]))
