"""Inspect what a model has learned: `python inspect_model.py CHECKPOINT [RAW_FILE]`.

Writes the embeddings of FIELD with their raw values and a plot of them, and prints the nearest neighbours of VALUE.
RAW_FILE has labelled rows as predict.py takes them, preferably ones the model was not trained on. With it, also counts
the values, and measures the importance of each column: how much the loss rises when its values are shuffled among rows.
Everything is written to runs/inspect_model/version_N. For the gates of MMoE and the attention of BST see gates.png and
attention.png in the folder of the training run.
"""

from pathlib import Path
from typing import Any

from common.errors import answer_help, check, run_script

USAGE = "CHECKPOINT [RAW_FILE]"
answer_help(__doc__, USAGE, __name__)  # before the imports below, which take seconds

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import cosine_similarity
from torch import Tensor

from bst.bst import BST
from common.model.embedding import field_widths, widened
from common.model.metrics import RatingMetrics
from common.model.recommender import Recommender
from common.paths import output_root
from common.training.plots import save
from common.training.run_folder import new_version_folder
from data.history.scoring import HistoryScorer
from data.reader import input_of
from data.table.scoring import TableScorer
from models import Scorer, load, predict_batch

FIELD = None  # a categorical column, or that of users or items; None: the one with most values, if possible texts
VALUE = None  # as written in the raw file; None: the most frequent in RAW_FILE, or the first of the vocabulary
MAX_ROWS = 100_000  # of RAW_FILE that are used, from its start
REPEATS = 3  # shuffles per column
NEIGHBOURS, SHOWN_VALUES, NAMED_VALUES = 10, 1000, 25  # most values in the list; in the plot; labelled in the plot
SHOWN_COLUMNS = 40  # in the plot of importance


def inspect(
    checkpoint: str | Path, raw: str | Path | None = None, *, field: str | None = FIELD, value: str | None = VALUE
) -> dict[str, Any]:
    """Inspect a checkpoint; returns the importance, neighbours and embeddings (tables), and their folder."""
    model, scorer = load(checkpoint)
    rows = read_rows(scorer, raw) if raw is not None else None
    names = scorer.names
    if field is None:
        texts = {name: pd.Series(list(scorer.values_of(name))) for name in names}
        is_text = {name: pd.to_numeric(part, errors="coerce").isna().any() for name, part in texts.items()}
        field = max(names, key=lambda name: (is_text[name], len(texts[name])))
    check(field in names, f"there is no field {field!r}; the fields are {', '.join(names)}.")
    found = embeddings(model, scorer, field, rows[0] if rows else None)
    check(len(found) > 1, f"{field} has fewer than two values with an embedding.")
    if value is None:
        value = str(found["value"][found["count"].idxmax() if rows else 0])
    near, matters = neighbours(found, field, value), None
    folder = new_version_folder(output_root() / "runs" / "inspect_model")
    found.to_csv(folder / "embeddings.csv", index=False)
    path = Path(checkpoint).resolve()
    run = f"{path.parts[-4]}/{path.parts[-3]}" if path.parent.name == "checkpoints" else path.name
    title = f"{model.display_name}, {run}"
    plot_vectors(found, f"{title}, {field}", folder / "embeddings.png")
    if rows:
        matters = importance(model, scorer, *rows)
        matters.to_csv(folder / "importance.csv", index=False)
        plot_importance(matters, f"{title}, {len(rows[1]):,} rows, 95 % intervals", folder / "importance.png")
        print(matters.to_string(index=False, float_format="{:.5f}".format))
    print(f"\nNearest to {field} {value}:")
    print(near.to_string(index=False, float_format="{:.3f}".format))
    print(f"Embeddings of {len(found):,} values of {field}, and figures: {folder}", flush=True)
    return {"importance": matters, "neighbours": near, "embeddings": found, "folder": str(folder)}


