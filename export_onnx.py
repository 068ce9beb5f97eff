"""Export a trained model to ONNX: `python export_onnx.py CHECKPOINT [RAW_FILE]`.

Writes CHECKPOINT with the suffix .onnx (inputs of any number of rows -> probabilities or ratings), and with the suffix
.json what is needed to turn a raw row into inputs. The model is checked first: on the first rows of RAW_FILE, or on
random rows without one, onnxruntime must agree with PyTorch to within 1e-4. docs/onnx.md scores a raw row with the
two files, without torch and without this repo. Needs onnx, onnxscript and onnxruntime (requirements-dev.txt).
"""

import json
import logging
import tempfile
import warnings
from inspect import signature
from pathlib import Path

from common.errors import UserError, answer_help, check, run_script

USAGE = "CHECKPOINT [RAW_FILE]"
answer_help(__doc__, USAGE, __name__)  # before the imports below, which take seconds

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

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
    """Write <checkpoint>.onnx and .json; returns the path, the rows checked and the largest difference from PyTorch."""
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
                difference <= TOLERANCE,
                f"{path} differs from PyTorch by {difference:.1e}, more than {TOLERANCE:.0e}; it was not kept. (nan or "
                f"inf: the weights of {checkpoint} are damaged, or a number in a row is far too large.)",
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


def _named(model: Recommender, inputs: list[Tensor], candidates: int = 1) -> dict[str, Tensor]:
    """The inputs by name, each row's candidate repeated if the model takes several."""
    named = dict(zip(signature(model.forward).parameters, inputs, strict=True))
    return named | {name: named[name].repeat_interleave(candidates, 1) for name in model.candidate_inputs}


def _write(model: Recommender, inputs: list[Tensor], path: Path) -> None:
    example = _named(model, inputs, 2)
    shapes: dict[str, dict] = {name: {0: Dim("rows")} for name in example}
    for name in model.candidate_inputs:
        shapes[name][1] = Dim("candidates")
    pooling = model.hparams.get("pooling") or []
    if several := sum(how is not None for how in pooling):  # cells may have more values than any in training
        shapes["ids"][1] = several * Dim("values") + (len(pooling) - several)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # hides hints about models of other kinds
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", "# The axis name")
    torch.onnx.export(
        Predictor(model).eval(),
        tuple(example.values()),
        path,
        input_names=list(example),
        output_names=["prediction"],
        dynamic_shapes=(tuple(shapes.values()),),
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
    for named in (_named(model, inputs), _named(model, one), _named(model, one, 5)):
        found = session.run(None, {name: column.numpy() for name, column in named.items() if name in used})[0]
        expected = predict_batch(model, list(named.values())).numpy()
        differences.append(np.abs(found.reshape(expected.shape) - expected).max())
    return float(np.max(differences))


if __name__ == "__main__":
    run_script(export, USAGE)
