"""The baseline of the multi-task models: a tuned logistic regression per task, on the same inputs."""

import numpy as np
import torch
from torch import Tensor

from common.process_group import on_rank_zero
from common.training.baselines import one_hot, tuned_logistic_regression
from data.census_income import MultiTaskDataModule
from multitask.mmoe import PiecewiseLinear


@on_rank_zero
def logistic_regression(data: MultiTaskDataModule) -> dict[str, Tensor]:
    """The baseline's probabilities (N, K) for the test rows, by its name; fitted on the rows whose label is known."""
    bins = PiecewiseLinear(data.bin_edges)
    (x_train, y_train), (x_val, y_val), (x_test, _) = (
        one_hot(bins(torch.from_numpy(dense)).numpy(), ids, label, data.cardinalities, data.pooling)
        for dense, ids, label in map(data.read, data.rows.values())
    )
    probabilities = []
    for train, val, base in zip(y_train.T, y_val.T, data.base_logits, strict=True):
        known, known_val = ~np.isnan(train), ~np.isnan(val)
        model = tuned_logistic_regression(
            x_train[known], train[known], x_val[known_val], val[known_val], data.training_offset
        )
        probability = torch.full((x_test.shape[0],), base, dtype=torch.float64).sigmoid()
        probabilities.append(torch.from_numpy(model.predict_proba(x_test)[:, 1]) if model else probability)
    return {"logistic regression": torch.stack(probabilities, 1)}
