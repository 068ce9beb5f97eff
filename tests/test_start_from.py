"""A run that starts from a checkpoint: what it keeps, what is new, and that it helps on the built-in sample."""

import json
from pathlib import Path

import pytest
import torch

from common.checkpoint import load_checkpoint
from common.errors import UserError
from data.criteo_data import CRITEO
from data.samples.criteo import criteo_sample
from data.table.encoder import TableEncoder
from deepfm.train import train
from dlrm.train import train as train_dlrm
from tests.criteo_rows import make_lines

COLUMNS = {"label": {"role": "label", "positive": ["1"], "negative": ["0"]}}
COLUMNS |= {f"I{i}": {"role": "dense"} for i in range(1, 14)} | {f"C{i}": {"role": "categorical"} for i in range(1, 27)}
SMALL = {"hidden_units": (8,), "embedding_dim": 3, "max_epochs": 1, "batch_size": 64, "precision": "32-true"}
pytestmark = pytest.mark.usefixtures("undrawn")
TABLES = ("embedding.weight", "regression.table.weight")


def write_table(root: Path, name: str, **files: list[str]) -> None:
    """A table of Criteo's columns with given files for train, val and test."""
    (root / name).mkdir()
    for part, lines in files.items():
        (root / name / f"{part}.tsv").write_text("\n".join(lines) + "\n")
    content = {"files": {part: f"{part}.tsv" for part in files}, "separator": "\t", "header": False}
    (root / name / "columns.json").write_text(json.dumps(content | {"columns": COLUMNS}))


def rows_by_value(content: dict) -> dict[tuple[str, object], torch.Tensor]:
    """Rows of both tables for each (field, value) of a checkpoint, read off its own vocabulary."""
    encoder, rows, start = TableEncoder.from_state(content["ClickDataModule"]["encoder"]), {}, 0
    tables = torch.cat([content["state_dict"][name] for name in TABLES], 1)
    for field in encoder.fields:
        for i, value in enumerate([0, 1, *field.vocabulary.to_pylist()]):
            rows[field.name, value] = tables[start + i]
        start += field.cardinality
    return rows


def test_known_values_keep_their_rows(tmp_path, rng, monkeypatch):
    lines = make_lines(rng, 900, distinct=40)
    held_out = {"val": lines[800:850], "test": lines[850:]}
    write_table(tmp_path, "first", train=lines[:60], **held_out)
    write_table(tmp_path, "second", train=lines[60:800], **held_out)
    settings = SMALL | {"data_root": str(tmp_path)}
    first = load_checkpoint(train(dataset="first", **settings)["checkpoint"])
    # with a rate near 0, a run ends with the weights it starts with
    still = {"learning_rate": 1e-12, "embedding_learning_rate": 1e-12, "embedding_l2": 0.0}
    path = str(tmp_path / "earlier.ckpt")
    torch.save(first, path)
    second = load_checkpoint(train(dataset="second", **settings, **still, start_from=path)["checkpoint"])
    before, after = rows_by_value(first), rows_by_value(second)
    known = before.keys() & after.keys()
    assert 52 < len(known) < len(after)
    for key in known:
        torch.testing.assert_close(after[key], before[key], rtol=0, atol=1e-6)
    new = torch.stack([after[key][:-1] for key in after.keys() - known])
    assert new.abs().max() > 0 and new.std() == pytest.approx(0.01, rel=0.1)  # as DeepFM starts them
    for name, weight in first["state_dict"].items():
        if name not in TABLES:
            torch.testing.assert_close(second["state_dict"][name], weight, rtol=0, atol=1e-6)

    with pytest.raises(UserError, match="is of DeepFM, not of DLRM"):
        train_dlrm(dataset="second", data_root=str(tmp_path), start_from=path)
    with pytest.raises(UserError, match=r"does not fit the model; use the settings of that run.*size mismatch"):
        train(dataset="second", **settings | {"embedding_dim": 5}, start_from=path)
    with pytest.raises(UserError, match="was trained on other data or columns"):
        train(dataset="second", **settings, dense_transform="bucket", start_from=path)


def test_new_days_of_the_sample(tmp_path, monkeypatch):
    monkeypatch.setattr("deepfm.train.fit_regression", lambda data: None)  # it takes longer than the model
    monkeypatch.setattr("deepfm.train.click_baselines", lambda data: {})
    lines = (criteo_sample(CRITEO, 24_000) / "train.txt").read_text().splitlines()
    held_out = {"val": lines[20_000:22_000], "test": lines[22_000:]}
    write_table(tmp_path, "first", train=lines[:10_000], **held_out)
    write_table(tmp_path, "second", train=lines[10_000:20_000], **held_out)
    settings = {"data_root": str(tmp_path), "precision": "32-true", "batch_size": 256}
    first = train(dataset="first", **settings)
    second = train(dataset="second", **settings, start_from=first["checkpoint"])
    alone = train(dataset="second", **settings)
    assert second["test"]["auc"] > max(first["test"]["auc"], alone["test"]["auc"]) + 0.005
