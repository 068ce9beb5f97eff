"""export_onnx.py: every model, any number of rows, and the example that needs neither torch nor this repo."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


import export_onnx
from bst.train import train as train_bst
from common.checkpoint import MappedCheckpointIO, load_checkpoint
from common.errors import UserError
from common.paths import REPO
from data.census_income import CENSUS_INCOME_KDD
from data.samples.census import census_sample
from deepfm.train import train as train_deepfm
from dlrm.train import train as train_dlrm
from export_onnx import export
from models import predict_batch
from multitask.train import train as train_mmoe
from predict import predict
from tests.criteo_rows import make_lines, write_lines
from tests.movie_rows import make_ratings, write_1m, write_csv
from tests.script_process import run_process
from tests.test_predict import SMALL_BST, read_csv, train_on

pytestmark = pytest.mark.usefixtures("undrawn")

EXAMPLE = re.search("```python\n(.*?)```", (REPO / "docs" / "onnx.md").read_text(), re.DOTALL)[1]


@pytest.fixture
def raw(tmp_path, rng) -> Path:
    return write_lines(tmp_path / "criteo" / "train.txt", make_lines(rng, 300))


@pytest.mark.parametrize("dense", ["log", "log+missing", "log+quantile", "clamped_log"])
def test_example_scores_a_raw_row_without_torch(tmp_path, outputs, raw, dense):
    checkpoint = train_on(train_deepfm, tmp_path, outputs, hidden_units=(8,), embedding_dim=3, dense_transform=dense)
    found = export(checkpoint, raw)
    assert found["difference"] <= 1e-5 and found["rows"] == 300
    (tmp_path / "empty.txt").touch()
    with pytest.raises(UserError, match=r"empty.txt has no rows"):
        export(checkpoint, tmp_path / "empty.txt")
    predict(checkpoint, raw, tmp_path / "out.csv")
    for name in ("best.onnx", "best.json"):
        (tmp_path / name).write_bytes((checkpoint.parent / name).read_bytes())
    lines = raw.read_text().splitlines()
    _, expected = read_csv(tmp_path / "out.csv")
    rows = [line.split("\t") for line in lines[:20]]
    code = f"import sys; sys.modules['torch'] = None\n{EXAMPLE}\nfor row in {rows}:"
    code += "\n    print(score(dict(zip(data['columns'], row))).item())"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [float(line) for line in done.stdout.split()] == pytest.approx(expected[:20, 0].tolist(), abs=1e-5)


def test_other_models(tmp_path, outputs, raw, rng):
    write_1m(tmp_path / "mine", make_ratings(rng, users=30))
    (tmp_path / "census-income-kdd").symlink_to(census_sample(CENSUS_INCOME_KDD, 1_500, 600))
    train_dlrm(data_root=str(tmp_path), max_epochs=1, bottom_mlp_units=(8,), top_mlp_units=(8,), embedding_dim=4)
    train_mmoe(data_root=str(tmp_path), max_epochs=1, num_experts=2, expert_units=(8,), tower_units=(4,))
    train_bst(data_root=str(tmp_path), max_epochs=1, dataset="mine", **SMALL_BST)
    rows = {"dlrm": raw, "multitask": tmp_path / "census-income-kdd" / "census-income.test"}
    rows["bst"] = tmp_path / "mine" / "ratings.dat"
    for script, file in reversed(rows.items()):
        checkpoint = outputs / "runs" / script / "version_0" / "checkpoints" / "best.ckpt"
        assert export(checkpoint, file)["difference"] <= 1e-5
        json.loads(checkpoint.with_suffix(".json").read_text())
    assert export(checkpoint)["rows"] == export_onnx.CHECKED_ROWS


def test_half_stars(tmp_path, outputs, rng):
    write_csv(tmp_path / "mine", make_ratings(rng, users=30))
    train_bst(data_root=str(tmp_path), max_epochs=1, dataset="mine", **SMALL_BST)
    checkpoint = outputs / "runs" / "bst" / "version_0" / "checkpoints" / "best.ckpt"
    assert export(checkpoint, tmp_path / "mine" / "ratings.csv")["difference"] <= 1e-5


def test_a_difference_is_an_error(tmp_path, outputs, raw, monkeypatch):
    checkpoint = train_on(train_deepfm, tmp_path, outputs, hidden_units=(8,), embedding_dim=3, dense_transform="bucket")
    assert export(checkpoint, raw)["difference"] <= 1e-5
    session = onnxruntime.InferenceSession(checkpoint.with_suffix(".onnx"))
    assert session.run(None, {"dense": np.zeros((7, 0), np.float32), "ids": np.zeros((7, 39), np.int32)})[0].shape == (
        7,
    )
    monkeypatch.setattr(export_onnx, "predict_batch", lambda model, part: predict_batch(model, part) + 1e-3)
    checkpoint.with_suffix(".onnx").write_text("an earlier one")
    before = contents(checkpoint.parent)
    with pytest.raises(UserError, match=r"best.onnx differs from PyTorch by 1.0e-03, more than 1e-04"):
        export(checkpoint, raw)
    assert contents(checkpoint.parent) == before


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_export_that_fails_leaves_the_one_before(tmp_path, outputs, raw, monkeypatch):
    checkpoint = train_on(train_deepfm, tmp_path, outputs, hidden_units=(8,), embedding_dim=3)
    export(checkpoint)
    before = contents(checkpoint.parent)
    script = tmp_path / "script.py"
    script.write_text(f"""import resource, runpy, sys
sys.path.insert(0, {str(REPO)!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, resource.RLIM_INFINITY))
runpy.run_path({str(REPO / "export_onnx.py")!r}, run_name="__main__")""")
    done = run_process(script, checkpoint, folder=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == f"error: cannot write {checkpoint.with_suffix('.onnx')}: File too large."
    assert contents(checkpoint.parent) == before

    def ended(old: Path, new: Path) -> None:
        os.replace(old, new)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", ended)
        export(checkpoint)
    assert set(contents(checkpoint.parent)) == set(before) - {"best.json"}

    content = load_checkpoint(checkpoint)
    weights = {name: torch.full_like(weight, math.nan) for name, weight in content["state_dict"].items()}
    MappedCheckpointIO().save_checkpoint(content | {"state_dict": weights}, checkpoint)
    with pytest.raises(UserError, match=r"some predictions of .*best.ckpt are not finite"):
        export(checkpoint)
