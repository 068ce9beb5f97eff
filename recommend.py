"""Recommend items to users with a BST checkpoint: `python recommend.py CHECKPOINT USERS N [OUT]`.

USERS is a file with a column of users in the format of the training data (for MovieLens, lines that begin with a user);
- is standard input. Each user gets the N items from the training rows that it has not rated and that the model scores
highest, as rows user, item, score, the best first, in OUT as predict.py writes it. Only the checkpoint is needed: it
holds what users rated. With HISTORY_FROM_FILE in predict.py, USERS has rows as predict.py takes them: they are the
history of users unknown to the checkpoint, and their items are not recommended.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import answer_help, check, run_script

USAGE = "CHECKPOINT USERS N [OUT]"
if __name__ == "__main__":
    answer_help(__doc__, USAGE)

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from common.data.parallel import ordered_map
from common.data.streams import check_suffix, open_table
from common.model.recommender import Recommender
from data.history_preprocessor import HistoryPreprocessor
from data.reader import input_of
from models import load_several, mean_prediction
from predict import HISTORY_FROM_FILE, histories_of

CHUNK_ITEMS = 8192  # scored at a time
BLOCK_ROWS = 1 << 16  # written at a time


def recommend(
    checkpoint: str | Path | Sequence[str | Path],
    raw: str | Path,
    count: int,
    output: str | Path | None = None,
    *,
    history_from_file: bool = HISTORY_FROM_FILE,
) -> dict[str, Any]:
    """Write the `count` best items of each user in `raw`, in file order; the other arguments are those of `predict`.

    Returns users, rows and seconds.
    """
    check_suffix(output)
    checkpoints = [checkpoint] if isinstance(checkpoint, str | Path) else list(checkpoint)
    models, scorer = load_several(checkpoints)
    histories = histories_of(scorer, checkpoints[0])
    histories.history_from_file = history_from_file
    written, begin = 0, time.perf_counter()
    with open_table(output, [*checkpoints, raw]) as write:
        users = dict.fromkeys(user for part in histories.users_of(input_of(raw)) for user in part)
        best = ordered_map(lambda user: top_items(models, histories, user, count), users)
        rows: list[tuple[str, str, np.float32]] = []
        for i, (user, items) in enumerate(zip(users, tqdm(best, "Scoring", len(users), delay=2), strict=True), 1):
            rows += [(histories.text(0, user), histories.text(1, item), score) for item, score in items]
            if len(rows) >= BLOCK_ROWS or i == len(users):
                write(pd.DataFrame(rows, columns=[*histories.names, *histories.columns]))
                written, rows = written + len(rows), []
    return {"users": len(users), "rows": written, "seconds": time.perf_counter() - begin}


def top_items(
    models: Sequence[Recommender], histories: HistoryPreprocessor, user: int, count: int
) -> list[tuple[int, np.float32]]:
    """A user's best items and their scores, the best first; ties in the order of the items."""
    candidates = histories.candidates(user)
    scores = np.empty(len(candidates), np.float32)
    for start in range(0, len(candidates), CHUNK_ITEMS):
        chunk = slice(start, start + CHUNK_ITEMS)
        scores[chunk] = mean_prediction(models, histories.user_inputs(user, candidates[chunk]))[:, 0].numpy()
    order = np.argsort(-scores, kind="stable")[:count]
    return list(zip(candidates[order].tolist(), scores[order], strict=True))


def main(checkpoint: str, raw: str, count: str, output: str | None = None) -> None:
    """Write the best items; a summary goes to standard error."""
    check(count.isdecimal() and 0 < int(count) < 10**6, f"found {count!r}, expected the number of items per user.")
    torch.set_num_threads(1)  # users are scored in parallel threads; more threads per batch would slow them down
    found = recommend(checkpoint, raw, int(count), output)
    print(f"{found['rows']:,} items for {found['users']:,} users in {found['seconds']:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    run_script(main, USAGE)
