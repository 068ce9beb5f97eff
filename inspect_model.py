"""Inspect what a model has learned: `python inspect_model.py CHECKPOINT [RAW_FILE]`.

Writes the embeddings of FIELD with their raw values and a plot of them, and prints the nearest neighbours of VALUE.
RAW_FILE has labelled rows as predict.py takes them, preferably ones the model was not trained on. With it, also counts
the values, and measures the importance of each column: how much the loss rises when its values are shuffled among rows.
Everything is written to runs/inspect_model/version_N. For the gates of MMoE and the attention of BST see gates.png and
attention.png in the folder of the training run.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from bst.bst import BST
from common.data.streams import open_input
from common.errors import check, run_script
from common.model.metrics import RatingMetrics
from common.model.recommender import Recommender
from common.paths import output_root
from common.training.run_folder import new_version_folder
from data.history_preprocessor import HistoryPreprocessor
from data.table_categories import FIRST_ID  # the same for histories
from predict import Preprocessor, load, predict_batch

FIELD = None  # a categorical column, or "user" or "movie"; None: the one with the most values
VALUE = None  # as written in the raw file; None: the most frequent in RAW_FILE, or the first of the vocabulary
FORMAT = "csv"  # of the embeddings; or "parquet"
MAX_ROWS = 100_000  # of RAW_FILE that are used, from its start
REPEATS = 3  # shuffles per column
NEIGHBOURS, SHOWN_VALUES, NAMED_VALUES = 10, 1000, 25  # values in the list; in the plot; labelled in the plot


@dataclass
class Embeddings:
    """The values of a field in order of id, their vectors (values, D) and, if rows were read, counts (values,)."""

    field: str
    values: list[str]
    vectors: np.ndarray
    counts: np.ndarray | None

    def table(self) -> pd.DataFrame:
        vectors = pd.DataFrame(self.vectors, columns=[f"v{i}" for i in range(self.vectors.shape[1])])
        vectors.insert(0, "value", self.values)
        if self.counts is not None:
            vectors.insert(1, "count", self.counts)
        return vectors

    def neighbours(self, value: str) -> pd.DataFrame:
        """The values whose vectors have the largest cosine similarity to that of `value`."""
        check(value in self.values, f"{self.field} has no value {value!r} with an embedding.")
        unit = self.vectors / np.maximum(np.linalg.norm(self.vectors, axis=1, keepdims=True), 1e-12)
        cosine = unit @ unit[self.values.index(value)]
        nearest = [i for i in np.argsort(-cosine) if self.values[i] != value][:NEIGHBOURS]
        return pd.DataFrame({"value": [self.values[i] for i in nearest], "cosine": cosine[nearest]})


def inspect(checkpoint: str | Path, raw: str | Path | None = None, **options: Any) -> dict[str, Any]:
    """Inspect a checkpoint; returns the results and their folder. options: field, value and format instead of the
    constants above."""
    chosen = {"field": FIELD, "value": VALUE, "format": FORMAT} | options
    model, preprocessor = load(checkpoint)
    rows = read_rows(preprocessor, raw) if raw is not None else None
    names = fields(preprocessor)
    field = chosen["field"] or max(names, key=lambda name: len(values_of(preprocessor, name)))
    check(field in names, f"there is no field {field!r}; the fields are {', '.join(names)}.")
    found = embeddings(model, preprocessor, field, rows[0] if rows else None)
    check(len(found.values) > 1, f"{field} has fewer than two values with an embedding.")
    frequent = found.values[int(found.counts.argmax()) if found.counts is not None else 0]
    near = found.neighbours(frequent if chosen["value"] is None else str(chosen["value"]))
    matters = importance(model, preprocessor, *rows) if rows else None
    folder = new_version_folder(output_root() / "runs" / "inspect_model")
    path = folder / f"embeddings.{chosen['format']}"
    found.table().to_parquet(path) if chosen["format"] == "parquet" else found.table().to_csv(path, index=False)
    title = f"{model.display_name}, {checkpoint}"
    plot_vectors(found, title, folder / "embeddings.png")
    if matters is not None:
        matters.to_csv(folder / "importance.csv", index=False)
        plot_importance(matters, len(rows[1]) if rows else 0, title, folder / "importance.png")
        print(matters.to_string(index=False, float_format="{:.5f}".format))
    print(f"\nNearest to {field} {chosen['value'] or frequent}:")
    print(near.to_string(index=False, float_format="{:.3f}".format))
    print(f"Embeddings of {len(found.values):,} values of {field}, and figures: {folder}", flush=True)
    return {"importance": matters, "neighbours": near, "embeddings": found, "folder": str(folder)}


def read_rows(preprocessor: Preprocessor, raw: str | Path) -> tuple[list[Tensor], Tensor]:
    """Inputs and targets (N, K) of the first rows whose targets are all known, at most MAX_ROWS."""
    parts, count = [], 0
    with open_input(raw) as (stream, _):
        for inputs, target, *_ in preprocessor.batches(stream, str(raw)):
            known = target.isfinite().all(1)
            parts.append([column[known] for column in (*inputs, target)])
            count += int(known.sum())
            if count >= MAX_ROWS:
                break
    check(count > 1, f"{raw} has no labelled rows; without RAW_FILE only the embeddings are inspected.")
    *inputs, target = (torch.cat(column)[:MAX_ROWS] for column in zip(*parts, strict=True))
    return inputs, target


def fields(preprocessor: Preprocessor) -> list[str]:
    """Names of the fields that have embeddings."""
    if isinstance(preprocessor, HistoryPreprocessor):
        return list(preprocessor.names)
    return [field.name for field in preprocessor.encoder.fields]


def values_of(preprocessor: Preprocessor, name: str) -> dict[str, int]:
    """The raw values of a field, and their ids."""
    if isinstance(preprocessor, HistoryPreprocessor):
        user, _ = preprocessor.names
        if name == user:
            ids = zip(preprocessor.users.tolist(), preprocessor.user_ids[:, 0].tolist(), strict=True)
            return {preprocessor.text(0, number): i for number, i in ids if i >= FIRST_ID}
        return {preprocessor.text(1, number): i for i, number in enumerate(preprocessor.movie_ids.tolist(), FIRST_ID)}
    field = preprocessor.encoder.fields[fields(preprocessor).index(name)]
    if field.hash_size:
        return {f"bucket {i}": FIRST_ID + i for i in range(field.hash_size)}
    return {text: i for i, text in enumerate(field.texts(), FIRST_ID)}


def embeddings(model: Recommender, preprocessor: Preprocessor, name: str, inputs: list[Tensor] | None) -> Embeddings:
    """Embeddings of one field. BST: its latent factors, the bias last; DeepFM: the first-order weight is last."""
    packed: Any = model.factors if isinstance(model, BST) else model.embedding
    number, values = fields(preprocessor).index(name), values_of(preprocessor, name)
    ids = np.array(list(values.values()), int)
    rows = int(packed.offsets[number]) + ids
    vectors = packed.weight.detach()[rows].numpy()
    if (regression := getattr(model, "regression", None)) is not None:  # first-order weights are sums of the two
        vectors[:, -1] += regression.table.weight[rows, 0].numpy()
    if inputs is None:
        return Embeddings(name, list(values), vectors, None)
    if isinstance(preprocessor, HistoryPreprocessor):
        seen = inputs[4][:, 0] if number == 0 else inputs[0]
    else:
        start, slots = preprocessor.encoder.starts[number], preprocessor.encoder.slots[number]
        seen = inputs[1][:, start : start + slots]
    counts = np.bincount(seen[seen >= 0].flatten().numpy(), minlength=ids.max(initial=0) + 1)[ids]
    return Embeddings(name, list(values), vectors, counts)


def columns(preprocessor: Preprocessor) -> dict[str, list[tuple[int, list[int] | None]]]:
    """The inputs that are shuffled together, by name: index of an input, and its columns (None: it has no columns)."""
    if isinstance(preprocessor, HistoryPreprocessor):
        features = len(preprocessor.user_ids[0])
        user, movie = preprocessor.names
        groups: dict[str, list[tuple[int, list[int] | None]]] = {movie: [(0, None)], user: [(4, [0])]}
        groups |= {"history": [(1, None), (2, None), (3, None)]}
        if features > 1:
            groups[f"features of {user}"] = [(4, list(range(1, features)))]
        numbers = (f"expected of {movie}", f"bias of {user}", "length of the past")
        return groups | {name: [(5, [i])] for i, name in enumerate(numbers)}
    encoder, groups = preprocessor.encoder, {}
    for i, column in enumerate([*encoder.dense, *encoder.flags]):
        groups.setdefault(column.name, []).append((0, [i]))
    for field, (start, end) in zip(encoder.fields, pairwise([*encoder.starts, sum(encoder.slots)]), strict=True):
        groups.setdefault(field.name, []).append((1, list(range(start, end))))
    return groups


def importance(model: Recommender, preprocessor: Preprocessor, inputs: list[Tensor], target: Tensor) -> pd.DataFrame:
    """Permutation importance (Breiman 2001) of each column for each output, with 95 % intervals over rows.

    The loss is the log loss or, for ratings, the squared error. A negative rise is noise.
    """
    losses = row_losses(model, inputs, target)
    generator, rows = torch.Generator().manual_seed(0), []
    for name, group in columns(preprocessor).items():
        rise = torch.zeros_like(losses)
        for _ in range(REPEATS):
            order = torch.randperm(len(target), generator=generator)
            shuffled = [column.clone() for column in inputs]
            for number, part in group:
                of_part = slice(None) if part is None else (slice(None), part)
                shuffled[number][of_part] = inputs[number][order][of_part]
            rise += (row_losses(model, shuffled, target) - losses) / REPEATS
        half = 1.96 * rise.std(0) / len(rise) ** 0.5
        for output, mean, error in zip(preprocessor.columns, rise.mean(0).tolist(), half.tolist(), strict=True):
            rows.append({"output": output, "column": name, "rise": mean, "low": mean - error, "high": mean + error})
    return pd.DataFrame(rows).sort_values(["output", "rise"], ascending=[True, False])


def row_losses(model: Recommender, inputs: list[Tensor], target: Tensor) -> Tensor:
    """The loss of each row and output (N, K) float64."""
    predicted, truth = predict_batch(model, inputs).double(), target.double()
    if isinstance(model.metrics, RatingMetrics):
        return (predicted - truth).square()
    return torch.nn.functional.binary_cross_entropy(predicted, truth, reduction="none")


def plot_importance(table: pd.DataFrame, rows: int, title: str, path: Path) -> None:
    outputs = list(table.groupby("output", sort=False))
    figure = Figure((6 * len(outputs), 1.5 + 0.22 * table["column"].nunique()), layout="constrained")
    for axes, (output, part) in zip(figure.subplots(1, len(outputs), squeeze=False).flat, outputs, strict=True):
        axes.barh(part["column"], part["rise"], xerr=part["rise"] - part["low"], color="tab:blue", ecolor="black")
        axes.invert_yaxis()
        axes.margins(y=0.01)
        axes.set_xlabel(f"rise in the loss of {output} when the column is shuffled")
    figure.suptitle(f"{title}\n{rows:,} rows, 95 % intervals", fontsize="small")
    figure.savefig(path, dpi=120)


def plot_vectors(found: Embeddings, title: str, path: Path) -> None:
    """The first two principal components of the vectors of the most frequent values."""
    order = np.argsort(-found.counts)[:SHOWN_VALUES] if found.counts is not None else np.arange(len(found.values))
    order = order[:SHOWN_VALUES]
    centred = found.vectors[order] - found.vectors[order].mean(0)
    _, sizes, axes_of = np.linalg.svd(centred, full_matrices=False)
    x, y = (centred @ axes_of[:2].T).T if len(axes_of) > 1 else (centred[:, 0], np.zeros(len(order)))
    share = np.append(sizes**2 / max((sizes**2).sum(), 1e-30), 0.0)
    figure = Figure((7, 6), layout="constrained")
    axes = figure.subplots()
    size = 8 if found.counts is None else 8 + 60 * found.counts[order] / max(1, found.counts.max())
    axes.scatter(x, y, size, alpha=0.5)
    for i in range(min(NAMED_VALUES, len(order))):
        axes.annotate(found.values[order[i]], (x[i], y[i]), fontsize=7)
    axes.set(xlabel=f"first component ({share[0]:.0%} of the variance)", ylabel=f"second ({share[1]:.0%})")
    axes.set_title(f"{title}\n{len(order):,} values of {found.field}", fontsize="small")
    figure.savefig(path, dpi=120)


def main(checkpoint: str, raw: str | None = None) -> None:
    inspect(checkpoint, raw)


if __name__ == "__main__":
    run_script(main, "CHECKPOINT [RAW_FILE]")
