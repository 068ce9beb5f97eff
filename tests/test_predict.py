"""predict.py: a raw file and a checkpoint give the test step's predictions."""

import gzip
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from sklearn.metrics import log_loss, roc_auc_score

from common.checkpoint import MappedCheckpointIO, load_checkpoint
from common.errors import UserError
from common.model.metrics import click_metrics
from common.training.fit import QUIET_TRAINER
from data.census_income import CENSUS_INCOME_KDD, MultiTaskDataModule
from data.criteo_data import ClickDataModule
from data.samples.census import census_sample
from deepfm.train import DATA as DEEPFM_DATA
from deepfm.train import train as train_deepfm
from dlrm.train import DATA as DLRM_DATA
from dlrm.train import train as train_dlrm
from models import load
from multitask.train import DATA as CENSUS_DATA
from multitask.train import train as train_mmoe
from predict import main, predict
from tests.criteo_rows import make_lines, write_lines
from tests.script_process import run_process

pytestmark = pytest.mark.usefixtures("undrawn")

ONE_EPOCH = {"max_epochs": 1, "precision": "32-true"}
SMALL_BST = {"embedding_dim": 8, "num_heads": 2, "num_factors": 4, "hidden_units": (8,), "batch_size": 64}
SMALL_BST |= {"history_length": 5}


def train_on(train: Callable, root: Path, outputs: Path, **settings) -> Path:
    """Train on the raw files in `root`; returns the best checkpoint."""
    train(data_root=str(root), **ONE_EPOCH, **settings)
    (checkpoint,) = outputs.glob("runs/*/version_0/checkpoints/best.ckpt")
    return checkpoint


def by_test_step(checkpoint: Path, data: pl.LightningDataModule) -> np.ndarray:
    """The test step's predictions, with the checkpoint loaded by Lightning."""
    model, _ = load(checkpoint)
    again = type(model).load_from_checkpoint(checkpoint, map_location="cpu")
    assert all(torch.equal(again.state_dict()[name], weight) for name, weight in model.state_dict().items())
    data.setup()
    trainer = pl.Trainer(accelerator="cpu", enable_progress_bar=False, enable_checkpointing=False, **QUIET_TRAINER)
    trainer.test(model, data, verbose=False)
    return model.metrics.prediction.numpy()


def read_csv(path: Path) -> tuple[str, np.ndarray]:
    header, *lines = path.read_text().splitlines()
    return header, np.array([[float(field) for field in line.split(",")] for line in lines])


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """DATA_ROOT with 300 Criteo rows."""
    root = tmp_path_factory.mktemp("root")
    write_lines(root / "criteo" / "train.txt", make_lines(np.random.default_rng(0), 300))
    return root


@pytest.fixture
def lines(root) -> list[str]:
    return (root / "criteo" / "train.txt").read_text().splitlines()


@pytest.fixture(scope="module")
def deepfm(root, tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OUTPUT_ROOT", str(tmp_path_factory.mktemp("output")))
        return train_on(train_deepfm, root, Path(os.environ["OUTPUT_ROOT"]), hidden_units=(8,), embedding_dim=3)


SMALL, SMALL_DLRM = {"hidden_units": (8,), "embedding_dim": 3}, {"bottom_mlp_units": (8,), "top_mlp_units": (8,)}
CLICKS = [(train_deepfm, SMALL), (train_deepfm, SMALL | {"dense_transform": "bucket"}), (train_dlrm, SMALL_DLRM)]


@pytest.mark.parametrize(("train", "settings"), CLICKS)
def test_criteo_equals_the_test_step(tmp_path, outputs, root, lines, train, settings):
    checkpoint = train_on(train, root, outputs, **settings)
    defaults = DEEPFM_DATA if train is train_deepfm else DLRM_DATA
    changed = {name: value for name, value in settings.items() if name in defaults}
    data = ClickDataModule(**defaults | changed | {"data_root": str(root), "batch_size": 64}, seed=0)
    expected = by_test_step(checkpoint, data)
    moved = Path(shutil.move(checkpoint, tmp_path / "alone.ckpt"))
    shutil.rmtree(outputs / "runs")
    result = predict(moved, root / "criteo" / "train.txt", tmp_path / "out.csv")
    header, values = read_csv(tmp_path / "out.csv")
    assert header == "probability" and values.shape == (300, 1) and result["rows"] == 300
    np.testing.assert_allclose(values[data.rows["test"], 0], expected, rtol=0, atol=1e-6)
    labels = torch.tensor([float(line[0]) for line in lines])
    exact = click_metrics(torch.from_numpy(values[:, 0]).float(), labels)
    assert result["metrics"]["probability"] == pytest.approx(exact, abs=1e-6)


def test_without_labels_gz_and_standard_input(tmp_path, root, lines, deepfm):
    predict(deepfm, root / "criteo" / "train.txt", tmp_path / "labelled.csv")
    write_lines(tmp_path / "test.txt", [line[2:] for line in lines])
    assert predict(deepfm, tmp_path / "test.txt", tmp_path / "plain.csv")["metrics"] == {}
    expected = (tmp_path / "labelled.csv").read_bytes()
    assert (tmp_path / "plain.csv").read_bytes() == expected
    packed = gzip.compress((tmp_path / "test.txt").read_bytes())
    (tmp_path / "test.txt.gz").write_bytes(packed)
    predict(deepfm, tmp_path / "test.txt.gz", tmp_path / "gz.csv")
    assert (tmp_path / "gz.csv").read_bytes() == expected
    os.mkfifo(tmp_path / "pipe")
    plain = (tmp_path / "test.txt").read_bytes()
    threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(plain,), daemon=True).start()
    for given in (tmp_path / "pipe", tmp_path / "test.txt.gz"):
        done = run_process("predict.py", deepfm, "-", folder=tmp_path, streams={0: (given, os.O_RDONLY)})
        assert done.returncode == 0, done.stderr
        assert done.stdout.encode() == expected and "300 rows" in done.stderr


