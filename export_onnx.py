"""Export a trained model to ONNX: `python export_onnx.py CHECKPOINT [RAW_FILE]`.

Writes CHECKPOINT with the suffix .onnx (inputs of any number of rows -> probabilities or ratings), and with the suffix
.json what is needed to turn a raw row into inputs. The model is checked first: on the first rows of RAW_FILE, or on
random rows without one, onnxruntime must agree with PyTorch to within 1e-4. docs/onnx.md scores a raw Criteo row with
the two files, without torch and without this repo. Needs onnx, onnxscript and onnxruntime (requirements-dev.txt).
"""

import json
import logging
import tempfile
import warnings
from inspect import signature
from pathlib import Path

from common.errors import UserError, answer_help, check, run_script

USAGE = "CHECKPOINT [RAW_FILE]"
if __name__ == "__main__":
    answer_help(__doc__, USAGE)

import numpy as np
import torch
from torch import Tensor, nn

from common.model.recommender import Recommender
from data.reader import input_of
from models import load, predict_batch

TOLERANCE = 1e-4
CHECKED_ROWS = 2000


class Predictor(nn.Module):
    """A model including its last step, from logits to predictions."""

    def __init__(self, model: Recommender):
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model.predict(self.model(*inputs))


def export(checkpoint: str | Path, raw: str | Path | None = None) -> dict:
    """Write <checkpoint>.onnx and .json; returns the number of rows checked and the largest difference from PyTorch.

    Raises: UserError if onnxruntime disagrees with PyTorch, a file cannot be written, or a package is not installed;
    the files of an earlier export are then kept.
    """
    try:
        import onnxruntime  # noqa: F401  used by _difference
        import onnxscript  # noqa: F401  used by torch.onnx
    except ImportError as error:
        raise UserError(f"{error.name} is not installed; `pip install -r requirements-dev.txt` installs it.") from error
    model, scorer = load(checkpoint)
    inputs = drawn = scorer.random_inputs(CHECKED_ROWS, np.random.default_rng(0))
    if raw is not None:
        inputs = [column[:CHECKED_ROWS] for column in next(scorer.batches(input_of(raw)))[0]]
    path = Path(checkpoint).with_suffix(".onnx")
    try:
        # in a temporary folder, not under another name: a model above 2 GiB contains the name of its weights file
        with tempfile.TemporaryDirectory(prefix=f"{path.name}.", dir=path.parent) as folder:
            beside = Path(folder) / path.name
            _write(model, drawn, beside)
            beside.with_suffix(".json").write_text(json.dumps(scorer.metadata()))
            difference = _difference(model, inputs, beside)
            check(
                np.isfinite(difference),
                f"some predictions of {checkpoint} are not finite: its weights are damaged, or a number in a row is "
                "far too large. Correct the row, or train again.",
            )
            check(
                difference <= TOLERANCE,
                f"{path} differs from PyTorch by {difference:.1e}, more than {TOLERANCE:.0e}; it was not kept.",
            )
            # old files are removed first: an interruption may leave a file missing, but never an old one beside a new
            for old in (path, path.with_suffix(".json")):
                old.unlink(missing_ok=True)
            for new in sorted(Path(folder).iterdir(), reverse=True):  # .json comes last
                new.replace(path.with_name(new.name))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}.") from error
    rows = f"{len(inputs[0]):,} {'random ' if raw is None else ''}rows"
    print(f"{path} and {path.with_suffix('.json').name}: within {difference:.1e} of PyTorch on {rows}")
    return {"path": path, "rows": len(inputs[0]), "difference": difference}


def _input_names(model: Recommender) -> list[str]:
    return list(signature(model.forward).parameters)


def _with_candidates(model: Recommender, inputs: list[Tensor], count: int) -> list[Tensor]:
    """The same inputs with each row's candidate repeated, if the model takes several."""
    names = _input_names(model)
    return [
        column.repeat_interleave(count, 1) if name in model.candidate_inputs else column
        for name, column in zip(names, inputs, strict=True)
    ]


def _write(model: Recommender, example: list[Tensor], path: Path) -> None:
    names, rows, candidates = _input_names(model), torch.export.Dim("rows"), torch.export.Dim("candidates")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # hides hints about models of other kinds
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", "# The axis name")
    torch.onnx.export(
        Predictor(model).eval(),
        tuple(_with_candidates(model, example, 2)),
        path,
        input_names=names,
        output_names=["prediction"],
        dynamic_shapes=(tuple({0: rows, 1: candidates} if n in model.candidate_inputs else {0: rows} for n in names),),
        external_data=sum(parameter.nbytes for parameter in model.parameters()) > 2**31 - 2**20,  # protobuf's limit
        dynamo=True,
        verbose=False,
    )


def _difference(model: Recommender, inputs: list[Tensor], path: Path) -> float:
    """The largest difference between onnxruntime and PyTorch; nan or inf if one of them returns such a number."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    used, differences = {given.name for given in session.get_inputs()}, []
    one = [column[:1] for column in inputs]  # also a batch of one
    for part in (inputs, one, _with_candidates(model, one, 5)):
        given = {name: column.numpy() for name, column in zip(_input_names(model), part, strict=True) if name in used}
        found = session.run(None, given)[0].reshape(len(part[0]), -1)
        differences.append(np.abs(found - predict_batch(model, part).numpy()).max())
    return float(np.max(differences))


if __name__ == "__main__":
    run_script(export, USAGE)
