"""Damaged files of interactions, and damaged descriptions of them, give the rows or a known error."""

import csv
import io
import json
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bst.train import DATA
from common.errors import UserError
from data.history.scoring import HistoryScorer
from data.movie_rating_seq import HistoryDataModule
from data.reader import Source
from tests.test_interactions import ITEM, STARS, USER, WHEN, make_rows, write
from tests.test_reader import QUIET

ROWS = make_rows(np.random.default_rng(3), users=6, items=9)
ATTRIBUTES = {"item_attributes": {"file": "items.csv", "columns": {"id": {"role": "item"}, "kind": {"role": "dense"}}}}
VALUES = [None, "", "x", -1, 1.5, True, [], {}, ["0"], *({"role": role} for role in ("user", "item", "time"))]
VALUES += ["categorical"]
# each is prepared, which takes a while
FEW = settings(QUIET, max_examples=QUIET.max_examples // 4)
PIECES = [bytes([code]) for code in b'\t\r\n\0," -_.9a\xff\xa0'] + [b"nan", b"1e400"]


def prepare(root: str, monkeypatch) -> HistoryDataModule:
    monkeypatch.setenv("OUTPUT_ROOT", f"{root}/output")
    data = HistoryDataModule(
        **DATA | {"dataset": "mine", "data_root": root, "split": "random", "batch_size": 16}, seed=0
    )
    data.setup()
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        assert all(column.isfinite().all() for batch in loader for column in batch)
    return data


def write_all(root: str) -> Path:
    folder = write(Path(root), ROWS, **ATTRIBUTES)
    items = "".join(f'"{item}",{n}\n' for n, item in enumerate(sorted({row[1] for row in ROWS})))
    (folder / "items.csv").write_text(f"id,kind\n{items}")
    return folder


def damaged(draw: Callable, content: bytes) -> bytes:
    """With pieces inserted, or put in place of others, and perhaps without its end."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        content = content[:start] + draw(st.sampled_from(PIECES)) + content[start + draw(st.integers(0, 3)) :]
    return content[: draw(st.sampled_from([len(content), draw(st.integers(0, len(content)))]))]


def plain_rows(content: bytes) -> list[dict[str, str]]:
    """By Python's csv module; lines of spaces do not count."""
    rows = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""))
    header, *rows = [row for row in rows if len(row) > 1 or "".join(row).strip()]
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_a_damaged_file_is_prepared_or_refused(monkeypatch):
    @FEW
    @given(st.data())
    def run(draws):
        with tempfile.TemporaryDirectory() as root:
            folder = write_all(root)
            path = folder / draws.draw(st.sampled_from(["log.csv", "items.csv"]))
            path.write_bytes(damaged(draws.draw, path.read_bytes()))
            try:
                data = prepare(root, monkeypatch)
            except UserError as error:
                assert str(folder) in str(error) or "target is" in str(error)
                return
            ratings, times = (np.load(data.events / f"{name}.npy") for name in ("rating", "time"))
            users = np.array(data.known["user"]["ids"])[np.load(data.events / "user.npy")]
            items = np.array(data.known["item"]["ids"])[np.load(data.events / "item.npy")]
            found = zip(users.tolist(), items.tolist(), ratings.tolist(), times.tolist(), strict=True)
            expected = plain_rows((folder / "log.csv").read_bytes())
            assert sorted(found) == sorted(
                (row[USER], row[ITEM], float(np.float32(row[STARS])), int(float(row[WHEN]))) for row in expected
            )

    run()


def test_a_damaged_file_is_scored_or_refused(tmp_path, monkeypatch):
    folder = write_all(str(tmp_path))
    content = (folder / "log.csv").read_bytes()
    state = prepare(str(tmp_path), monkeypatch).state_dict()

    @FEW
    @given(st.data())
    def run(draws):
        given = damaged(draws.draw, content)
        scorer = HistoryScorer(state)
        scorer.history_from_file = draws.draw(st.booleans())
        try:
            batches = list(scorer.batches(Source("raw", lambda: nullcontext(io.BytesIO(given)))))
        except UserError as error:
            assert str(error).startswith("raw")
            return
        assert all(column.isfinite().all() for inputs, *_ in batches for column in inputs)
        assert sum(len(target) for _, target, _ in batches) == len(plain_rows(given))

    run()


@pytest.mark.parametrize("in_entry", [False, True])
def test_a_damaged_description_is_refused_or_means_something(monkeypatch, in_entry):
    @FEW
    @given(st.data())
    def run(draws):
        with tempfile.TemporaryDirectory() as root:
            folder = write_all(root)
            content = json.loads((folder / "columns.json").read_text())
            part = draws.draw(st.sampled_from([content, content["item_attributes"]]))
            if in_entry:
                part = part["columns"]
                if draws.draw(st.booleans()):
                    part = draws.draw(st.sampled_from(list(part.values())))
            name = draws.draw(st.sampled_from([*part, "type", "separator", "unit", "x"]))
            part[name] = draws.draw(st.sampled_from(VALUES))
            (folder / "columns.json").write_text(json.dumps(content))
            try:
                prepare(root, monkeypatch)
            except UserError as error:
                assert str(folder) in str(error)

    run()
