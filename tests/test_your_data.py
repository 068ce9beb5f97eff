"""docs/your_data.md: its commands and snippets, one after the other."""

import re
import runpy
import sys

from common.paths import REPO

PAGE = (REPO / "docs" / "your_data.md").read_text()
BLOCKS = re.findall(r"^ *```(\w*)\n(.*?)^ *```", PAGE[PAGE.index("## Interactions") :], re.MULTILINE | re.DOTALL)


def dedented(block: str) -> str:
    return "\n".join(line.removeprefix("   ") for line in block.splitlines())


def test_interactions(tmp_path, outputs, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "raw"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    printed = ""
    for kind, block in BLOCKS:
        text = dedented(block)
        if kind == "python":
            exec(compile(text, "docs/your_data.md", "exec"), {})
        elif kind == "bash":
            _, script, *arguments = text.replace("runs/", f"{outputs}/runs/").split()
            monkeypatch.setattr(sys, "argv", [script, *arguments])
            runpy.run_path(str(REPO / script), run_name="__main__")
            printed = capsys.readouterr().out
            printed += (tmp_path / arguments[-1]).read_text() if arguments[-1].endswith(".csv") else ""
        else:  # what the command before it prints or writes, but for its spaces; numbers depend on the machine
            for line in text.splitlines():
                assert re.sub(r"[0-9.]+$", "", "".join(line.split())) in "".join(printed.split()), line
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 1 + 726
    assert len((tmp_path / "best.csv").read_text().splitlines()) == 1 + 3 * 60