def test_unseen_categories_are_counted(tmp_path, lines, deepfm):
    fields = lines[0].split("\t")
    fields[14], fields[39] = "ffffffff", ""
    write_lines(tmp_path / "new.txt", ["\t".join(fields)])
    _, scorer = load(deepfm)
    assert "ffffffff" not in scorer.encoder.fields[0].vocabulary.to_pylist()
    unseen = predict(deepfm, tmp_path / "new.txt", tmp_path / "out.csv")["unseen"]
    assert unseen["C1"] == 1 and "C26" not in unseen


def test_bf16_is_close(tmp_path, root, deepfm):
    raw = root / "criteo" / "train.txt"
    predict(deepfm, raw, tmp_path / "a.csv")
    predict(deepfm, raw, tmp_path / "b.csv", bf16=True)
    (_, exact), (_, close) = read_csv(tmp_path / "a.csv"), read_csv(tmp_path / "b.csv")
    np.testing.assert_allclose(close, exact, rtol=0, atol=1e-3)
    assert (close != exact).any()


def test_several_checkpoints_give_the_mean(tmp_path, outputs, root, deepfm):
    raw, small = root / "criteo" / "train.txt", {"hidden_units": (8,), "embedding_dim": 3, "data_root": str(root)}
    other = train_deepfm(**small, **ONE_EPOCH, seed=2)["checkpoint"]
    (tmp_path / "alone").write_bytes(Path(deepfm).read_bytes())  # only the first may lack the suffix .ckpt
    done = run_process("predict.py", tmp_path / "alone", other, other, raw, tmp_path / "all.csv", folder=tmp_path)
    assert done.returncode == 0 and "300 rows" in done.stderr
    for name, checkpoint in (("one", deepfm), ("two", other)):
        predict(checkpoint, raw, tmp_path / f"{name}.csv")
    one, two, mean = (read_csv(tmp_path / f"{name}.csv")[1] for name in ("one", "two", "all"))
    assert np.abs(one - two).max() > 1e-3
    np.testing.assert_allclose(mean, (one + 2 * two) / 3, rtol=0, atol=1e-7)
    foreign = train_deepfm(**small, **ONE_EPOCH, min_count=5)["checkpoint"]
    with pytest.raises(UserError, match=r"version_1.*best.ckpt and .* cannot be averaged: their data"):
        predict([deepfm, foreign], raw)
    with pytest.raises(UserError, match=r"usage: python predict\.py CHECKPOINT"):
        main(str(deepfm), str(other))


