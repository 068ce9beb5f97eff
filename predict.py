"""Score a raw file with a trained model: `python predict.py CHECKPOINT [CHECKPOINT...] RAW_FILE [OUT.csv]`.

It needs only the checkpoint (runs/<model>/version_N/checkpoints/best.ckpt), not the training data. For several
checkpoints of the same data, e.g. of several seeds, it writes the mean prediction; all but the first must end in .ckpt.
RAW_FILE has the format of the training data, plain or gzipped; - is standard input:
    DeepFM, DLRM   Criteo rows, with labels (train.txt) or without (test.txt);
                   or MovieLens click rows (docs/protocols.md)
    DeepFM, DLRM,
    MMoE           Census-Income or Adult rows, with or without the income, ? for unknown values; or
                   rows of your own table, with or without labels, the columns in any order if line 1 names them;
                   columns with the role "kept" are copied to the output
    BST            user::movie[::rating[::timestamp]], with the separator of the training data (TAB in 100K, comma in
                   the CSV releases); or rows of your own interactions with user and item, and with rating and time if
                   known. The history comes from the checkpoint: for a rating in it, everything before that rating;
                   otherwise everything up to the row's timestamp, or everything if there is none. With
                   HISTORY_FROM_FILE, the history of a user unknown to the checkpoint is its earlier rows in the file.
OUT.csv (default: standard output) gets a header and one row per input row, in order. If labels are known, predictions
are scored against them; these scores, unseen categories and progress go to standard error.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import IO, Any

from common.errors import UserError, answer_help, check, one_line, run_script, shown

if __name__ == "__main__":
    answer_help(__doc__)  # before the imports below, which take seconds

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from bst.bst import BST
from common.checkpoint import check_same_sizes, load_checkpoint
from common.data.parallel import ordered_map
from common.data.raw_files import Stream
from common.data.streams import csv_rows, name_of, open_input, open_output, reading
from common.model.metrics import RatingMetrics, tempered
from common.model.recommender import Recommender, equal_states
from common.model.streaming_metrics import StreamingClickMetrics, StreamingRatingMetrics
from common.settings import check_settings
from data.history_preprocessor import HistoryPreprocessor
from data.interactions_preprocessor import preprocessor_of_histories
from data.table_preprocessor import TablePreprocessor
from deepfm.deepfm import DeepFM
from dlrm.dlrmnet import DLRM
from multitask.mmoe import MMoE

BF16 = False  # True is faster if the processor supports bf16; probabilities then differ by up to 1e-3
HISTORY_FROM_FILE = False  # for BST; True: the history of a user unknown to the checkpoint is its earlier rows
TEMPERATURE = 1.0  # divisor of the logits; results.json has the value that fits the validation rows best
USAGE = "CHECKPOINT [CHECKPOINT...] RAW_FILE [OUT.csv]"
BATCH_ROWS = 1024  # scored at a time; more would not fit into the processor's cache

Preprocessor = TablePreprocessor | HistoryPreprocessor
# by the model's name in the checkpoint: its class, the key of the data module's state, and what reads raw rows with it
MODELS: dict[str, tuple[type[Recommender], str, Callable[[dict[str, Any]], Preprocessor]]] = {
    "DeepFM": (DeepFM, "ClickDataModule", TablePreprocessor),
    "DLRM": (DLRM, "ClickDataModule", TablePreprocessor),
    "MMoE": (MMoE, "MultiTaskDataModule", TablePreprocessor),
    "BST": (BST, "HistoryDataModule", preprocessor_of_histories),
}


def load(checkpoint: str | Path) -> tuple[Recommender, Preprocessor]:
    """The model of a checkpoint, ready to predict, and the preprocessor that encodes raw rows for it.

    Raises: UserError if it is not a checkpoint of one of the four models.
    """
    model, preprocessor, _ = _load(checkpoint)
    return model, preprocessor


def load_several(checkpoints: Sequence[str | Path]) -> tuple[list[Recommender], Preprocessor]:
    """The models of checkpoints whose predictions are to be averaged, and the preprocessor they share.

    Raises: UserError if they were trained on different data or encode it differently.
    """
    first, preprocessor, state = _load(checkpoints[0])
    models = [first]
    for checkpoint in checkpoints[1:]:
        model, _, other = _load(checkpoint)
        check(
            equal_states(state, other),
            f"{checkpoint} and {checkpoints[0]} cannot be averaged: their data, or the DATA settings that encode it, "
            "differ. Score the file with each of them.",
        )
        models.append(model)
    return models, preprocessor


def _load(checkpoint: str | Path) -> tuple[Recommender, Preprocessor, dict[str, Any]]:
    content = load_checkpoint(checkpoint)
    name = content.get("model")
    if not isinstance(name, str) or name not in MODELS:
        raise UserError(f"{checkpoint}: found the model {shown(name)}, expected one of {', '.join(MODELS)}.")
    model_class, data, preprocessor = MODELS[name]
    try:
        settings = content["hyper_parameters"]
        for part in (settings | settings["optimizer"], content[data]):
            check_settings(part)
        with torch.device("meta"):  # uses no memory, whatever the sizes
            check_same_sizes(content["state_dict"], model_class(**content["hyper_parameters"]))
        model = model_class(**content["hyper_parameters"])
        model.load_state_dict(content["state_dict"], assign=True)  # the table stays mapped from the file
        model, ready = model.eval(), preprocessor(content[data])
        found = predict_batch(model, ready.random_inputs(256, np.random.default_rng(0))).shape[1]
        if found != len(ready.columns):
            raise ValueError(f"{found} predictions per row for {len(ready.columns)} columns")
        return model, ready, content[data]
    except Exception as error:  # a checkpoint with other content can raise many kinds
        raise UserError(
            f"{checkpoint} does not fit this version of {name}; train again. ({one_line(error)})"
        ) from error


def predict(
    checkpoint: str | Path | Sequence[str | Path],
    raw: str | Path,
    output: str | Path | None = None,
    *,
    bf16: bool = BF16,
    temperature: float = TEMPERATURE,
    history_from_file: bool = HISTORY_FROM_FILE,
) -> dict:
    """Score `raw` ("-": standard input) to `output` (None: standard output); memory does not grow with the file.

    The predictions of several checkpoints are averaged. history_from_file: for BST, whether the history of a user
    unknown to the checkpoint is its earlier rows; memory then grows with the number of such users.
    Returns rows, seconds, unseen {field: rows} and metrics {column: {metric: value}}, empty if no label is known.
    """
    checkpoints = [checkpoint] if isinstance(checkpoint, str | Path) else list(checkpoint)
    models, preprocessor = load_several(checkpoints)
    if history_from_file:
        histories_of(preprocessor, checkpoints[0]).history_from_file = True
    names = ", ".join(map(str, checkpoints))
    inputs: dict[str | Path, os.stat_result] = {path: os.stat(path) for path in checkpoints}
    line = ",".join(["%.9g"] * len(preprocessor.columns)) + "\n"
    is_rating = isinstance(models[0].metrics, RatingMetrics)
    check(temperature == 1 or not is_rating, "temperature is for probabilities, not ratings.")
    running = [StreamingRatingMetrics() if is_rating else StreamingClickMetrics() for _ in preprocessor.columns]
    rows, begin = 0, time.perf_counter()
    with (
        open_input(raw) as (stream, file),
        open_output(output, inputs | {name_of(raw): os.fstat(file.fileno())}) as out,
        _progress_bar(file) as bar,
    ):
        kept_names = getattr(preprocessor, "kept", ())
        out.write(csv_rows([[name] for name in (*kept_names, *preprocessor.columns)])[0] + "\n")
        score = lambda batch: (tempered(mean_prediction(models, batch[0], bf16), temperature), *batch[1:])  # noqa: E731
        for predicted, target, *kept in ordered_map(score, _batches(preprocessor, stream, raw)):
            check(
                bool(predicted.isfinite().all()),
                f"a prediction of {names} is not finite, for a row of {name_of(raw)} after row {rows}: the weights are "
                "damaged, or a number in the row is far too large. Correct the row, or train again.",
            )
            for metrics, values, truth in zip(running, predicted.numpy().T, target.numpy().T, strict=True):
                known = ~np.isnan(truth)
                metrics.update(values[known], truth[known])
            lines = [line % tuple(values) for values in predicted.tolist()]
            if kept_names:
                lines = [f"{texts},{values}" for texts, values in zip(csv_rows(kept[0]), lines, strict=True)]
            out.write("".join(lines))
            rows += len(predicted)
            bar.set_postfix_str(f"{rows / (time.perf_counter() - begin):,.0f} rows/s", refresh=False)
            bar.update(file.tell() - bar.n if file.seekable() else 0)
    found = {
        name: metrics.compute() for name, metrics in zip(preprocessor.columns, running, strict=True) if metrics.count
    }
    unseen = {name: count for name, count in preprocessor.unseen.items() if count}
    _warn_of_another_set(preprocessor, name_of(raw))
    return {"rows": rows, "seconds": time.perf_counter() - begin, "unseen": unseen, "metrics": found}


def histories_of(preprocessor: Preprocessor, checkpoint: str | Path) -> HistoryPreprocessor:
    """The preprocessor, if it is BST's. Raises: UserError if it is not."""
    if not isinstance(preprocessor, HistoryPreprocessor):
        raise UserError(f"{checkpoint} is not a checkpoint of BST; only BST has histories and recommends items.")
    return preprocessor


