"""The defaults of all four scripts on the real rows, at seed 1: a change that moves a number must move it here.

Its message then has the mean of three seeds before and after. Validation rows, so that no test row is looked at more
often; the sets that take longest are replaced by smaller ones with the same protocol.
"""

import pytest

from bst.train import train as train_bst
from deepfm.train import train as train_deepfm
from dlrm.train import train as train_dlrm
from multitask.train import train as train_mmoe

EXPECTED = {  # by script and dataset: metric, its value, and how far another machine may be from it
    "deepfm criteo": ("auc", 0.7768, 0.0008),
    "dlrm criteo": ("auc", 0.7733, 0.0008),
    "multitask adult": ("auc_mean", 0.9412, 0.0008),
    "bst ml-100k": ("rmse", 0.9608, 0.003),
}
TRAIN = {"deepfm": train_deepfm, "dlrm": train_dlrm, "multitask": train_mmoe, "bst": train_bst}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.real_data(name.split()[1])) for name in EXPECTED]
)
def test_the_defaults_reach_what_they_reached(undrawn, name):
    (script, dataset), (metric, expected, tolerance) = name.split(), EXPECTED[name]
    results = TRAIN[script](dataset=dataset, precision="32-true")  # not bf16, which few machines compute alike
    assert not results["is_sample"] and results["validation"][metric] == pytest.approx(expected, abs=tolerance)
