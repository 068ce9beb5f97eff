"""Which model has which class, data module, scorer and script; and how a checkpoint becomes a model.

N: rows, K: outputs.
"""

from collections.abc import Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from common.checkpoint import load_checkpoint
from common.errors import UserError, check, one_line, shown
from common.model.recommender import Recommender, equal_states
from common.settings import check_settings

if TYPE_CHECKING:
    from data.history.scoring import HistoryScorer
    from data.table.scoring import TableScorer

BATCH_ROWS = 1024  # predicted at a time; more would not fit into the processor's cache

Scorer: TypeAlias = "TableScorer | HistoryScorer"  # turns rows of a raw file into a model's inputs


class Model(NamedTuple):
    """Modules and names in them; imported only when they are used, as that takes seconds."""

    model: str  # the class
    data: str  # the class of its data module
    scorer: str  # what makes a Scorer from the data module's state in a checkpoint
    script: str  # with the function train


TABLE = "data.table.scoring:TableScorer"
HISTORY = "data.history.scoring:HistoryScorer"
MODELS = {
    "DeepFM": Model("deepfm.deepfm:DeepFM", "data.criteo_data:ClickDataModule", TABLE, "deepfm.train"),
    "DLRM": Model("dlrm.dlrmnet:DLRM", "data.criteo_data:ClickDataModule", TABLE, "dlrm.train"),
    "MMoE": Model("multitask.mmoe:MMoE", "data.census_income:MultiTaskDataModule", TABLE, "multitask.train"),
    "BST": Model("bst.bst:BST", "data.movie_rating_seq:HistoryDataModule", HISTORY, "bst.train"),
}


def load(checkpoint: str | Path) -> tuple[Recommender, Scorer]:
    """The model of a checkpoint, ready to predict, and the scorer that reads raw rows for it."""
    (model,), scorer = load_several([checkpoint])
    return model, scorer


def load_several(checkpoints: Sequence[str | Path]) -> tuple[list[Recommender], Scorer]:
    """The models of checkpoints whose predictions are to be averaged, and the scorer they share."""
    first, scorer, state = _load(checkpoints[0])
    models = [first]
    for checkpoint in checkpoints[1:]:
        model, _, other = _load(checkpoint)
        differ = "their data, or the DATA settings that encode it, differ"
        check(equal_states(state, other), f"{checkpoint} and {checkpoints[0]} cannot be averaged: {differ}.")
        models.append(model)
    return models, scorer


def _load(checkpoint: str | Path) -> tuple[Recommender, Scorer, dict[str, Any]]:
    content = load_checkpoint(checkpoint)
    name = content.get("model")
    if not isinstance(name, str) or name not in MODELS:
        raise UserError(f"{checkpoint}: found the model {shown(name)}, expected one of {', '.join(MODELS)}.")
    model_class, data, scorer_of = map(resolve_name, MODELS[name][:3])
    try:
        settings, state = content["hyper_parameters"], content[data.__name__]
        for part in (settings | settings["optimizer"], state):
            check_settings(part)
        model = model_class(**settings)
        model.load_state_dict(content["state_dict"], assign=True)  # the table stays mapped from the file
        model, scorer = model.eval(), scorer_of(state)
        found = predict_batch(model, scorer.random_inputs(256, np.random.default_rng(0))).shape[1]
        if found != len(scorer.columns):
            raise ValueError(f"{found} predictions per row for {len(scorer.columns)} columns")
        return model, scorer, state
    except Exception as error:  # a checkpoint with other content can raise many kinds
        text = f"{checkpoint} does not fit this version of {name}; train again. ({one_line(error)})"
        raise UserError(text) from error


@torch.inference_mode()
def predict_batch(model: Recommender, inputs: list[Tensor], bf16: bool = False) -> Tensor:
    """Predictions (N, K) float32 for any number of rows."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        # cloned, because a matrix product rounds differently if memory is not aligned as torch aligns it
        parts = zip(*(column.clone().split(BATCH_ROWS) for column in inputs), strict=True)
        predicted = torch.cat([model.predict(model(*part).float()) for part in parts])
    return predicted.unsqueeze(1) if predicted.dim() == 1 else predicted


def mean_prediction(models: Sequence[Recommender], inputs: list[Tensor], bf16: bool = False) -> Tensor:
    """Mean of the models' probabilities or ratings (N, K)."""
    return torch.stack([predict_batch(model, inputs, bf16) for model in models]).mean(0)
