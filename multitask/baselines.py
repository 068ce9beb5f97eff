"""What the multi-task models must beat: a tuned logistic regression per task, on the same inputs."""

from functools import partial

import torch
from pytorch_lightning.utilities import rank_zero_only

from common.baselines import one_hot, tuned_logistic_regression
from common.metrics import task_aucs
from data.census_income import CensusIncomeDataModule
from multitask.mmoe import PiecewiseLinear


@partial(rank_zero_only, default={})
def logistic_regression(data: CensusIncomeDataModule) -> dict[str, dict[str, float]]:
    """Test metrics by name of the baseline."""
    bins = PiecewiseLinear(data.encoder.bin_edges)
    (x_train, y_train), (x_val, y_val), (x_test, y_test) = (
        one_hot(bins(torch.from_numpy(numbers)).numpy(), ids, label, data.encoder.field_sizes)
        for numbers, ids, label in map(data.read, data.rows)
    )
    scores = []
    for k in range(len(data.tasks)):
        model = tuned_logistic_regression(x_train, y_train[:, k], x_val, y_val[:, k])
        scores.append(torch.from_numpy(model.decision_function(x_test)) if model else torch.zeros(len(y_test)))
    return {"logistic regression": task_aucs(data.tasks, torch.stack(scores, 1), torch.from_numpy(y_test))}
