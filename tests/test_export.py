"""export_onnx.py: every model, any number of rows, and the page's encoder, which needs neither torch nor this repo."""

import json
import math
import os
import re
import subprocess
import sys
from inspect import signature
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import export_onnx
from bst.train import train as train_bst
from common.checkpoint import MappedCheckpointIO, load_checkpoint
from common.errors import UserError
from common.paths import REPO
from data.reader import input_of
from deepfm.train import train as train_deepfm
from dlrm.train import train as train_dlrm
from export_onnx import export
from models import load, predict_batch
from multitask.train import train as train_mmoe
from predict import predict
from tests.movie_rows import make_ratings, write_1m
from tests.script_process import run_process
from tests.test_predict import SMALL_BST

pytestmark = pytest.mark.usefixtures("undrawn")

CODE = re.findall("```python\n(.*?)```", (REPO / "docs" / "onnx.md").read_text(), re.DOTALL)
HEAD, TABLE, EXAMPLE, HISTORY = CODE
OF_TABLE = """
for row in csv.DictReader(open("rows.csv", newline="")):
    print(*score(row).ravel().tolist())
"""
OF_HISTORY = """
for row in json.load(open("rows.json")):
    print(score(*row).item())
"""
TABLES = {  # and the settings of a small model
    train_deepfm: {"hidden_units": (8,), "embedding_dim": 3},
    train_dlrm: {"bottom_mlp_units": (8,), "top_mlp_units": (8,), "embedding_dim": 4},
    train_mmoe: {
        "tasks": ("click", "like"),
        "learning_rate": 0.05,
        "num_experts": 2,
        "expert_units": (8,),
        "tower_units": (4,),
    },
}
TRANSFORMS = ["log", "log+missing", "log+quantile", "clamped_log", "bucket", "quantile"]


def write_table(root: Path, rng: np.random.Generator, is_mmoe: bool, count: int = 300) -> Path:
    """DATA_ROOT/mine: numbers of all kinds and categories of all kinds, some missing, some rare; a file of items."""
    numbers = np.where(rng.random((6, count)) < 0.1, np.nan, rng.normal(0, 4, (6, count)).round() * 2.5)
    columns = pd.DataFrame(numbers.T, columns=TRANSFORMS).map(lambda x: f"{x:g}".replace("nan", "?").replace(".", ","))
    columns = columns.assign(
        **{
            "click": rng.choice(["yes", "no"], count),
            "like": rng.choice(["1", "0", ""], count) if is_mmoe else ["0"] * count,
            "who": [f"user {i}" for i in rng.integers(0, 40, count)],
            "what": [f"{i},0" for i in rng.integers(0, 20, count)],
            "genres": ["|".join(rng.choice(["Action", "Drama", "?", "É"], rng.integers(0, 4))) for _ in range(count)],
            "tags": ["|".join(rng.choice(["a", "b", "c d"], rng.integers(0, 3))) for _ in range(count)],
            "code": rng.choice(["39,0", "1e3", "+7", "x", ""], count),
            "probability": "of the file",
            "first": rng.choice(["TRUE", "false", "?"], count),
            "film": [f"Film {i} ({1990 + i % 4})" if i % 5 else "no year" for i in rng.integers(0, 99, count)],
        }
    )
    roles = {name: {"role": "dense", "transform": name} for name in TRANSFORMS}
    roles |= {"click": {"role": "label", "positive": ["yes"]}, "who": {"role": "user"}}
    roles |= {"like": {"role": "label", "positive": ["1"]} if is_mmoe else {"role": "excluded"}}
    roles |= {"what": {"role": "item", "type": "number"}, "film": {"role": "kept"}, "probability": {"role": "kept"}}
    several = {"role": "categorical", "separator": "|"}
    roles |= {"genres": several, "tags": several | {"hash_size": 8, "pooling": "sum"}}
    roles |= {"code": {"role": "categorical", "type": "number", "hash_size": 50}}
    roles |= {"first": {"role": "categorical", "type": "boolean"}}
    roles |= {"year": {"role": "categorical", "source": "film", "pattern": r"\((?P<year>\d+)\)"}}
    brand = {"role": "categorical", "type": "number", "separator": "/"}
    items = {"file": "items.csv", "columns": {"id": {"role": "item", "type": "number"}, "brand": brand}}
    written = {"file": "rows.csv", "separator": ";", "decimal": ",", "missing": ["?"]}
    (folder := root / "mine").mkdir()
    (folder / "columns.json").write_text(json.dumps(written | {"columns": roles, "item_attributes": items}))
    pd.DataFrame({"id": range(18), "brand": [f"{i % 3}.0/{i % 5}" for i in range(18)]}).to_csv(
        folder / "items.csv", index=False
    )
    columns.to_csv(folder / "rows.csv", sep=";", index=False)
    return folder / "rows.csv"


def scores_of_the_page(checkpoint: str, code: str, folder: Path) -> np.ndarray:
    """What the code prints in a process without torch and this repo."""
    for suffix in (".onnx", ".json"):
        (folder / f"best{suffix}").write_bytes(Path(checkpoint).with_suffix(suffix).read_bytes())
    alone = "import sys; sys.modules |= dict.fromkeys(['torch', 'common', 'data', 'models'])\n"
    command = [sys.executable, "-c", alone + HEAD + code]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return np.array([line.strip("[]").split() for line in done.stdout.splitlines()], float)


