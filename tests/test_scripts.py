"""The scripts as a user starts them: in a new process, from another working directory."""

import ast
import json
import os
import re
import runpy
import subprocess
import sys

import pytest

from common.errors import Terminated, UserError, answer_help, run_script
from common.paths import REPO
from models import MODELS
from tests.criteo_rows import make_lines, write_lines
from tests.script_process import run_process

ROOMS = [model.script.partition(".")[0] for model in MODELS.values()]
CONTRACT = {"model", "dataset", "is_sample", "protocol", "rows", "seed", "settings", "test", "validation", "baselines"}
CONTRACT |= {"best_possible", "epochs", "train_samples_per_second", "wall_seconds", "peak_memory_mib", "parameters"}
CONTRACT |= {"versions"}


def test_deepfm_as_it_is_on_the_sample(tmp_path, outputs):
    done = run_process("deepfm/train.py", folder=tmp_path, DATA_ROOT=tmp_path / "nothing")
    assert done.returncode == 0, done.stderr
    assert "GPU available" not in done.stderr
    assert "using the built-in sample. `python data/criteo_data.py` gets the real data." in done.stdout
    folder = outputs / "runs" / "deepfm" / "version_0"
    results = json.loads((folder / "results.json").read_text())
    assert set(results) >= CONTRACT
    auc = {name: metrics["auc"] for name, metrics in results["baselines"].items()}
    model, best = results["test"]["auc"], results["best_possible"]["auc"]
    assert (model - 0.5) / (best - 0.5) >= 0.97
    assert model > auc["logistic regression"] + 0.02 and auc["constant"] == 0.5
    assert str(folder) in done.stdout.splitlines()[-1] and "best possible" in done.stdout
    shown = re.search("Test metrics, .*\n.*", done.stdout).group()
    assert re.sub(" +", " ", shown).replace(" \n", "\n") in re.sub(" +", " ", (REPO / "README.md").read_text())
    names = {path.name for path in folder.iterdir()}
    assert {"metrics.csv", "learning_curves.png", "roc.png", "reliability.png"} <= names
    assert {path.name for path in (folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}


@pytest.mark.parametrize("script", ["deepfm/train.py", "data/criteo_data.py"])
@pytest.mark.parametrize(
    ("line", "message"), [("a broken line", "line 21: found 1 fields"), (None, "has no train.txt")]
)
def test_bad_input_is_one_line_on_stderr(tmp_path, outputs, rng, script, line, message):
    (tmp_path / "criteo").mkdir()
    if line:
        write_lines(tmp_path / "criteo" / "train.txt", [*make_lines(rng, 20), line])
    done = run_process(script, folder=tmp_path, DATA_ROOT=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert not list(outputs.glob("runs/deepfm/*/results.json"))


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (BrokenPipeError("head"), 1, ""),
        (MemoryError("Unable to allocate 9 TiB"), 1, "error: not enough memory. Unable to allocate 9 TiB"),
        (UserError("found \x1b[2J"), 1, "error: found \\x1b[2J"),
        (KeyboardInterrupt("go on"), 130, "interrupted; go on"),
        (Terminated("go on"), 143, "interrupted; go on"),
    ],
)
def test_how_a_script_ends(monkeypatch, capsys, error, code, line):
    def fail() -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["script.py"])
    monkeypatch.setattr(os, "dup2", lambda *numbers: None)
    with pytest.raises(SystemExit) as ended:
        run_script(fail)
    assert ended.value.code == code and capsys.readouterr().err == line + "\n" * bool(line)


FILES = [path for folder in (".", "data", *ROOMS) for path in (REPO / folder).glob("*.py")]
SCRIPTS = sorted(str(path.relative_to(REPO)) for path in FILES if "\n    run_script(" in path.read_text())


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_prints_the_docstring(monkeypatch, capsys, script):
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(os, "environ", os.environ.copy())  # tune_dlrm.py sets variables of Ray
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(REPO / script), run_name="__main__")
    text = capsys.readouterr().out
    assert (
        not ended.value.code
        and text.strip() == ast.get_docstring(ast.parse((REPO / script).read_text())).strip()
        and script in text
    )


