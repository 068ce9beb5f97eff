"""docs/day.md: its blocks run in order, on a few rows of the sample."""

import re
import runpy
import shlex
import sys
from dataclasses import replace

import pandas as pd

import deepfm.train
from common.paths import REPO
from data.criteo_data import CRITEO, PUBLISHED
from data.samples.criteo import criteo_sample


def test_its_blocks_run(tmp_path, monkeypatch, outputs, capsys, undrawn):
    sample = criteo_sample(CRITEO, 3_000)
    (tmp_path / "criteo").symlink_to(sample)
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    monkeypatch.setitem(PUBLISHED, "criteo", replace(PUBLISHED["criteo"], sample=lambda: sample))
    for name, value in {"batch_size": 128, "embedding_dim": 4, "hidden_units": (8,)}.items():
        monkeypatch.setitem(deepfm.train.DATA if name == "batch_size" else deepfm.train.MODEL, name, value)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for language, block in re.findall("```(bash|python)\n(.*?)```", (REPO / "docs" / "day.md").read_text(), re.DOTALL):
        if language == "python":
            exec(block, names)
            continue
        for line in block.splitlines():
            program, script, *arguments = shlex.split(line)
            assert program == "python"
            monkeypatch.setattr(sys, "argv", [script, *arguments])
            runpy.run_path(str(REPO / script), run_name="__main__")
    printed = capsys.readouterr().out
    assert "as_it_is, averaged predictions" in printed and "cosine - as it is" in printed
    assert "Starting from" in printed and "Nearest to C9" in printed
    assert len(pd.read_csv(tmp_path / "scores.csv")) == 3_000
    assert pd.read_csv(tmp_path / "scores_slices.csv")["rows"].sum() == 3_000 and "compared with" in printed
    assert list((outputs / "runs" / "deepfm").glob("version_0/tensorboard/events.*"))
    assert names["later"]["settings"]["start_from"] == names["results"]["checkpoint"]
