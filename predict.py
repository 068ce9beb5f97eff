"""Score a raw file with a trained model: `python predict.py CHECKPOINT [CHECKPOINT...] RAW_FILE [OUT]`.

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
OUT, a .csv, .csv.gz or .parquet (default: CSV on standard output), gets one row per input row, in order. If labels are
known, predictions are scored against them, with SLICES also for each value of columns of the file; these scores, unseen
categories and progress go to standard error.
"""

import os
import signal
import sys
import time
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from common.errors import UserError, answer_help, check, one_line, run_script

USAGE = "CHECKPOINT [CHECKPOINT...] RAW_FILE [OUT]"
answer_help(__doc__, USAGE, __name__)  # before the imports below, which take seconds

import pandas as pd
import torch
from tqdm import tqdm

from common.data.parallel import ordered_map
from common.data.streams import check_suffix, open_table
from common.model.metrics import RatingMetrics, tempered
from common.model.ranking import RankingMetrics
from common.model.scored_rows import ScoredRows
from common.training.plots import plot_slices
from data.history.scoring import HistoryScorer
from data.reader import input_of
from models import Scorer, load_several, mean_prediction

BF16 = False  # True is faster if the processor supports bf16; probabilities then differ by up to 1e-3
HISTORY_FROM_FILE = False  # for BST; True: the history of a user unknown to the checkpoint is its earlier rows
TEMPERATURE = 1.0  # divisor of the logits; results.json has the value that fits the validation rows best
SLICES: tuple[str, ...] = ()  # columns of a labelled file, such as ("C9", "hour"): metrics for each of their values


def predict(
    checkpoint: str | Path | Sequence[str | Path],
    raw: str | Path,
    output: str | Path | None = None,
    *,
    bf16: bool = BF16,
    temperature: float = TEMPERATURE,
    history_from_file: bool = HISTORY_FROM_FILE,
    slices: Sequence[str] = SLICES,
) -> dict[str, Any]:
    """Score `raw` ("-": standard input) to `output` (None: standard output).

    The predictions of several checkpoints are averaged. history_from_file: for BST, whether the history of a user
    unknown to the checkpoint is its earlier rows; the file is then read as a whole, otherwise memory grows only as
    ScoredRows says. slices: columns for whose values there are metrics too, written to OUT_slices.csv and .png.
    Returns rows, seconds, unseen {field: rows}, metrics {output: {metric: value}}, empty if no label is known, and the
    table of slices.
    """
    check_suffix(output)
    checkpoints = [checkpoint] if isinstance(checkpoint, str | Path) else list(checkpoint)
    models, scorer = load_several(checkpoints)
    if history_from_file:
        histories_of(scorer, checkpoints[0]).history_from_file = True
    is_rating = isinstance(models[0].metrics, RatingMetrics)
    no_probability = is_rating or isinstance(models[0].metrics, RankingMetrics)
    check(temperature == 1 or not no_probability, "temperature is for probabilities, not ratings or ranks.")
    outputs = [f"predicted {name}" if name in scorer.kept else name for name in scorer.columns]
    names, shown = [*scorer.kept, *outputs], len(scorer.kept)
    scorer.keep(slices)
    scored = ScoredRows(scorer.columns, is_rating, slices)
    source, inputs = input_of(raw), [*checkpoints, raw]
    rows, begin = 0, time.perf_counter()
    size = os.path.getsize(raw) if os.path.isfile(raw) else None
    with open_table(output, inputs) as write, tqdm(total=size, desc="Scoring", unit="B", unit_scale=True) as bar:
        score = lambda batch: (tempered(mean_prediction(models, batch[0], bf16), temperature), *batch[1:])  # noqa: E731
        for predicted, label, texts in ordered_map(score, scorer.batches(source, bar.update)):
            where = f"a prediction of {', '.join(map(str, checkpoints))}, for a row of {source.name} after row {rows},"
            cause = "the weights are damaged, or a number in the row is far too large"
            check(bool(predicted.isfinite().all()), f"{where} is not finite: {cause}.")
            columns = [*texts[:shown], *predicted.numpy().T]
            write(pd.DataFrame(dict(enumerate(columns))).set_axis(names, axis=1))
            scored.add(predicted, label, [texts[scorer.kept.index(name)] for name in slices])
            rows += len(predicted)
            bar.set_postfix_str(f"{rows / (time.perf_counter() - begin):,.0f} rows/s", refresh=False)
    seconds = time.perf_counter() - begin
    metrics, table = scored.metrics()
    check(bool(metrics or not slices), f"{source.name} has no labels, so there are no slices; its rows were scored.")
    if slices and output is not None and os.path.isfile(output):
        base = Path(str(output).removesuffix(".gz")).with_suffix("")
        with open_table(f"{base}_slices.csv", inputs) as write:
            write(table)
        plot_slices(table, f"{models[0].display_name}, {Path(source.name).name}", Path(f"{base}_slices.png"))
    unseen = {name: count for name, count in scorer.unseen.items() if count}
    if fields := scorer.nearly_unseen():
        found = f"more than nine in ten values of {', '.join(map(one_line, fields))} in {source.name}"
        print(f"Warning: {found} are unseen or rare in training. Are these rows of another dataset?", file=sys.stderr)
    return {"rows": rows, "seconds": seconds, "unseen": unseen, "metrics": metrics, "slices": table}


def histories_of(scorer: Scorer, checkpoint: str | Path) -> HistoryScorer:
    """The scorer, if it is BST's. Raises: UserError if it is not."""
    if not isinstance(scorer, HistoryScorer):
        raise UserError(f"{checkpoint} is not a checkpoint of BST; only BST has histories and recommends items.")
    return scorer


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
    if SLICES:
        print(result["slices"].to_string(index=False, float_format="{:.4f}".format), file=sys.stderr)


if __name__ == "__main__":
    run_script(main, USAGE)