@pytest.mark.parametrize("train", TABLES, ids=["deepfm", "dlrm", "mmoe"])
def test_the_page_scores_a_table(tmp_path, rng, train):
    raw = write_table(tmp_path, rng, train is train_mmoe)
    settings = {"dataset": "mine", "data_root": str(tmp_path), "max_epochs": 1, "batch_size": 8, "min_count": 6}
    checkpoint = train(**settings, **TABLES[train])["checkpoint"]
    assert export(checkpoint, raw)["difference"] <= 1e-5
    predict(checkpoint, raw, tmp_path / "out.csv")
    rows = pd.read_csv(raw, sep=";", dtype=str, keep_default_na=False)
    brands = pd.read_csv(raw.with_name("items.csv"), dtype=str).set_index("id")["brand"]
    rows.assign(brand=rows["what"].str[:-2].map(brands).fillna("")).to_csv(tmp_path / "rows.csv", index=False)
    found = scores_of_the_page(checkpoint, TABLE + EXAMPLE + OF_TABLE, tmp_path)
    scored = pd.read_csv(tmp_path / "out.csv")
    outputs = ["click", "like"] if train is train_mmoe else ["predicted probability"]  # a kept column has that name
    assert list(scored.columns) == ["film", "probability", *outputs]
    expected = scored[outputs].to_numpy()
    assert expected.std(0).min() > 4e-3
    np.testing.assert_allclose(found, np.concatenate([expected[:1], expected]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("target", ["rating", "click", "item"])
def test_the_page_scores_a_history(tmp_path, rng, target):
    """Before each row, all that its user did; one user is new to the model."""
    lines = [(user, item, rating, 978_300_000 + n**3) for n, (user, item, rating, _) in enumerate(make_ratings(rng))]
    raw = tmp_path / "mine" / "log.csv"
    if target == "item":
        raw.parent.mkdir()
        columns = {"user": {"role": "user"}, "movie": {"role": "item"}, "at": {"role": "time"}}
        pd.DataFrame(lines, columns=["user", "movie", "rating", "at"]).drop(columns="rating").to_csv(raw, index=False)
        (raw.parent / "columns.json").write_text(json.dumps({"file": "log.csv", "columns": columns}))
    else:
        raw = write_1m(raw.parent, lines) / "ratings.dat"
    small = SMALL_BST | {"history_ratings": target != "click", "batch_size": 8}
    checkpoint = train_bst(dataset="mine", data_root=str(tmp_path), target=target, max_epochs=1, **small)["checkpoint"]
    with open(raw, "a") as file:
        file.write("99,5,978300000\n" if target == "item" else "99::5::3::978300000\n")
    rows = []
    for user, item, _, now in [*lines, (99, 5, 3, 978_300_000)]:
        past = [(str(i), None if target == "item" else r, t) for u, i, r, t in lines if u == user and t < now]
        rows.append((str(user), past, str(item), now))
    if target == "rating":
        assert export(checkpoint, raw)["difference"] <= 1e-5
        predict(checkpoint, raw, tmp_path / "out.csv")
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        found, expected = (
            scores_of_the_page(checkpoint, HISTORY + OF_HISTORY, tmp_path),
            pd.read_csv(tmp_path / "out.csv"),
        )
        assert expected.to_numpy().std() > 0.01
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    else:  # what the model is given
        model, scorer = load(checkpoint)
        page = {"data": json.loads(json.dumps(scorer.metadata())), "math": math, "np": np}
        exec(HISTORY, page)
        encoded = [page["encode"](*row) for row in rows]
        ((inputs, *_),) = scorer.batches(input_of(raw))
        for name, column in zip(signature(model.forward).parameters, inputs, strict=True):
            found = np.concatenate([row[name] for row in encoded])
            np.testing.assert_allclose(found, column, rtol=0, atol=1e-5, err_msg=name)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_export_that_fails_leaves_the_one_before(tmp_path, criteo, monkeypatch):
    small = {"hidden_units": (8,), "embedding_dim": 3, "max_epochs": 1, "dense_transform": "bucket"}
    checkpoint = Path(train_deepfm(**small)["checkpoint"])
    found = export(checkpoint)
    assert found["rows"] == export_onnx.CHECKED_ROWS and found["difference"] <= 1e-5
    session = onnxruntime.InferenceSession(found["path"])
    no_numbers = {"dense": np.zeros((7, 0), np.float32), "ids": np.zeros((7, 39), np.int32)}
    assert session.run(None, no_numbers)[0].shape == (7,)
    before = contents(checkpoint.parent)
    # the same model is not exported four times
    monkeypatch.setattr(export_onnx, "_write", lambda model, inputs, path: path.write_bytes(before["best.onnx"]))
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"best.onnx differs from PyTorch by 1.0e-03, "):
        patch.setattr(export_onnx, "predict_batch", lambda model, part: predict_batch(model, part) + 1e-3)
        export(checkpoint, criteo)
    assert contents(checkpoint.parent) == before
    (tmp_path / "empty.txt").touch()
    with pytest.raises(UserError, match=r"empty.txt has no rows"):
        export(checkpoint, tmp_path / "empty.txt")

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
    with pytest.raises(UserError, match=r"differs from PyTorch by nan, .* the weights of .*best.ckpt are damaged"):
        export(checkpoint)
