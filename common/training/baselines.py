"""Baselines of a click model on the same encoded rows: the constant click rate and a tuned logistic regression."""

from typing import Any

import numpy as np
import torch
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from torch import Tensor

from common.model.embedding import field_widths, pooling_weights
from common.process_group import on_rank_zero

REGULARISATION = [0.005, 0.02, 0.05, 0.1, 0.3, 1, 3, 10, 30]  # candidates for scikit-learn's C
TOLERANCE = 1.001  # of two validation log losses that are as close, the stronger regularisation is chosen
TRAIN_ROWS = 1_000_000  # at most; the last ones, which are closest to the test rows in a time split


@on_rank_zero
def click_baselines(data: Any, regression: LogisticRegression | None = None) -> dict[str, Tensor]:
    """Click probabilities (N,) of both baselines for the test rows; regression: None: it is fitted here."""
    x_test, _ = design(data, "test")
    click_rate = torch.tensor(data.base_logits[0], dtype=torch.float64).sigmoid()
    constant = {"constant": click_rate.expand(x_test.shape[0])}
    if (regression := regression or fit_regression(data)) is None:
        return constant
    return {"logistic regression": torch.from_numpy(regression.predict_proba(x_test)[:, 1])} | constant


def fit_regression(data: Any) -> LogisticRegression | None:
    """The tuned logistic regression on the training rows; None if they are all of one class."""
    of_numbers = np.repeat(data.of_numbers, data.cardinalities)
    return tuned_logistic_regression(*design(data, "train"), *design(data, "val"), data.training_offset, of_numbers)


def design(data: Any, split: str) -> tuple[sparse.csr_array, np.ndarray]:
    """Design matrix and labels of a split; at most TRAIN_ROWS training rows."""
    rows = data.rows[split][-TRAIN_ROWS:] if split == "train" else data.rows[split]
    dense, ids, label = data.read(rows)
    return one_hot(dense, ids, label, data.cardinalities, data.pooling)


def tuned_logistic_regression(
    x_train: Any, y_train: np.ndarray, x_val: Any, y_val: np.ndarray, offset: float, of_numbers: Any = None
) -> LogisticRegression | None:
    """The regression with the best validation log loss; None if all training rows are of one class.

    offset: training_offset of the data module. of_numbers: which of the first columns are categories of numbers, used
    only where they help beside the numbers themselves."""
    if len(np.unique(y_train)) == 1:
        return None
    models, losses = [], []

    def fit(c: float, x: Any) -> None:
        models.append(LogisticRegression(C=c, max_iter=500).fit(x, y_train))
        models[-1].intercept_ -= offset
        losses.append(log_loss(y_val, models[-1].predict_proba(x_val)[:, 1], labels=[0, 1]))

    for c in REGULARISATION:
        fit(c, x_train)
        if losses[-1] > min(losses):
            break  # a weaker regularisation takes longer to fit, and will not be better
    best = next(i for i, loss in enumerate(losses) if loss < TOLERANCE * min(losses))
    if of_numbers is not None and of_numbers.any():
        used = np.ones(x_train.shape[1])
        used[: len(of_numbers)][of_numbers] = 0
        fit(models[best].C, x_train @ sparse.diags_array(used))
        best = best if losses[best] < TOLERANCE * losses[-1] else -1
    return models[best]


def one_hot(
    dense: np.ndarray, ids: np.ndarray, label: np.ndarray, cardinalities: list[int], pooling: list[str | None]
) -> tuple[sparse.csr_array, np.ndarray]:
    """Design matrix (N, all ids + dense columns) and labels (N,) or (N, K); cells of several values are pooled."""
    offsets = (np.cumsum(cardinalities) - cardinalities).astype(np.int32)
    columns = ids + np.repeat(offsets, field_widths(ids.shape[1], pooling))
    known = ids >= 0
    weights = pooling_weights(torch.from_numpy(ids), pooling, torch.float32).numpy()
    ends = np.concatenate([[0], known.sum(1).cumsum()])
    one_hot_ids = sparse.csr_array((weights[known], columns[known], ends), shape=(len(ids), sum(cardinalities)))
    return sparse.hstack([one_hot_ids, sparse.csr_array(dense)], format="csr"), label
