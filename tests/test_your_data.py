"""docs/your_data.md: its commands and snippets, in order."""

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from common.paths import REPO

PAGE = (REPO / "docs" / "your_data.md").read_text()
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
TABLE, INTERACTIONS = PAGE[: PAGE.index("## Interactions")], PAGE[PAGE.index("## Interactions") :]


def dedented(block: str) -> str:
    return "\n".join(line.removeprefix("   ") for line in block.splitlines())


@pytest.fixture
def walk(tmp_path, outputs, monkeypatch, capsys) -> Callable[[str], None]:
    """Follows a part of the page, in tmp_path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "raw"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    return lambda part: follow(part, tmp_path, outputs, monkeypatch, capsys)


def follow(part: str, folder: Path, outputs: Path, monkeypatch, capsys) -> None:
    printed = ""
    for kind, block in BLOCK.findall(part):
        text = dedented(block)
        if kind == "python":
            exec(compile(text.replace('"runs/', f'"{outputs}/runs/'), "docs/your_data.md", "exec"), {})
        elif kind == "bash":
            _, script, *arguments = text.replace("runs/", f"{outputs}/runs/").split()
            monkeypatch.setattr(sys, "argv", [script, *arguments])
            runpy.run_path(str(REPO / script), run_name="__main__")
            printed = capsys.readouterr().out
            printed += (folder / arguments[-1]).read_text() if arguments[-1].endswith(".csv") else ""
        else:  # what the command above prints or writes, ignoring spaces; numbers depend on the machine
            for line in text.splitlines():
                assert re.sub(r"[0-9.]+$", "", "".join(line.split())) in "".join(printed.split()), line


def test_interactions(walk, tmp_path):
    walk(INTERACTIONS)
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 1 + 726
    assert len((tmp_path / "best.csv").read_text().splitlines()) == 1 + 3 * 60


def test_table(walk, tmp_path):
    walk(TABLE)
    both, clicks = pd.read_csv(tmp_path / "both.csv"), pd.read_csv(tmp_path / "clicks.csv")
    visits = pd.read_csv(tmp_path / "visits.csv")
    assert clicks["visit"].tolist() == visits["visit"].tolist() and len(both) == len(visits)
    for scores, label in ((both["click"], "click"), (clicks["probability"], "click"), (both["purchase"], "purchase")):
        assert roc_auc_score(visits[label].isin(["yes", 1]), scores) > 0.65
