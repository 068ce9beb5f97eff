"""docs/extending.md: each recipe works when it is applied to a copy of the repo."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from common.paths import REPO
from tests.criteo_rows import make_lines, write_lines
from tests.script_process import run_process

BLOCK = re.compile(r"^ *```(python|bash|diff)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
TRAIN = """
import json
import tune_dlrm
from dcn.train import train as train_dcn
from deepfm.train import train as train_deepfm
from deepfm.train_events import train as train_events
from predict import predict

small = dict(max_epochs=1, validations_per_epoch=1, embedding_dim=2, hidden_units=(4,), schedule="exponential")
runs = [
    train_dcn(**small, num_cross_layers=1),
    train_deepfm(**small, label_smoothing=0.1),
    train_events(**small | {"batch_size": 64}),
]
scored = predict(runs[0]["checkpoint"], "criteo/train.txt", "out.csv")
print(json.dumps([[run["test"]["auc"] for run in runs], scored["rows"], list(tune_dlrm.SPACE)]))
"""


def apply(language: str, block: str, folder: Path) -> None:
    """Follow a block of the page in the folder: write a file, edit one, or run commands."""
    first, _, rest = block.partition("\n")
    if language == "bash":
        subprocess.run(["bash", "-ec", block], cwd=folder, check=True)
    elif language == "python":
        path = folder / first.removeprefix("# ")
        path.parent.mkdir(exist_ok=True)
        path.write_text(rest)
    else:
        path = folder / first.removeprefix("--- ")
        lines = rest.splitlines(keepends=True)
        old = "".join(line[1:] or "\n" for line in lines if line[0] != "+")
        new = "".join(line[1:] or "\n" for line in lines if line[0] != "-")
        text = path.read_text()
        assert text.count(old) == 1, f"{path.name}: found {text.count(old)} times:\n{old}"
        path.write_text(text.replace(old, new))


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """A copy of the repo to which all recipes of the page have been applied."""
    folder = tmp_path_factory.mktemp("extended") / "repo"
    shutil.copytree(REPO, folder, ignore=shutil.ignore_patterns(".*", "runs", "raw", "cache", "__pycache__", "shared"))
    for language, block in BLOCK.findall((REPO / "docs" / "extending.md").read_text()):
        apply(language, dedent(block), folder)
    return folder


def run(folder: Path, data_root: Path, code: str) -> str:
    script = data_root / "script.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(folder)!r})\n{code}")
    done = run_process(script, folder=data_root, DATA_ROOT=data_root, OUTPUT_ROOT=data_root / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_tests_pass(extended, tmp_path):
    tests = [str(extended / "tests" / f"test_{name}.py") for name in ("label_smoothing", "dcn", "events_data")]
    options = ["-n", "0", "--rootdir", str(extended)]
    run(extended, tmp_path, f"import pytest\nsys.exit(pytest.main({options + tests}))")


def test_its_models_train_and_score(extended, tmp_path, rng):
    write_lines(tmp_path / "criteo" / "train.txt", make_lines(rng, 300))
    aucs, rows, searched = json.loads(run(extended, tmp_path, TRAIN).splitlines()[-1])
    assert aucs[2] > 0.6  # of the planted events; the rows of the other two are random
    assert rows == 300
    assert "embedding_l2" in searched


def test_it_has_the_style_of_the_repo(extended):
    page = (REPO / "docs" / "extending.md").read_text()
    files = set(re.findall(r"^ *(?:#|---) ([\w/]+\.py)$", page, re.MULTILINE))
    assert len(files) > 10
    for options in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *options, *sorted(files)]
        done = subprocess.run(command, cwd=extended, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