def read_rows(scorer: Scorer, raw: str | Path) -> tuple[list[Tensor], Tensor]:
    """Inputs and targets (N, K) of the first rows whose targets are all known, at most MAX_ROWS."""
    parts, count = [], 0
    for inputs, target, *_ in scorer.batches(input_of(raw)):
        known = target.isfinite().all(1)
        parts.append([column[known] for column in (*inputs, target)])
        count += int(known.sum())
        if count >= MAX_ROWS:
            break
    check(count > 1, f"{raw} has no labelled rows; without RAW_FILE only the embeddings are inspected.")
    if isinstance(scorer, TableScorer):  # the longest cell of each batch decides about its columns of ids
        longest, pooling = max(part[1].shape[1] for part in parts), scorer.encoder.pooling
        parts = [[dense, widened(ids, pooling, longest), target] for dense, ids, target in parts]
    *inputs, target = (torch.cat(column)[:MAX_ROWS] for column in zip(*parts, strict=True))
    return inputs, target


def embeddings(model: Recommender, scorer: Scorer, name: str, inputs: list[Tensor] | None) -> pd.DataFrame:
    """Values of a field in order of id, their counts, if rows were read, and vectors (v0, ...). BST: its latent
    factors, the bias last; DeepFM: the first-order weight is last."""
    packed: Any = model.factors if isinstance(model, BST) else model.embedding
    values = scorer.values_of(name)
    ids = np.array(list(values.values()), int)
    rows = int(packed.offsets[scorer.names.index(name)]) + ids
    vectors = packed.weight.detach()[rows].numpy()
    if (regression := getattr(model, "regression", None)) is not None:  # first-order weights are sums of the two
        vectors[:, -1] += regression.table.weight[rows, 0].numpy()
    table = pd.DataFrame(vectors, columns=[f"v{i}" for i in range(vectors.shape[1])])
    table.insert(0, "value", list(values))
    if inputs is not None:
        ((index, part),) = (of for of in columns(scorer, inputs)[name] if not inputs[of[0]].is_floating_point())
        seen = inputs[index] if part is None else inputs[index][:, part]
        table.insert(1, "count", np.bincount(seen[seen >= 0], minlength=ids.max(initial=0) + 1)[ids])
    return table


def vectors_of(table: pd.DataFrame) -> np.ndarray:
    """Vectors (values, D) of a table of embeddings."""
    return table.drop(columns=["value", "count"], errors="ignore").to_numpy()


def neighbours(table: pd.DataFrame, field: str, value: str) -> pd.DataFrame:
    """The values whose vectors have the largest cosine similarity to that of `value`."""
    check((table["value"] == value).any(), f"{field} has no value {value!r} with an embedding.")
    vectors, own = vectors_of(table), int((table["value"] == value).argmax())
    found = pd.DataFrame({"value": table["value"], "cosine": cosine_similarity(vectors, vectors[[own]])[:, 0]})
    return found[found["value"] != value].nlargest(NEIGHBOURS, "cosine")


def columns(scorer: Any, inputs: list[Tensor]) -> dict[str, list[tuple[int, list[int] | None]]]:
    """The inputs that are shuffled together, by name: index of an input, and its columns (None: it has no columns)."""
    if isinstance(scorer, HistoryScorer):
        features = len(scorer.user_ids[0])
        user, item = scorer.names
        groups: dict[str, list[tuple[int, list[int] | None]]] = {item: [(0, None)], user: [(4, [0])]}
        groups |= {"history": [(1, None), (2, None), (3, None)]}
        if features > 1:
            groups[f"features of {user}"] = [(4, list(range(1, features)))]
        numbers = (f"expected of {item}", f"bias of {user}", "length of the past")
        return groups | {name: [(5, [i])] for i, name in enumerate(numbers)}
    encoder, groups = scorer.encoder, {}
    for i, column in enumerate([*encoder.numbers, *encoder.flags]):
        groups.setdefault(column.name, []).append((0, [i]))
    widths, start = field_widths(inputs[1].shape[1], encoder.pooling), 0
    for field, width in zip(encoder.fields, widths, strict=True):
        groups.setdefault(field.name, []).append((1, list(range(start, start + width))))
        start += width
    return groups


