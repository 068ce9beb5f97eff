"""docs/your_data.md: its commands and snippets, in order."""

import re
import runpy
import sys

import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from common.paths import REPO

PAGE = (REPO / "docs" / "your_data.md").read_text()
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def dedented(block: str) -> str:
    return "\n".join(line.removeprefix("   ") for line in block.splitlines())


@pytest.mark.usefixtures("undrawn")
def test_the_walk(tmp_path, outputs, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "raw"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    printed = ""
    for kind, block in BLOCK.findall(PAGE):
        text = dedented(block)
        if kind == "python":
            exec(compile(text.replace('"runs/', f'"{outputs}/runs/'), "docs/your_data.md", "exec"), {})
        elif kind == "bash":
            for line in text.replace("runs/", f"{outputs}/runs/").splitlines():
                _, script, *arguments = line.split()
                monkeypatch.setattr(sys, "argv", [script, *arguments])
                runpy.run_path(str(REPO / script), run_name="__main__")
            printed = capsys.readouterr().out
            written = tmp_path / arguments[-1]
            printed += written.read_text() if "--items" not in arguments else ""
        else:  # what the command above prints or writes, ignoring spaces; numbers depend on the machine
            for line in text.splitlines():
                assert re.sub(r"[0-9.]+$", "", "".join(line.split())) in "".join(printed.split()), line
    views = pd.read_csv("views.csv")
    both, clicks, scores = (pd.read_csv(f"{name}.csv") for name in ("both", "clicks", "scores"))
    assert clicks["view"].tolist() == views["view"].tolist() and len(both) == len(views) == len(scores)
    known = views["bought"].notna()
    for score, is_positive, least in (
        (both["clicked"], views["clicked"], 0.6),
        (clicks["probability"], views["clicked"], 0.65),
        (scores["probability"], views["clicked"], 0.54),
        (both["bought"][known], views["bought"][known] == "yes", 0.55),
    ):
        assert roc_auc_score(is_positive, score) > least
    assert len(pd.read_csv("best.csv")) == 3 * 50