def _warn_of_another_set(preprocessor: Preprocessor, raw: str) -> None:
    """Warn about columns whose values are nearly all unknown from training."""
    if isinstance(preprocessor, TablePreprocessor) and (names := preprocessor.nearly_unseen()):
        most = 2 * len(names) > len(preprocessor.encoder.fields)
        print(
            f"Warning: more than nine in ten values of {', '.join(map(one_line, names))} in {raw} are unseen or rare "
            f"in training{'; are these rows of another dataset?' if most else ''}",
            file=sys.stderr,
        )


@torch.inference_mode()
def predict_batch(model: Recommender, inputs: list[Tensor], bf16: bool = False) -> Tensor:
    """Predictions (N, columns) float32 for any number of rows N."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        # cloned, because a matrix product rounds differently if memory is not aligned as torch aligns it
        parts = zip(*(column.clone().split(BATCH_ROWS) for column in inputs), strict=True)
        predicted = torch.cat([model.predict(model(*part).float()) for part in parts])
    return predicted.unsqueeze(1) if predicted.dim() == 1 else predicted


def mean_prediction(models: Sequence[Recommender], inputs: list[Tensor], bf16: bool = False) -> Tensor:
    """Mean of the models' probabilities or ratings (N, columns)."""
    return torch.stack([predict_batch(model, inputs, bf16) for model in models]).mean(0)


