"""Export a trained model to ONNX: `python export_onnx.py CHECKPOINT [RAW_FILE]`.

Writes CHECKPOINT with the ending .onnx (inputs of any number of rows -> probabilities or ratings) and beside it .json,
what turns a raw row into inputs. Both are checked: the outputs of onnxruntime on the first rows of RAW_FILE, or without
one on rows drawn at random, equal those of PyTorch to 1e-4.
The README scores a raw Criteo row with both, without torch and without this repo.
It needs onnx, onnxscript and onnxruntime (requirements-dev.txt).
"""

import inspect
import json
import logging
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import UserError, check, run_script
from common.module import Recommender
from predict import load, open_input, predict_batch

TOLERANCE = 1e-4
CHECKED_ROWS = 2000


class Predictor(nn.Module):
    """What a model predicts, its last step included."""

    def __init__(self, model: Recommender):
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model.predict(self.model(*inputs))


def export(checkpoint: str | Path, raw: str | Path | None = None) -> dict:
    """Write <checkpoint>.onnx and .json; returns rows checked, and the largest difference from PyTorch.

    Raises: UserError if onnxruntime does not give PyTorch's outputs, or a package is not installed.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  used by torch.onnx
    except ImportError as error:
        raise UserError(f"{error.name} is not installed; `pip install -r requirements-dev.txt` gets it.") from error
    model, scoring = load(checkpoint)
    names = list(inspect.signature(model.forward).parameters)
    drawn = scoring.draw(CHECKED_ROWS, np.random.default_rng(0))
    path = Path(checkpoint).with_suffix(".onnx")
    rows = torch.export.Dim("rows")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # what it lacks for models of other kinds
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", "# The axis name")
    torch.onnx.export(
        Predictor(model).eval(),
        tuple(drawn),
        path,
        input_names=names,
        output_names=["prediction"],
        dynamic_shapes=(tuple({0: rows} for _ in names),),
        external_data=sum(parameter.nbytes for parameter in model.parameters()) > 2**31 - 2**20,  # a protobuf's limit
        dynamo=True,
        verbose=False,
    )
    path.with_suffix(".json").write_text(json.dumps(scoring.sidecar()))
    inputs = drawn if raw is None else _first_rows(scoring, raw)
    session = onnxruntime.InferenceSession(path)
    used = {given.name for given in session.get_inputs()}
    difference = 0.0
    for part in (inputs, [column[:1] for column in inputs]):  # a batch of one too
        given = {name: column.numpy() for name, column in zip(names, part, strict=True) if name in used}
        found = session.run(None, given)[0].reshape(len(part[0]), -1)
        difference = max(difference, float(np.abs(found - predict_batch(model, part).numpy()).max()))
    check(difference <= TOLERANCE, f"{path} differs from PyTorch by {difference:.1e}, more than {TOLERANCE:.0e}.")
    return {"path": path, "rows": len(inputs[0]), "difference": difference}


def _first_rows(scoring, raw: str | Path) -> list[Tensor]:
    with open_input(raw) as (stream, _):
        inputs, _ = next(scoring.batches(stream, str(raw)))
    return [column[:CHECKED_ROWS] for column in inputs]


def main() -> None:
    check(len(sys.argv) in (2, 3), "usage: python export_onnx.py CHECKPOINT [RAW_FILE]")
    result = export(*sys.argv[1:])
    path, kind = result["path"], "rows" if len(sys.argv) == 3 else "made-up rows"
    print(f"{path} and {path.with_suffix('.json').name}: within {result['difference']:.1e} of PyTorch on", end=" ")
    print(f"{result['rows']:,} {kind}")


if __name__ == "__main__":
    run_script(main)
