"""Files that are not checkpoints, or damaged ones: a clear error, and no code in them is run."""

import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from common.checkpoint import load_checkpoint
from common.errors import UserError
from deepfm.train import train
from models import load
from predict import predict
from tests.criteo_rows import make_lines, write_lines
from tests.script_process import run_process

pytestmark = pytest.mark.usefixtures("undrawn")

SMALL = {"max_epochs": 1, "precision": "32-true", "embedding_dim": 4}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """DATA_ROOT with 200 Criteo rows."""
    root = tmp_path_factory.mktemp("root")
    write_lines(root / "criteo" / "train.txt", make_lines(np.random.default_rng(0), 200))
    return root


@pytest.fixture(scope="module")
def good(root, tmp_path_factory) -> Path:
    """A checkpoint of DeepFM."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OUTPUT_ROOT", str(tmp_path_factory.mktemp("output")))
        train(data_root=str(root), hidden_units=(8,), **SMALL)
        return next(Path(os.environ["OUTPUT_ROOT"]).glob("runs/deepfm/version_0/checkpoints/best.ckpt"))


class Payload:
    """Unpickling this object creates a folder."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.marker),)


def test_a_payload_is_never_run(tmp_path, good):
    marker, files = tmp_path / "it ran", []
    content = load_checkpoint(good)
    for name, holder in (("alone", Payload(marker)), ("added", content | {"callbacks": {"x": [Payload(marker)]}}),
                         ("weight", content | {"state_dict": {"w": Payload(marker)}})):  # fmt: skip
        for form, zipped in (("zip", True), ("old", False)):
            files.append(tmp_path / f"{name}.{form}.ckpt")
            torch.save(holder, files[-1], _use_new_zipfile_serialization=zipped)
        files.append(tmp_path / f"{name}.pickle.ckpt")
        files[-1].write_bytes(pickle.dumps({"state_dict": {}, "x": Payload(marker)}))
    files.append(tmp_path / "script.ckpt")
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), files[-1])
    for path in files:
        for function in (load_checkpoint, load):
            with pytest.raises(UserError, match=f"{path.name} is not a readable checkpoint"):
                function(path)
    assert not marker.exists()
    done = run_process("predict.py", files[0], "-", folder=tmp_path)
    assert done.returncode == 1 and not marker.exists()
    assert "is not a readable checkpoint" in done.stderr and "Traceback" not in done.stderr
    torch.load(files[0], weights_only=False)  # the payload is one that works
    assert marker.exists()


def test_cut_and_foreign_files(tmp_path, good, rng):
    whole, path = good.read_bytes(), tmp_path / "bad.ckpt"
    contents = [whole[: round(len(whole) * share)] for share in (0, 0.001, 0.1, 0.5, 0.9, 0.999)]
    contents += [whole[:-1], whole[1:], whole[100:], whole[: len(whole) // 2] * 2]
    contents += [rng.bytes(count) for count in (1, 3, 1000, len(whole))]
    contents += [b"PK\x03\x04" + rng.bytes(1000), b"\x80\x02" + rng.bytes(100), b"1,2,3\n", b"\0" * 10_000]
    for other in ([], 3, torch.zeros(2), {}, {"weights": {}}, {"state_dict": [1]}):  # of another program
        torch.save(other, path)
        contents.append(path.read_bytes())
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"cos\nsystem\n(S'true'\ntR.")
    contents.append(path.read_bytes())
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"bad.ckpt is not a readable checkpoint"):
            load(path)
    for missing, why in ((tmp_path / "nowhere.ckpt", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(UserError, match=rf"cannot read the checkpoint {missing}: {why}.*checkpoints/best.ckpt"):
            load(missing)


def test_flipped_bytes_are_noticed_or_change_nothing(tmp_path, good, root, rng):
    whole, path = good.read_bytes(), tmp_path / "flipped.ckpt"
    raw, right, refused = root / "criteo" / "train.txt", tmp_path / "right.csv", 0
    predict(good, raw, right)
    places = [[whole.index(load_checkpoint(good)["state_dict"]["embedding.weight"].numpy().tobytes())]]  # stays finite
    for _ in range(int(os.environ.get("FUZZ_EXAMPLES", "10")) * 3):
        # half of them near the end, where the directory of the archive is
        least = len(whole) * rng.integers(2) * 19 // 20
        places.append(rng.integers(least, len(whole), rng.integers(1, 4)).tolist())
    for flipped in places:
        damaged = bytearray(whole)
        for place in flipped:
            damaged[place] ^= rng.integers(1, 256)
        path.write_bytes(damaged)
        try:
            predict(path, raw, tmp_path / "out.csv")
            assert (tmp_path / "out.csv").read_bytes() == right.read_bytes()
        except UserError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused > len(places) / 3


def test_a_run_is_not_resumed_from_a_damaged_checkpoint(root, outputs):
    settings = {"data_root": str(root), **SMALL}
    train(hidden_units=(8,), **settings)
    last = outputs / "runs" / "deepfm" / "version_0" / "checkpoints" / "last.ckpt"
    (last.parents[1] / "results.json").unlink()  # as if it had not come to its end
    whole = last.read_bytes()
    last.write_bytes(whole[:-100])
    with pytest.raises(UserError, match=r"last.ckpt is not a readable checkpoint"):
        train(hidden_units=(8,), resume=True, **settings)
    last.write_bytes(whole)
    train(hidden_units=(8,), resume=True, **settings)
    shutil.rmtree(outputs / "runs")
