"""Damaged files of interactions, and damaged descriptions of them, give the rows or a known error."""

import csv
import io
import json
import tempfile
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bst.train import DATA
from common.errors import UserError
from data.history.scoring import HistoryScorer
from data.movie_rating_seq import HistoryDataModule
from data.reader import Source
from tests.plain_parsers import Form
from tests.test_fuzz import QUIET, small_blocks  # noqa: F401  # the fixture
from tests.test_fuzz_datasets import damaged
from tests.test_interactions import ITEM, STARS, USER, WHEN, make_rows, write

ROWS = make_rows(np.random.default_rng(3), users=6, items=9)
ATTRIBUTES = {"item_attributes": {"file": "items.csv", "columns": {"id": {"role": "item"}, "kind": {"role": "dense"}}}}
VALUES = [
    None,
    "",
    "x",
    -1,
    1.5,
    True,
    [],
    {},
    ["0"],
    {"role": "user"},
    {"role": "item"},
    {"role": "time"},
    "categorical",
]


def prepare(root: str, monkeypatch) -> HistoryDataModule:
    monkeypatch.setenv("OUTPUT_ROOT", f"{root}/output")
    data = HistoryDataModule(**DATA | {"dataset": "mine", "data_root": root, "split": "random"}, seed=0)
    data.setup()
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        assert all(column.isfinite().all() for batch in loader for column in batch)
    return data


def write_all(root: str) -> Path:
    folder = write(Path(root), ROWS, **ATTRIBUTES)
    items = "".join(f'"{item}",{n}\n' for n, item in enumerate(sorted({row[1] for row in ROWS})))
    (folder / "items.csv").write_text(f"id,kind\n{items}")
    return folder


def form_of(path: Path) -> Form:
    return Form("interactions", tuple(path.read_bytes().splitlines()), b",", list, list, header=1)


def plain_rows(content: bytes) -> list[dict[str, str]]:
    """By Python's csv module; lines of spaces do not count."""
    rows = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""))
    header, *rows = [row for row in rows if len(row) > 1 or "".join(row).strip()]
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_a_damaged_file_is_prepared_or_refused(monkeypatch):
    @QUIET
    @given(st.data())
    def run(draws):
        with tempfile.TemporaryDirectory() as root:
            folder = write_all(root)
            path = folder / draws.draw(st.sampled_from(["log.csv", "items.csv"]))
            path.write_bytes(damaged(draws.draw, path.read_bytes(), form_of(path)))
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
    content, form = (folder / "log.csv").read_bytes(), form_of(folder / "log.csv")
    state = prepare(str(tmp_path), monkeypatch).state_dict()

    @QUIET
    @given(st.data())
    def run(draws):
        given = damaged(draws.draw, content, form)
        scorer = HistoryScorer(state)
        scorer.history_from_file = draws.draw(st.booleans())
        try:
            batches = list(scorer.batches(Source("raw", lambda: nullcontext(io.BytesIO(given)), again=False)))
        except UserError as error:
            assert str(error).startswith("raw")
            return
        assert all(column.isfinite().all() for inputs, *_ in batches for column in inputs)
        assert sum(len(target) for _, target, _ in batches) == len(plain_rows(given))

    run()


@pytest.mark.parametrize("in_entry", [False, True])
def test_a_damaged_description_is_refused_or_means_something(monkeypatch, in_entry):
    @QUIET
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