def test_census_equals_the_test_step(tmp_path, outputs):
    (tmp_path / "census-income-kdd").symlink_to(census_sample(CENSUS_INCOME_KDD, 1_500, 600))
    checkpoint = train_on(train_mmoe, tmp_path, outputs, num_experts=2, expert_units=(8, 4), tower_units=(4,))
    data = MultiTaskDataModule(**CENSUS_DATA | {"data_root": str(tmp_path), "batch_size": 64}, seed=0)
    expected = by_test_step(checkpoint, data)
    raw = tmp_path / "census-income-kdd" / "census-income.test"
    metrics = predict(checkpoint, raw, tmp_path / "out.csv")["metrics"]
    header, values = read_csv(tmp_path / "out.csv")
    assert header == "income,never_married" and set(metrics) == {"income", "never_married"}
    np.testing.assert_allclose(values[data.rows["test"] - 1_500], expected, rtol=0, atol=1e-6)

    rows = [line.split(", ") for line in raw.read_text().splitlines()]
    without = "".join(", ".join(row[:-1]) + "\n" for row in rows)
    (tmp_path / "new.csv").write_text(without.replace("Never married", "?"))
    metrics = predict(checkpoint, tmp_path / "new.csv", tmp_path / "new_out.csv")["metrics"]
    assert list(metrics) == ["never_married"] and np.isnan(metrics["never_married"]["auc"])
    assert (tmp_path / "new_out.csv").read_bytes() == (tmp_path / "out.csv").read_bytes()

    packed = bytearray(gzip.compress(raw.read_bytes()))
    packed[-8] ^= 1  # a bit of the checksum
    (tmp_path / "bad.gz").write_bytes(packed)
    with pytest.raises(UserError, match=r"bad.gz: the file is truncated or damaged"):
        predict(checkpoint, tmp_path / "bad.gz", tmp_path / "new_out.csv")


def test_errors(tmp_path, root, lines, deepfm):
    raw = write_lines(tmp_path / "bad.txt", [*lines[:20], "a broken line"])
    done = run_process("predict.py", deepfm, raw, tmp_path / "out.csv", folder=tmp_path)
    assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
    assert "bad.txt, line 21: found 1 fields" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.glob("out.csv*"))
    with pytest.raises(UserError, match=r"cannot read .*nowhere"):
        predict(deepfm, tmp_path / "nowhere.txt")
    with pytest.raises(UserError, match=r"cannot write .*no_folder"):
        predict(deepfm, root / "criteo" / "train.txt", tmp_path / "no_folder" / "out.csv")
    (tmp_path / "cut.gz").write_bytes(gzip.compress("\n".join(lines).encode())[:-100])
    with pytest.raises(UserError, match="truncated or damaged"):
        predict(deepfm, tmp_path / "cut.gz", tmp_path / "out.csv")


def test_streams_that_fail(tmp_path, root, deepfm):
    for number, stream, message in (
        (1, (Path("/dev/full"), os.O_WRONLY), "cannot write standard output: No space left on device."),
        (1, None, "cannot write standard output: it is closed."),
        (0, None, "cannot read standard input: it is closed."),
    ):
        given = root / "criteo" / "train.txt" if number else "-"
        done = run_process("predict.py", deepfm, given, folder=tmp_path, streams={number: stream})
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert done.stderr.splitlines()[-1] == f"error: {message}"