def _batches(preprocessor: Preprocessor, stream: Stream, raw: str | Path) -> Iterator[tuple[Any, ...]]:
    with reading(raw):  # not around the loop that writes, whose errors are not of reading
        yield from preprocessor.batches(stream, name_of(raw))


def _progress_bar(file: IO[bytes]) -> tqdm:
    size = os.fstat(file.fileno()).st_size if file.seekable() else None
    return tqdm(total=size, desc="Scoring", unit="B", unit_scale=True)


def main(checkpoint: str, *others: str) -> None:
    """Score a file; a summary goes to standard error."""
    more = list(takewhile(lambda name: name.endswith(".ckpt"), others))
    raw_and_output = others[len(more) :]
    check(len(raw_and_output) in (1, 2), f"usage: python predict.py {USAGE}")
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `predict.py ... | head` ends silently
    torch.set_num_threads(1)  # blocks are scored in parallel threads; more threads within a block would slow them down
    result = predict([checkpoint, *more], *raw_and_output)
    print(f"{result['rows']:,} rows in {result['seconds']:.1f} s", file=sys.stderr)
    if result["unseen"]:
        counts = ", ".join(f"{one_line(name)} {count:,}" for name, count in result["unseen"].items())
        print(f"Rows with an unseen or rare category: {counts}", file=sys.stderr)
    for column, metrics in result["metrics"].items():
        print(f"{column}: {', '.join(f'{name} {value:.6f}' for name, value in metrics.items())}", file=sys.stderr)


if __name__ == "__main__":
    run_script(main, USAGE)
