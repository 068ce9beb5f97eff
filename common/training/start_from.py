"""Start a run from the weights of an earlier one, for example when new days of data have arrived."""

from pathlib import Path

import torch

from common.checkpoint import load_checkpoint
from common.data.data_module import RecommendationDataModule
from common.errors import UserError, check, one_line
from common.model.embedding import PackedEmbedding
from common.model.recommender import Recommender


@torch.no_grad()
def start_from(model: Recommender, data: RecommendationDataModule, path: str | Path) -> None:
    """Load the weights of a checkpoint into `model`: table rows of values that it knows are copied, others stay new.
    The optimizer starts afresh. Inputs are scaled by the new training rows."""
    content, name = load_checkpoint(path), type(model).__name__
    check(content.get("model") == name, f"start_from: {path} is of {one_line(content.get('model'))}, not of {name}.")
    try:
        rows, old_rows = map(torch.from_numpy, data.known_rows(content[type(data).__qualname__]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"start_from: {path} was trained on other data or columns ({one_line(error)}).") from error
    weights, state = content["state_dict"], model.state_dict()
    tables = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, PackedEmbedding)}
    for name in tables & weights.keys():
        if weights[name].shape[1:] == state[name].shape[1:]:
            state[name][rows] = weights[name][old_rows]
            weights[name] = state[name]
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        advice = "use the settings of that run"
        raise UserError(f"start_from: {path} does not fit the model; {advice}. ({one_line(error)})") from error
    total = sum(len(state[table]) for table in tables)
    print(f"Starting from {path}, which knows {len(rows):,} of the {total:,} table rows.", flush=True)
