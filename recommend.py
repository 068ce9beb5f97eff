"""Recommend items to users with a BST checkpoint: `python recommend.py CHECKPOINT USERS N [OUT]`.

USERS is a file with a column of users in the format of the training data (for MovieLens, lines that begin with a user);
- is standard input. Each user gets the N items from the training rows that it did not have and that the model scores
highest, as rows user, item, score, the best first, in OUT as predict.py writes it. Only the checkpoint is needed: it
holds what users did. With HISTORY_FROM_FILE in predict.py, USERS has rows as predict.py takes them: they are the
history of users unknown to the checkpoint, and their items are not recommended.

If it is known what users did next, the metrics of their lists are printed (see common/model/ranking.py): with UNTIL, it
is what the checkpoint holds from then on; otherwise the items in USERS that the checkpoint does not know of.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.errors import answer_help, check, run_script

USAGE = "CHECKPOINT USERS N [OUT]"
answer_help(__doc__, USAGE, __name__)  # before the imports below, which take seconds

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from common.data.parallel import ordered_map
from common.data.streams import check_suffix, open_table
from common.model.ranking import TOP, of_rows
from common.model.recommender import Recommender
from data.history.scoring import UNTIL as SPLITS
from data.history.scoring import HistoryScorer
from data.reader import input_of
from models import load_several, mean_prediction
from predict import HISTORY_FROM_FILE, histories_of

UNTIL = None  # "validation" or "test": recommend as of a user's first row of that split, which holds what came next
CHUNK_ITEMS = 8192  # scored at a time
BLOCK_ROWS = 1 << 16  # written at a time


def recommend(
    checkpoint: str | Path | Sequence[str | Path],
    raw: str | Path,
    count: int,
    output: str | Path | None = None,
    *,
    history_from_file: bool = HISTORY_FROM_FILE,
    until: str | None = UNTIL,
) -> dict[str, Any]:
    """Write the `count` best items of each user in `raw`, in file order; the other arguments are those of `predict`.

    until: None, "validation" or "test". Returns users, rows, seconds, and metrics of the lists of users whose next
    items are known, None if there are none."""
    check_suffix(output)
    check(until is None or until in SPLITS, f"until is {until!r}; it must be None, 'validation' or 'test'.")
    checkpoints = [checkpoint] if isinstance(checkpoint, str | Path) else list(checkpoint)
    models, scorer = load_several(checkpoints)
    histories = histories_of(scorer, checkpoints[0])
    histories.history_from_file = history_from_file
    begin, listed, ranks = time.perf_counter(), set[int](), []
    with open_table(output, [*checkpoints, raw]) as write:
        following: dict[str, list[str]] = {}  # what users did next
        for user, item in histories.users_of(input_of(raw)):
            known = following.setdefault(user, [])
            if item is not None and not histories.has(user, item):
                known.append(item)
        if until is not None:
            following = {user: histories.next_items(user, until) for user in following}
        best = ordered_map(lambda user: ranked_items(models, histories, user, until, following[user]), following)
        rows: list[tuple[str, str, np.float32]] = []
        written = 0
        progress = tqdm(best, "Scoring", len(following), delay=2)
        for i, (user, (items, scores, found)) in enumerate(zip(following, progress, strict=True), 1):
            top = zip(items[:count].tolist(), scores[:count], strict=True)
            rows += [(user, histories.item_text(item), score) for item, score in top]
            if found:
                ranks.append(torch.tensor(found))
                listed.update(items[:TOP].tolist())
            if len(rows) >= BLOCK_ROWS or i == len(following):
                write(pd.DataFrame(rows, columns=[*histories.names, *histories.columns]))
                written, rows = written + len(rows), []
    seconds = time.perf_counter() - begin
    # means over users of the means over the items that followed
    means = pd.DataFrame({name: value.mean().item() for name, value in of_rows(rank).items()} for rank in ranks).mean()
    metrics = means.to_dict() | {"coverage": len(listed) / len(histories.encoder.items)} if ranks else None
    return {"users": len(following), "rows": written, "seconds": seconds, "measured": len(ranks), "metrics": metrics}


def ranked_items(
    models: Sequence[Recommender], histories: HistoryScorer, user: str, until: str | None, following: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Ids of a user's candidates and their scores, the best first (ties in the order of the items), and the ranks of
    the items that followed: ties count against them, 0 is for one that is no candidate."""
    items, (candidates, *of_user, dense) = histories.user_inputs(user, until)
    scores = np.empty(len(items), np.float32)
    for start in range(0, len(items), CHUNK_ITEMS):
        chunk = slice(start, start + CHUNK_ITEMS)
        scores[chunk] = mean_prediction(models, [candidates[:, chunk], *of_user, dense[:, chunk]])[0].numpy()
    own = [scores[items == histories.item_id(text)] for text in following]
    ranks = [int((scores >= score).sum()) if len(score) else 0 for score in own]
    order = np.argsort(-scores, kind="stable")
    return items[order], scores[order], ranks


def main(checkpoint: str, raw: str, count: str, output: str | None = None) -> None:
    """Write the best items; a summary goes to standard error."""
    check(count.isdecimal() and 0 < int(count) < 10**6, f"found {count!r}, expected the number of items per user.")
    torch.set_num_threads(1)  # users are scored in parallel threads; more threads per batch would slow them down
    found = recommend(checkpoint, raw, int(count), output)
    print(f"{found['rows']:,} items for {found['users']:,} users in {found['seconds']:.1f} s", file=sys.stderr)
    if found["metrics"]:
        values = ", ".join(f"{name} {value:.4f}" for name, value in found["metrics"].items())
        print(f"What {found['measured']:,} users did next: {values}", file=sys.stderr)


if __name__ == "__main__":
    run_script(main, USAGE)