def importance(model: Recommender, scorer: Scorer, inputs: list[Tensor], target: Tensor) -> pd.DataFrame:
    """Permutation importance (Breiman 2001) of each column for each output, with 95 % intervals over rows."""
    losses = row_losses(model, inputs, target)
    generator, rows = torch.Generator().manual_seed(0), []
    for name, group in columns(scorer, inputs).items():
        rise = torch.zeros_like(losses)
        for _ in range(REPEATS):
            order = torch.randperm(len(target), generator=generator)
            shuffled = [column.clone() for column in inputs]
            for number, part in group:
                of_part = ... if part is None else (..., part)
                shuffled[number][of_part] = inputs[number][order][of_part]
            rise += (row_losses(model, shuffled, target) - losses) / REPEATS
        half = 1.96 * rise.std(0) / len(rise) ** 0.5
        for output, mean, error in zip(scorer.columns, rise.mean(0).tolist(), half.tolist(), strict=True):
            rows.append({"output": output, "column": name, "rise": mean, "low": mean - error, "high": mean + error})
    return pd.DataFrame(rows).sort_values(["output", "rise"], ascending=[True, False])


def row_losses(model: Recommender, inputs: list[Tensor], target: Tensor) -> Tensor:
    """The log loss or, of ratings, the squared error of each row and output (N, K) float64."""
    predicted, truth = predict_batch(model, inputs).double(), target.double()
    if isinstance(model.metrics, RatingMetrics):
        return (predicted - truth).square()
    return torch.nn.functional.binary_cross_entropy(predicted, truth, reduction="none")


def plot_importance(table: pd.DataFrame, title: str, path: Path) -> None:
    """The largest rises by column."""
    parts = [(output, part.head(SHOWN_COLUMNS)) for output, part in table.groupby("output", sort=False)]
    figure = Figure((6 * len(parts), 1.7 + 0.22 * max(len(part) for _, part in parts)), layout="constrained")
    for axes, (output, part) in zip(figure.subplots(1, len(parts), squeeze=False).flat, parts, strict=True):
        axes.barh(part["column"], part["rise"], xerr=part["rise"] - part["low"], color="tab:blue", ecolor="black")
        axes.invert_yaxis()
        axes.margins(y=0.01)
        axes.set_xlabel(f"rise in the loss of {output}\nwhen the column is shuffled")
    save(figure, title, path)


def plot_vectors(table: pd.DataFrame, title: str, path: Path) -> None:
    """The first two principal components of the vectors of the most frequent values."""
    table = table.sort_values("count", ascending=False, kind="stable") if "count" in table else table
    table = table.head(SHOWN_VALUES)
    components = PCA(2)
    x, y = components.fit_transform(np.pad(vectors_of(table), ((0, 0), (0, 1)))).T  # a vector may have one number
    share = components.explained_variance_ratio_
    figure = Figure((7, 6), layout="constrained")
    axes = figure.subplots()
    axes.scatter(x, y, 8 + 60 * table["count"] / max(1, table["count"].max()) if "count" in table else 8, alpha=0.5)
    axes.set(xlabel=f"first component ({share[0]:.0%} of the variance)", ylabel=f"second ({share[1]:.0%})")
    axes.set_title(f"{len(table):,} values", fontsize="small")
    for value, right, up in zip(table["value"][:NAMED_VALUES], x, y, strict=False):
        axes.annotate(value[:30], (right, up), ha="right" if right > x.max() / 2 else "left", fontsize=7)
    save(figure, title, path)


if __name__ == "__main__":
    run_script(inspect, USAGE)
