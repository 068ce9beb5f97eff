"""Start a run from the weights of an earlier one, for example when new days of data have arrived."""

from pathlib import Path

import torch

from common.checkpoint import load_checkpoint
from common.data.data_module import RecommendationDataModule
from common.errors import UserError, check, one_line
from common.model.embedding import PackedEmbedding
from common.model.recommender import Recommender


def start_from(model: Recommender, data: RecommendationDataModule, path: str | Path) -> None:
    """Load the weights of a checkpoint into `model`: table rows of values that it knows are copied, others stay new.

    The optimizer starts afresh. Inputs are scaled by the new training rows.

    Raises: UserError if the checkpoint is of another model, or has other columns or sizes.
    """
    content, name = load_checkpoint(path), type(model).__name__
    check(content.get("model") == name, f"start_from: {path} is of {one_line(content.get('model'))}, not of {name}.")
    try:
        rows, old_rows = map(torch.from_numpy, data.known_rows(content[type(data).__qualname__]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"start_from: {path} was trained on other data or columns ({one_line(error)}).") from error
    weights = content["state_dict"]
    tables = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, PackedEmbedding)}
    with torch.no_grad():
        for key, weight in model.state_dict().items():
            old = weights.get(key)
            sizes = slice(1, None) if key in tables else slice(None)  # a table may have another number of rows
            found = None if old is None else tuple(old.shape)
            check(
                found is not None and found[sizes] == tuple(weight.shape)[sizes],
                f"start_from: {key} has size {found} in {path}, but {tuple(weight.shape)} here. Use the settings of "
                "that run, or start_from=None.",
            )
            if key in tables:
                weight[rows] = old[old_rows]
            else:
                weight.copy_(old)
    total = sum(len(model.state_dict()[table]) for table in tables)
    print(f"Starting from {path}, which knows {len(rows):,} of the {total:,} table rows.", flush=True)
