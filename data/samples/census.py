"""The built-in sample in the format of Census-Income (KDD), generated from planted, related tasks.

The tasks share two hidden factors, career and household, with different weights. Both include effects of pairs of
columns and non-monotonic effects of numbers, which a linear model misses.
"""

from functools import partial
from pathlib import Path

import numpy as np

from common.data.cache import build_once
from data.schema import Description, Label

TRAIN_ROWS, TEST_ROWS = 80_000, 20_000
SEED = 1994
# columns with an effect, and their values from frequent to rare; all other columns are noise
TEXTS = {
    "occupation": [
        "Not in universe", "Adm support including clerical", "Professional specialty", "Executive admin and managerial",
        "Other service", "Sales", "Precision production craft & repair", "Machine operators assmblrs & inspctrs",
    ],
    "industry": [
        "Not in universe or children", "Retail trade", "Manufacturing-durable goods", "Education", "Construction",
        "Finance insurance and real estate", "Business and repair services", "Public administration",
    ],
    "class of worker": ["Not in universe", "Private", "Self-employed-not incorporated", "Local government", "?"],
    "household detail": [
        "Householder", "Spouse of householder", "Nonfamily householder", "Child 18+ never marr Not in a subfamily",
        "Secondary individual", "Other Rel 18+ ever marr not in subfamily",
    ],
    "tax filer status": ["Nonfiler", "Joint both under 65", "Single", "Joint both 65+", "Head of household"],
    "sex": ["Female", "Male"],
}  # fmt: skip
NOISE_TEXTS, NOISE_FREQUENCY = ["Not in universe", "Yes", "No", "?"], [0.6, 0.2, 0.15, 0.05]


def census_sample(description: Description, train_rows: int = TRAIN_ROWS, test_rows: int = TEST_ROWS) -> Path:
    """Folder with census-income.data, census-income.test and true_probability.npy (rows of both, tasks)."""
    settings = {"train_rows": train_rows, "test_rows": test_rows, "columns": list(description.columns)}
    write = partial(_write, description, train_rows, test_rows)
    return build_once("sample-census", [], settings, write, code=[__name__])


def _write(description: Description, train_rows: int, test_rows: int, target: Path) -> None:
    rng, rows = np.random.default_rng(SEED), train_rows + test_rows
    rank = {name: rng.choice(len(texts), rows, p=_frequencies(len(texts))) for name, texts in TEXTS.items()}
    numbers = description.of_role("dense")
    dense = {name: np.where(rng.random(rows) < 0.9, 0, rng.integers(1, 2000, rows)) for name in numbers}
    dense["age"] = rng.integers(16, 91, rows)
    dense["weeks worked"] = np.where(rng.random(rows) < 0.4, 0, np.minimum(52, rng.geometric(0.03, rows) + 8))
    probability = _probabilities(rank, dense, rng)

    table = {name: np.array(NOISE_TEXTS)[rng.choice(4, rows, p=NOISE_FREQUENCY)] for name in description.columns}
    table |= {name: np.array(texts)[rank[name]] for name, texts in TEXTS.items()} | dense
    table["instance weight"] = rng.uniform(100, 3000, rows).round(2)
    for task in probability:
        name = description.tasks[task]
        label = description.columns[name]
        assert isinstance(label, Label)
        yes, no = (rng.choice(sorted(texts), rows) for texts in (label.positive, label.negative or ()))
        table[name] = np.where(rng.random(rows) < probability[task], yes, no)
    lines = [
        ", ".join(map(str, row)) + "\n" for row in zip(*(table[name] for name in description.columns), strict=True)
    ]
    (target / "census-income.data").write_text("".join(lines[:train_rows]))
    (target / "census-income.test").write_text("".join(lines[train_rows:]))
    np.save(target / "true_probability.npy", np.stack([probability[task] for task in description.tasks], 1))


def _probabilities(rank: dict[str, np.ndarray], dense: dict[str, np.ndarray], rng: np.random.Generator) -> dict:
    def effect(*names: str) -> np.ndarray:
        """A planted effect for each value of a column, or for each combination of values of several columns."""
        return rng.normal(size=[len(TEXTS[name]) for name in names])[tuple(rank[name] for name in names)]

    prime = 1 - ((dense["age"] - 45) / 25) ** 2  # an inverted U
    career = effect("occupation") + effect("industry") / 2 + 1.5 * effect("class of worker", "sex")
    career += prime + effect("sex") * dense["weeks worked"] / 26
    household = effect("household detail") + 1.5 * effect("tax filer status", "sex") - (dense["age"] - 30) / 15
    logits = {
        "income": -3.5 + 1.6 * career - 0.4 * household + 0.2 * np.log1p(dense["capital gains"]),
        "never_married": -0.5 - 0.3 * career + 2.0 * household,
        "education": -2.5 + 1.2 * career - 0.5 * household + effect("industry"),
    }
    return {task: 1 / (1 + np.exp(-logit)) for task, logit in logits.items()}


def _frequencies(distinct: int) -> np.ndarray:
    weight = 1 / np.arange(1, distinct + 1) ** 0.7
    return weight / weight.sum()
