"""Where the time of a training step goes: `python benchmarks/studies/step_profile.py` writes profile.md to OUTPUT.

The times of operations are torch.profiler's over STEPS steps. The rest of a step's time, measured without the profiler,
is Python: Lightning, autograd and the model's code.
"""

import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repo root, ahead of this folder

import pandas as pd
import pytorch_lightning as pl
import torch
from torch.autograd.profiler import FunctionEvent
from torch.profiler import ProfilerActivity, record_function

from benchmarks import bst_plain, mmoe_rechub, ours
from benchmarks.criteo_shaped import OUTPUT, RawRows
from common.data.data_module import RecommendationDataModule
from common.data.loader import MemmapDataset
from common.model.embedding import SparseLookup
from common.model.optimizer import DenseAdam, LazyAdam
from common.model.recommender import Recommender
from common.training.processor import resolve_precision
from common.training.seeds import markdown_table
from data.history.dataset import HistoryDataset

FIRST, STEPS = 5, 20  # of the profiled steps
OTHER = "other operations of the model"
WATCHED = {  # methods that torch does not record as operations
    **{(owner, "__getitem__"): "data loading" for owner in (MemmapDataset, HistoryDataset)},
    (LazyAdam, "_step_rows"): "optimizer, touched rows",
    (DenseAdam, "_step_rows"): "optimizer, dense",
    (torch.optim.Adam, "step"): "optimizer, dense",
    (Recommender, "training_step"): "forward",
}
KINDS = {  # prefix of an operation's name -> the kind it counts as
    **{name: name for name in WATCHED.values() if name != "forward"},
    **dict.fromkeys(("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"), "matrix products"),
    f"{SparseLookup.__name__}Backward": "embedding, backward (sort and sum)",
    SparseLookup.__name__: "embedding, lookup",
    "autograd::engine": OTHER,
    "forward": OTHER,
}


class StepProfiler(pl.Callback):
    """Milliseconds per step by kind, in `costs`."""

    def __init__(self):
        self.profiler = torch.profiler.profile(activities=[ProfilerActivity.CPU])
        self.costs = dict.fromkeys(KINDS.values(), 0.0)

    def on_train_batch_start(self, trainer: pl.Trainer, module: pl.LightningModule, batch, batch_index: int) -> None:
        if batch_index == FIRST:
            self.profiler.start()

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs, batch, batch_index) -> None:
        if batch_index == FIRST + STEPS - 1:
            self.profiler.stop()
            for event in self.profiler.events():
                if (found := kind(event)) and event.name != "forward":  # its own time is Python
                    self.costs[found] += event.self_cpu_time_total / 1000 / STEPS


def kind(event: FunctionEvent | None) -> str | None:
    """The kind of the innermost enclosing operation that has one."""
    while event is not None:
        for start, name in KINDS.items():
            if event.name.startswith(start):
                return name
        event = event.cpu_parent
    return None


def profile(model: Recommender, data: RecommendationDataModule, monitor: str) -> dict[str, float]:
    """Milliseconds per step by kind."""
    seconds = data.batch_size / ours.speed(model, data, "auto", monitor)
    profiler = StepProfiler()
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        for (owner, method), name in WATCHED.items():
            stack.enter_context(patch.object(owner, method, record_function(name)(getattr(owner, method))))
        ours.train_one_epoch(model, data, Path(folder), "auto", monitor, [profiler])
    rest = 1000 * seconds - sum(profiler.costs.values())
    return profiler.costs | {"Python": rest, "a step": 1000 * seconds}


def add(columns: dict[str, dict], name: str, model: Recommender, data: RecommendationDataModule, monitor: str) -> None:
    precision = resolve_precision("auto", model, data.batch_size)
    columns[f"{name}, batch {data.batch_size}, {precision}"] = profile(model, data, monitor)


def main() -> None:
    columns: dict[str, dict] = {}
    for name, build, batch_size in (
        ("DeepFM", ours.deepfm, 4096),
        ("DeepFM", ours.deepfm, 512),
        ("DLRM", ours.dlrm, 4096),
        ("DLRM", ours.dlrm, 128),
    ):
        data = RawRows(batch_size, train_rows=batch_size * 4 * (FIRST + STEPS))
        add(columns, name, build(data), data, "val_auc")
    census = mmoe_rechub.sample()
    add(columns, "MMoE", mmoe_rechub.model(census), census, "val_auc_mean")
    ratings = bst_plain.rows()
    add(columns, "BST", bst_plain.our_model(ratings), ratings, "val_rmse")
    table = pd.DataFrame(columns)
    share = table / table.loc["a step"]
    rows = [[row, *(f"{table[c][row]:.2f} ({share[c][row]:.0%})" for c in table.columns)] for row in table.index]
    text = f"{torch.get_num_threads()} threads\n\n"
    text += markdown_table(["ms a step (share)", *table.columns], rows)
    (OUTPUT / "profile.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
