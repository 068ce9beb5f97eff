"""The built-in sample in Criteo's format, generated from a planted model, so that the best possible score is known.

logit = bias + effects of numbers and categories + sum over field pairs of <v_i, v_j>: a factorization machine, in which
a number's vector is scaled by its value. Only the fields in PAIRED interact; in long-tailed fields only the frequent
values have first-order effects.
"""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from common.data.cache import build_once
from data.schema import Format

ROWS, UNLABELLED_ROWS = 220_000, 10_000
SEED = 2014
# distinct values of C1-C26: as in the full dataset, except where that is far too many for so few rows
CARDINALITIES = [300, 500, 60000, 600, 305, 24, 600, 300, 3, 500, 400, 70000, 300]
CARDINALITIES += [27, 500, 600, 10, 400, 300, 4, 65000, 18, 15, 500, 105, 400]
MISSING_RATE = {"I1": 0.45, "I4": 0.22, "I6": 0.22, "I10": 0.45, "I12": 0.77} | {
    "C3": 0.03, "C6": 0.12, "C19": 0.44, "C20": 0.44, "C22": 0.76, "C25": 0.44, "C26": 0.44,
}  # fmt: skip
PAIRED = ["C9", "C17", "C20", "C23"]
PAIR_SCALE, FIRST_ORDER_SCALE, NUMBER_SCALE = 0.53, 0.1, 0.05  # standard deviations, in logits per pair or effect
TAIL = 1.3  # the frequency of the r-th most frequent value of a field is proportional to 1 / (r + 3)^TAIL
GOLDEN_ANGLE = 2.399963
HEAD = 20  # this many most frequent values of a field have a first-order effect
BIAS = -1.2  # for a click rate of about 0.25


def criteo_sample(form: Format, rows: int = ROWS) -> Path:
    """Folder with train.txt, test.txt (without labels) and true_probability.npy (rows of train.txt, 1)."""
    settings = {"rows": rows, "columns": list(form.columns)}
    return build_once("sample-criteo", [], settings, partial(_write, form, rows), code=[__name__])


def _write(form: Format, rows: int, target: Path) -> None:
    rng, count = np.random.default_rng(SEED), rows + UNLABELLED_ROWS
    logit, planted, table = np.full(count, BIAS), {}, {}

    def vectors(number: int) -> np.ndarray:
        """Planted vectors in the plane, in evenly spread directions; <v_i, v_j> has standard deviation PAIR_SCALE."""
        angle = rng.uniform(0, 2 * np.pi) + GOLDEN_ANGLE * np.arange(number)
        return np.sqrt(PAIR_SCALE * np.sqrt(2)) * np.stack([np.cos(angle), np.sin(angle)], 1)

    for i, name in enumerate(form.of_role("dense")):
        raw = np.floor(np.exp(rng.normal(0.5 + 0.4 * i, 1.2, count))).astype(np.int64) - (3 if name == "I2" else 0)
        raw = np.maximum(raw, -2)
        missing = rng.random(count) < MISSING_RATE.get(name, 0)
        value = np.where(missing, 0, np.log1p(np.maximum(raw, 0)))
        value = (value - value.mean()) / value.std()
        logit += NUMBER_SCALE * rng.normal() * value
        planted[name] = value[:, None] * vectors(1)
        table[name] = np.where(missing, "", raw.astype(str))
    for name, distinct in zip(form.of_role("categorical"), CARDINALITIES, strict=True):
        frequency = 1 / (np.arange(distinct) + 3.0) ** TAIL
        rank = rng.choice(distinct, count, p=frequency / frequency.sum())
        rank = np.where(rng.random(count) < MISSING_RATE.get(name, 0), distinct, rank)  # the last rank is "missing"
        effect = np.append(rng.normal(0, FIRST_ORDER_SCALE, distinct) * (np.arange(distinct) < HEAD), 0)
        logit += effect[rank]
        planted[name] = vectors(distinct + 1)[rank]
        names = [f"{value:08x}" for value in rng.choice(2**32, distinct, replace=False)]
        table[name] = np.array([*names, ""], object)[rank]
    v = np.stack([planted[name] for name in PAIRED])  # (fields, rows, 2)
    logit += 0.5 * (v.sum(0) ** 2 - (v**2).sum(0)).sum(1)  # sum_{i<j} <v_i, v_j>, as in Rendle 2010
    probability = 1 / (1 + np.exp(-logit))
    label = (rng.random(count) < probability).astype(int)

    frame = pd.DataFrame(table)
    frame[rows:].to_csv(target / "test.txt", sep="\t", header=False, index=False)
    frame.insert(0, "label", label)
    frame[:rows].to_csv(target / "train.txt", sep="\t", header=False, index=False)
    np.save(target / "true_probability.npy", probability[:rows, None])
