"""Score a raw file with a trained model: `python predict.py CHECKPOINT [CHECKPOINT...] RAW_FILE [OUT.csv]`.

It needs the checkpoint alone (runs/<model>/version_N/checkpoints/best.ckpt), not the training set. Of several
checkpoints of the same data, as other seeds give them, it writes the mean prediction; all but the first must end in
.ckpt. RAW_FILE has the format of the training set, plain or gzipped; - is standard input:
    DeepFM, DLRM   Criteo rows, with the label (train.txt) or without it (test.txt)
    MMoE           Census-Income or Adult rows, with the income or without it, ? for what is not known
    all three      rows of your own table, with labels or without them, the columns in any order if line 1 names them;
                   columns of the role "kept" are copied to the output
    BST            user::movie[::rating[::timestamp]], with the separator of the training set (TAB in 100K, comma in
                   the CSV releases); or, of interactions of your own, rows with user and item, and with rating and
                   time if they are known. The history comes from the checkpoint: for a rating that it knows, all
                   before that rating; otherwise up to the row's timestamp; without a timestamp, all. With
                   HISTORY_FROM_FILE, a user unknown to the checkpoint gets its earlier rows in the file as history.
OUT.csv (standard output, if not given) gets a header and one row per input row, in order. Where labels are known the
predictions are scored against them; this, unseen categories and progress go to standard error.
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

BF16 = False  # True is faster where the processor multiplies bf16; probabilities then differ by up to 1e-3
HISTORY_FROM_FILE = False  # of BST, True: a user whom the checkpoint does not know has its rows that precede
TEMPERATURE = 1.0  # divides the logits of probabilities; results.json has the one that fits the validation rows best
USAGE = "CHECKPOINT [CHECKPOINT...] RAW_FILE [OUT.csv]"
BATCH_ROWS = 1024  # scored at a time; more do not fit into the cache of a processor

Preprocessor = TablePreprocessor | HistoryPreprocessor
# class of the model, by the name in the checkpoint; key of the data's state in it; what reads raw rows with that state
MODELS: dict[str, tuple[type[Recommender], str, Callable[[dict[str, Any]], Preprocessor]]] = {
    "DeepFM": (DeepFM, "ClickDataModule", TablePreprocessor),
    "DLRM": (DLRM, "ClickDataModule", TablePreprocessor),
    "MMoE": (MMoE, "MultiTaskDataModule", TablePreprocessor),
    "BST": (BST, "HistoryDataModule", preprocessor_of_histories),
}


def load(checkpoint: str | Path) -> tuple[Recommender, Preprocessor]:
    """The model of a checkpoint, ready to predict, and what makes its inputs of raw rows.

    Raises: UserError if it is no checkpoint of one of the four models.
    """
    model, preprocessor, _ = _load(checkpoint)
    return model, preprocessor


def load_several(checkpoints: Sequence[str | Path]) -> tuple[list[Recommender], Preprocessor]:
    """The models of checkpoints whose predictions may be averaged, and what makes the inputs of all of them.

    Raises: UserError if two of them were trained on other data, or encode it in other ways.
    """
    first, preprocessor, state = _load(checkpoints[0])
    models = [first]
    for checkpoint in checkpoints[1:]:
        model, _, other = _load(checkpoint)
        check(
            equal_states(state, other),
            f"{checkpoint} and {checkpoints[0]} cannot be averaged: their data, or the DATA settings that encode it, "
            "are not the same. Score the file with each of them.",
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
        with torch.device("meta"):  # takes no memory, whatever the sizes
            check_same_sizes(content["state_dict"], model_class(**content["hyper_parameters"]))
        model = model_class(**content["hyper_parameters"])
        model.load_state_dict(content["state_dict"], assign=True)  # the table stays mapped from the file
        model, ready = model.eval(), preprocessor(content[data])
        found = predict_batch(model, ready.random_inputs(256, np.random.default_rng(0))).shape[1]
        if found != len(ready.columns):
            raise ValueError(f"{found} predictions of a row for {len(ready.columns)} columns")
        return model, ready, content[data]
    except Exception as error:  # of many kinds for a checkpoint with other content
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

    Of several checkpoints the predictions are averaged. history_from_file: of BST, whether a user whom the checkpoint
    does not know has the rows that precede as its history; memory then grows with the number of such users.
    Returns rows, seconds, unseen {field: rows} and metrics {column: {metric: value}}, empty where no label is known.
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
                f"{names} gives no finite prediction for a row of {name_of(raw)} after row {rows}: its weights are "
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
    """The preprocessor, if it is BST's; else UserError."""
    if not isinstance(preprocessor, HistoryPreprocessor):
        raise UserError(f"{checkpoint} is no checkpoint of BST; histories and the best items are of BST alone.")
    return preprocessor


def _warn_of_another_set(preprocessor: Preprocessor, raw: str) -> None:
    """Say which columns hold next to nothing that the training rows had."""
    if isinstance(preprocessor, TablePreprocessor) and (names := preprocessor.nearly_unseen()):
        most = 2 * len(names) > len(preprocessor.encoder.fields)
        print(
            f"Warning: more than nine in ten values of {', '.join(map(one_line, names))} in {raw} are unseen or rare "
            f"in training{'; is it rows of another dataset?' if most else ''}",
            file=sys.stderr,
        )


@torch.inference_mode()
def predict_batch(model: Recommender, inputs: list[Tensor], bf16: bool = False) -> Tensor:
    """Predictions (N, columns) float32 of inputs of any number of rows N."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        # cloned: a matrix product rounds otherwise where memory is not aligned as torch aligns it
        parts = zip(*(column.clone().split(BATCH_ROWS) for column in inputs), strict=True)
        predicted = torch.cat([model.predict(model(*part).float()) for part in parts])
    return predicted.unsqueeze(1) if predicted.dim() == 1 else predicted


def mean_prediction(models: Sequence[Recommender], inputs: list[Tensor], bf16: bool = False) -> Tensor:
    """Mean of the models' probabilities or ratings (N, columns), in the type of one."""
    return torch.stack([predict_batch(model, inputs, bf16) for model in models]).mean(0)


def _batches(preprocessor: Preprocessor, stream: Stream, raw: str | Path) -> Iterator[tuple[Any, ...]]:
    with reading(raw):  # here, where no error can be one of writing
        yield from preprocessor.batches(stream, name_of(raw))


def _progress_bar(file: IO[bytes]) -> tqdm:
    size = os.fstat(file.fileno()).st_size if file.seekable() else None
    return tqdm(total=size, desc="Scoring", unit="B", unit_scale=True)


def main(checkpoint: str, *others: str) -> None:
    """Score a file; what is found of it goes to standard error."""
    more = list(takewhile(lambda name: name.endswith(".ckpt"), others))
    raw_and_output = others[len(more) :]
    check(len(raw_and_output) in (1, 2), f"usage: python predict.py {USAGE}")
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `predict.py ... | head` ends in silence
    torch.set_num_threads(1)  # whole blocks are scored in threads; more within a block would only get in their way
    result = predict([checkpoint, *more], *raw_and_output)
    print(f"{result['rows']:,} rows in {result['seconds']:.1f} s", file=sys.stderr)
    if result["unseen"]:
        counts = ", ".join(f"{one_line(name)} {count:,}" for name, count in result["unseen"].items())
        print(f"Rows with an unseen or rare category: {counts}", file=sys.stderr)
    for column, metrics in result["metrics"].items():
        print(f"{column}: {', '.join(f'{name} {value:.6f}' for name, value in metrics.items())}", file=sys.stderr)


if __name__ == "__main__":
    run_script(main, USAGE)