WRONG = {f"{room}/train.py": ("a",) for room in ROOMS} | {"multitask/compare.py": ("a",), "tune_dlrm.py": ("a",)}
WRONG |= dict.fromkeys(["predict.py", "recommend.py", "inspect_model.py", "export_onnx.py"], ())
WRONG["seeds.py"] = ("fm", "3")


@pytest.mark.parametrize("script", [*WRONG, "compare_runs.py"])
def test_help_and_usage_are_answered_before_torch_is_imported(script):
    """In a new process: how long it takes depends on what else the machine does, what it imports does not."""
    for arguments, code in [(["--help"], 0), *((wrong, 1) for wrong in [WRONG.get(script)] if wrong is not None)]:
        command = [sys.executable, "-X", "importtime", str(REPO / script), *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
        assert done.returncode == code and not {"torch", "numpy", "pandas", "ray"} & imported
        assert code == 0 or done.stderr.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(
    ("arguments", "usage"),
    [(["--lr=1"], ""), ([], "FILE [NAME]"), (["a", "b", "c"], "FILE [NAME]"), (["c"], "a|b [NUMBER]")],
)
def test_wrong_arguments_are_told(monkeypatch, capsys, arguments, usage):
    monkeypatch.setattr(sys, "argv", ["x.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        answer_help("", usage)
    expected = f"error: usage: python x.py {usage or '(settings are edited in the file; --help describes it)'}\n"
    assert ended.value.code == 1 and capsys.readouterr().err == expected


def test_arguments_reach_main(monkeypatch):
    for usage, arguments in (
        ("FILE [NAME]", ("a",)),
        ("FILE [NAME]", ("a", "b")),
        ("[NAME...]", tuple("abc")),
        ("FILE [FILE...] OUT", tuple("abcd")),
        ("", ()),
    ):
        monkeypatch.setattr(sys, "argv", ["x.py", *arguments])
        seen = []
        run_script(lambda *given, seen=seen: seen.append(given), usage)
        assert seen == [arguments]


def test_closed_standard_streams(tmp_path, outputs, rng):
    """A script runs without standard streams; no library writes into a file that got a stream's number."""
    write_lines(tmp_path / "criteo" / "train.txt", make_lines(rng, 300))
    script = tmp_path / "script.py"
    script.write_text(f"""import sys; sys.path.insert(0, {str(REPO)!r})
from common.errors import run_script
from deepfm.train import train
run_script(lambda: train(hidden_units=(4,), embedding_dim=2, max_epochs=1, data_root={str(tmp_path)!r}))""")
    assert run_process(script, folder=tmp_path, streams=dict.fromkeys(range(3))).returncode == 0
    checkpoint = outputs / "runs" / "deepfm" / "version_0" / "checkpoints" / "best.ckpt"
    files = checkpoint, tmp_path / "criteo" / "train.txt", tmp_path / "out.csv"
    done = run_process("predict.py", *files, folder=tmp_path, streams={2: None})
    assert done.returncode == 0 and len((tmp_path / "out.csv").read_text().splitlines()) == 301


def test_the_readmes_python_runs(tmp_path, outputs, rng):
    (code,) = re.findall("```python\n(.*?)```", (REPO / "README.md").read_text(), re.DOTALL)
    write_lines(tmp_path / "criteo" / "train.txt", make_lines(rng, 700))
    script = tmp_path / "readme.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(REPO)!r})\n{code}")
    done = run_process(script, folder=tmp_path, DATA_ROOT=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith(str(outputs / "runs" / "deepfm" / "version_0"))


def test_the_readmes_commands():
    """Its first two blocks each set everything up (continuous integration runs the line that ends in pytest)."""
    text = (REPO / "README.md").read_text()
    blocks = re.findall("```bash\n(.*?)\n```", text, re.DOTALL)
    for block, end in zip(blocks, ("deepfm/train.py", "-m pytest", "bst/train.py"), strict=True):
        assert block.startswith("python3 -m venv .venv && .venv/bin/pip install") == (block != blocks[2])
        assert block.endswith(end)
    assert len(re.findall("-m pytest$", text, re.MULTILINE)) == 1 and "\n" not in blocks[1]