def test_the_output_keeps_what_it_is_given(tmp_path, root, deepfm):
    raw, expected = root / "criteo" / "train.txt", tmp_path / "plain.csv"
    predict(deepfm, raw, expected)
    (tmp_path / "link").symlink_to("target.csv")
    for _ in range(2):  # the target is not there, and there
        predict(deepfm, raw, tmp_path / "link")
        assert (tmp_path / "link").is_symlink() and (tmp_path / "target.csv").read_bytes() == expected.read_bytes()
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()), daemon=True)
    reader.start()
    predict(deepfm, raw, tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()
    reader.join(60)
    assert read == [expected.read_bytes()]


def test_the_output_is_none_of_the_inputs(tmp_path, root, lines, deepfm):
    raw, checkpoint = write_lines(tmp_path / "raw.csv", lines), shutil.copy(deepfm, tmp_path / "best.ckpt")
    (tmp_path / "again.csv.gz").hardlink_to(raw)
    checkpoint = shutil.move(checkpoint, tmp_path / "ckpt.parquet")
    (tmp_path / "link").symlink_to(checkpoint)
    for output in (raw, tmp_path / "again.csv.gz", tmp_path / "link"):
        with pytest.raises(UserError, match=rf"{output} is also read, and would be overwritten"):
            predict(checkpoint, raw, output)
    done = run_process("predict.py", checkpoint, "-", raw, folder=tmp_path, streams={0: (raw, os.O_RDONLY)})
    assert done.returncode == 1 and "raw.csv is also read, and would be overwritten" in done.stderr
    assert raw.read_text().splitlines() == lines and load(checkpoint)


def test_the_suffix_says_what_is_written(tmp_path, root, deepfm):
    raw = root / "criteo" / "train.txt"
    results = [predict(deepfm, raw, tmp_path / f"p{suffix}") for suffix in (".csv", ".csv.gz", ".parquet")]
    assert (tmp_path / "p.csv.gz").read_bytes()[:2] == b"\x1f\x8b"
    plain, packed = (pd.read_csv(tmp_path / name, dtype="float32") for name in ("p.csv", "p.csv.gz"))
    for frame in (packed, pd.read_parquet(tmp_path / "p.parquet")):
        pd.testing.assert_frame_equal(plain, frame)
    assert all(type(value) is float for value in results[0]["metrics"]["probability"].values())
    for name in ("p.txt", "p.csv.bz2", "p"):
        with pytest.raises(UserError, match=rf"cannot write .*{name}: expected a name that ends in \.csv, \.csv\.gz"):
            predict(tmp_path / "nowhere.ckpt", raw, tmp_path / name)  # before anything is read
    assert not (tmp_path / "p.txt").exists()


def test_slices_of_the_rows(tmp_path, rng, deepfm, monkeypatch):
    monkeypatch.setattr("common.model.scored_rows.LEAST_ROWS", 30)
    rows = [line.split("\t") for line in make_lines(rng, 400, distinct=6)]
    for i, row in enumerate(rows):
        row[1], row[22] = str(i % 3 + 9), "rare" if i < 11 else row[22]
    raw = write_lines(tmp_path / "rows.txt", ["\t".join(row) for row in rows])
    found = predict(deepfm, raw, tmp_path / "p.csv.gz", slices=("C9", "I1"))["slices"]
    pd.testing.assert_frame_equal(found, pd.read_csv(tmp_path / "p_slices.csv", dtype={"value": str}), rtol=1e-8)
    assert (tmp_path / "p_slices.png").exists()
    probability = pd.read_csv(tmp_path / "p.csv.gz")["probability"]
    assert list(pd.read_csv(tmp_path / "p.csv.gz").columns) == ["probability"]
    frame = pd.DataFrame(
        {"p": probability, "y": [int(row[0]) for row in rows], "C9": [row[22] or "(missing)" for row in rows]}
    )
    counts = frame["C9"].value_counts()
    expected = {value: part for value, part in frame.groupby("C9") if counts[value] >= 30}
    others = frame[frame["C9"].map(counts) < 30]
    of_c9 = found[found["column"] == "C9"].set_index("value")
    assert set(of_c9.index) == {*expected, f"{(counts < 30).sum()} other values"} and of_c9["rows"].sum() == 400
    for value, part in [*expected.items(), (of_c9.index[-1], others)]:
        row = of_c9.loc[value]
        assert row["rows"] == len(part) and row["auc"] == pytest.approx(roc_auc_score(part["y"], part["p"]))
        assert row["log_loss"] == pytest.approx(log_loss(part["y"], part["p"]), abs=1e-6)
        assert row["calibration"] == pytest.approx(part["p"].mean() / part["y"].mean(), abs=1e-5)
        low, high = proportion_confint(part["y"].sum(), len(part))
        assert (row["low"], row["high"]) == pytest.approx((part["p"].mean() / high, part["p"].mean() / low), rel=1e-5)
    assert found[found["column"] == "I1"]["value"].tolist() == ["9", "10", "11"]  # as numbers
    with pytest.raises(UserError, match="there is no column 'C99'"):
        predict(deepfm, raw, tmp_path / "p.csv", slices=("C99",))
    write_lines(tmp_path / "new.txt", ["\t".join(row[1:]) for row in rows])
    with pytest.raises(UserError, match=r"new\.txt has no labels, so there are no slices"):
        predict(deepfm, tmp_path / "new.txt", tmp_path / "p.csv", slices=("C9",))


def proportion_confint(clicks: int, rows: int) -> tuple[float, float]:
    """Wilson's interval (1927)."""
    z, rate = 1.959964, clicks / rows
    centre, half = rate + z**2 / (2 * rows), z * (rate * (1 - rate) / rows + z**2 / (4 * rows**2)) ** 0.5
    return (centre - half) / (1 + z**2 / rows), (centre + half) / (1 + z**2 / rows)


def test_foreign_checkpoints(tmp_path, deepfm):
    for change, message in (
        ({"model": "Other"}, "found the model 'Other', expected one of DeepFM"),
        ({"model": None}, "found the model None"),
        ({"model": "DLRM"}, "does not fit this version of DLRM"),
        *(({part: {}}, "does not fit") for part in ("hyper_parameters", "ClickDataModule", "state_dict")),
    ):
        MappedCheckpointIO().save_checkpoint(load_checkpoint(deepfm) | change, tmp_path / "other.ckpt")
        with pytest.raises(UserError, match=message):
            load(tmp_path / "other.ckpt")
