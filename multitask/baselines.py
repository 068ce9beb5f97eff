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
    for k in range(len(data.tasks)):
        train, val = (~np.isnan(label[:, k]) for label in (y_train, y_val))
        model = tuned_logistic_regression(
            x_train[train], y_train[train, k], x_val[val], y_val[val, k], data.training_offset
        )
        base = torch.full((x_test.shape[0],), data.base_logits[k], dtype=torch.float64).sigmoid()
        probabilities.append(torch.from_numpy(model.predict_proba(x_test)[:, 1]) if model else base)
    return {"logistic regression": torch.stack(probabilities, 1)}
