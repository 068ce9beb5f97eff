"""The dicts at the top of the scripts: each setting is there once, has a rule, and is taken by its group's consumer."""

import inspect
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import bst.train
import deepfm.train
import dlrm.train
import multitask.train
import tune_dlrm
from bst.bst import BST
from common.data.data_module import RecommendationDataModule
from common.errors import UserError
from common.model.optimizer import build_optimizer
from common.settings import RULES, Settings, check_settings
from data.census_income import MultiTaskDataModule
from data.criteo_data import ClickDataModule
from data.movie_rating_seq import HistoryDataModule
from deepfm.deepfm import DeepFM
from dlrm.dlrmnet import DLRM
from multitask.mmoe import MMoE

SCRIPTS = {
    deepfm.train: (ClickDataModule, DeepFM),
    dlrm.train: (ClickDataModule, DLRM),
    multitask.train: (MultiTaskDataModule, MMoE),
    bst.train: (HistoryDataModule, BST),
}
# of one of the two modules of tables alone: the other leaves them at the default that turns them off
CLICKS, TASKS = {"dense_transform", "negative_rate"}, {"tasks", "label_inputs", "num_bins"}
# arguments that a train.py passes besides its settings
OF_THE_RUN = {ClickDataModule: {"seed"} | TASKS, MultiTaskDataModule: {"seed"} | CLICKS, HistoryDataModule: {"seed"}}
OF_THE_RUN |= {model: {"optimizer", "pooling"} for _, model in SCRIPTS.values()}
OF_THE_RUN |= {BST: {"optimizer", "history_length", "target", "rating_range", "rating_units"}}


def groups(script: ModuleType) -> tuple[dict, ...]:
    return script.DATA, script.MODEL, script.OPTIMIZER, script.TRAINING


def keywords(function: object, without_default: bool = False) -> set[str]:
    """Keyword-only parameters."""
    return {
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
        and not (without_default and parameter.default is not parameter.empty)
    }


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_each_group_is_what_its_consumer_takes(script):
    data_module, model = SCRIPTS[script]
    taken = keywords(data_module) | keywords(RecommendationDataModule)
    assert taken == script.DATA.keys() | OF_THE_RUN[data_module]
    assert keywords(build_optimizer) == script.OPTIMIZER.keys()
    assert keywords(model) == script.MODEL.keys() | OF_THE_RUN[model]
    needed = keywords(data_module, True) | keywords(RecommendationDataModule, True)
    assert script.DATA.keys() - CLICKS - TASKS <= needed, "a second default"
    for consumer, group in ((model, script.MODEL), (build_optimizer, script.OPTIMIZER)):
        assert group.keys() <= keywords(consumer, True), "a second default"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_each_setting_is_in_one_group_and_has_a_rule(script):
    names = [name for group in groups(script) for name in group]
    assert len(names) == len(set(names)) and set(names) <= RULES.keys() | {"logger"}  # which Trackers checks
    check_settings(Settings(*groups(script)).flat())


def test_the_search_takes_its_settings():
    assert tune_dlrm.SEARCH.keys() <= RULES.keys()
    known = Settings(*groups(dlrm.train)).flat()
    assert tune_dlrm.SPACE.keys() | tune_dlrm.FIXED.keys() <= known.keys()


def test_an_unknown_name_is_refused_with_the_nearest(outputs):
    with pytest.raises(UserError, match=r"there is no setting 'droput'; did you mean 'dropout'\?"):
        bst.train.train(droput=1)
    with pytest.raises(UserError, match=r"there is no setting 'zzz'; the settings are dataset, data_root, "):
        deepfm.train.train(zzz=1)
    with pytest.raises(UserError, match=r"there is no setting 'trial'; did you mean 'trials'\?"):
        tune_dlrm.search(trial=1)
    assert not (outputs / "runs").exists()


BY_ROWS = [(80, 32, 4), (6_399, 32, 4), (6_400, 64, 4), (26_048, 256, 4), (50_000, 256, None), (117_547, 1024, None)]


@pytest.mark.parametrize(("rows", "batch_size", "epochs"), [*BY_ROWS, (4e7, 1024, None)])
def test_auto_is_chosen_by_the_training_rows(rows, batch_size, epochs):
    """A hundredth of the rows, as a power of two from 32 to the usual size, which the full Criteo set has."""
    for script in SCRIPTS:
        usual, settings = script.AUTO, Settings(*groups(script)).changed({})
        assert (settings.data["batch_size"], settings.training["max_epochs"]) == ("auto", "auto")
        chosen = settings.for_rows(int(rows), usual)
        assert chosen.data["batch_size"] == min(batch_size, usual["batch_size"])
        assert chosen.training["max_epochs"] == max(epochs or 1, usual["max_epochs"])
        by_hand = settings.changed({"batch_size": 7, "max_epochs": 9})
        assert by_hand.for_rows(int(rows), usual) == by_hand


def test_numbers_and_paths_are_taken_as_people_pass_them():
    given = {"learning_rate": np.float64(1e-3), "seed": np.int64(3), "hidden_units": np.array([8, 4]), "dropout": 0}
    given |= {"batch_norm": np.bool_(True), "data_root": Path("x") / "y", "patience": None}
    found = Settings(*groups(deepfm.train)).changed(given).flat()
    expected = {"learning_rate": 1e-3, "seed": 3, "hidden_units": (8, 4), "dropout": 0, "batch_norm": True}
    expected |= {"data_root": "x/y", "patience": None}
    assert {name: found[name] for name in given} == expected
    assert [type(found[name]) for name in given] == [type(value) for value in expected.values()]
    for wrong in ({"seed": np.float64(1)}, {"batch_norm": np.int64(1)}, {"hidden_units": np.array([0.5])}):
        with pytest.raises(UserError, match="; it must be"):
            Settings(*groups(deepfm.train)).changed(wrong)


WRONG = {"learning_rate": [-1, "1e-3", np.nan, 1e30], "embedding_learning_rate": [0.0], "embedding_l2": [-1.0]}
WRONG |= {"warmup_steps": [-1], "dropout": [1.0, None], "batch_size": [0], "hidden_units": [(8, 0), 8, None]}
WRONG |= {"max_epochs": [0], "validations_per_epoch": [1.5], "patience": [0], "seed": [-1], "embedding_dim": [10**9]}
WRONG |= {"num_workers": [10**6], "batch_norm": ["False", 1], "dataset": [None], "optimizer": ["adamw"]}


def test_settings_out_of_range_are_refused_before_anything_is_made(outputs):
    for name, value in ((name, value) for name, values in WRONG.items() for value in values):
        with pytest.raises(UserError, match=f"{name} is {re.escape(repr(value))}; it must "):
            deepfm.train.train(**{name: value})
    assert not (outputs / "runs").exists()
    with pytest.raises(UserError, match=r"patience is 0; it must be greater than or equal to 1 or be None\."):
        check_settings({"patience": 0})


def test_a_change_reaches_its_group_alone():
    before = Settings(*groups(deepfm.train))
    after = before.changed({"dropout": 0.5, "seed": 7})
    assert (after.model["dropout"], after.training["seed"]) == (0.5, 7)
    assert before.flat() == Settings(*groups(deepfm.train)).flat()
    assert after.flat() == before.flat() | {"dropout": 0.5, "seed": 7}
