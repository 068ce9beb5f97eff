"""The regression of click models against scikit-learn's behind its own scaler and encoder, on the same raw rows."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from common.training.baselines import click_baselines, tuned_logistic_regression
from data.criteo_data import ClickDataModule
from deepfm.train import DATA

NUMBERS = ["score", "year", "longitude", "balance", "income"]
ROWS = {"train": 4000, "val": 1000, "test": 20_000}
COLUMNS = {"click": {"role": "label", "positive": ["1"]}, "city": {"role": "categorical"}}
COLUMNS |= {name: {"role": "dense"} for name in NUMBERS}


def make_rows(rng: np.random.Generator, count: int, threshold: bool) -> pd.DataFrame:
    """Columns in narrow ranges, negative, or with missing values, and a label that depends on all of them."""
    frame = pd.DataFrame(
        {
            "score": rng.normal(720, 40, count).clip(500, 850).round(),
            "year": rng.integers(1990, 2021, count),
            "longitude": rng.normal(-73.95, 0.03, count).round(5),
            "balance": rng.normal(0, 10, count).round(2),
            "income": np.where(rng.random(count) < 0.3, np.nan, rng.lognormal(10, 1, count).round()),
            "city": rng.choice(["a", "b", "c"], count),
        }
    )
    numbers = frame[NUMBERS].assign(income=np.log(frame["income"]))
    scaled = ((numbers - numbers.mean()) / numbers.std()).fillna(0)
    logit = scaled @ [1.0, -0.7, 0.5, 0.8, 0.3] + (frame["city"] == "a") - 1
    if threshold:
        logit += 3 * (np.abs(scaled["score"]) < 0.5)
    frame["click"] = (rng.random(count) < 1 / (1 + np.exp(-logit))).astype(int)
    return frame


@pytest.mark.parametrize("threshold", [False, True], ids=["linear", "threshold"])
def test_it_is_as_good_as_scikit_learn(tmp_path, rng, threshold):
    rows = {part: make_rows(rng, count, threshold) for part, count in ROWS.items()}
    folder = tmp_path / "mine"
    folder.mkdir()
    for part, frame in rows.items():
        frame.to_csv(folder / f"{part}.csv", index=False)
    files = {part: f"{part}.csv" for part in ROWS}
    (folder / "columns.json").write_text(json.dumps({"files": files, "columns": COLUMNS}))
    data = ClickDataModule(**DATA | {"dataset": "mine", "data_root": str(tmp_path)}, seed=1)
    data.setup()
    ours = click_baselines(data)["logistic regression"].numpy()

    encoder = make_column_transformer(
        (make_pipeline(SimpleImputer(), StandardScaler()), NUMBERS), (OneHotEncoder(), ["city"])
    )
    theirs = make_pipeline(encoder, LogisticRegression()).fit(rows["train"], rows["train"]["click"])
    theirs, click = theirs.predict_proba(rows["test"])[:, 1], rows["test"]["click"]
    gain = roc_auc_score(click, ours) - roc_auc_score(click, theirs)
    assert gain > (0.02 if threshold else -0.003)  # only a category can have a threshold
    assert log_loss(click, ours) < log_loss(click, theirs) + 0.005


@pytest.mark.parametrize(("signal", "noise"), [(0.3, 10), (3.0, 0)])
def test_the_regularisation_is_chosen_within_its_grid(rng, signal, noise):
    """Of noise with a little signal, and of signal alone, the loss is that of the best C of a wider grid."""
    weights = np.r_[signal, np.zeros(noise)]
    x = {part: rng.normal(size=(count, noise + 1)) for part, count in (("train", 300), ("val", 4000))}
    y = {part: rng.random(len(rows)) < 1 / (1 + np.exp(-rows @ weights)) for part, rows in x.items()}
    model = tuned_logistic_regression(x["train"], y["train"], x["val"], y["val"], 0.0)

    def loss(regression: LogisticRegression) -> float:
        return log_loss(y["val"], regression.predict_proba(x["val"])[:, 1])

    best = min(loss(LogisticRegression(C=c).fit(x["train"], y["train"])) for c in np.logspace(-4, 4, 33))
    assert loss(model) < 1.003 * best
