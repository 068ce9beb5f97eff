"""DeepFM of other packages on MovieLens-1M as clicks: `python benchmarks/studies/peers_accuracy.py [PEER...]`.

The rows are those of `train(dataset="ml-1m", split="random")`, with its vector size and widths. Validation AUC chooses
the epoch, the L2 and the learning rate of each peer, with one seed; three seeds of the choice are tested. It needs the
packages of benchmarks/requirements.txt.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repo root, ahead of this folder

import numpy as np
import torch

from benchmarks.deepfm_peers import EMBEDDING_DIM, fuxictr_model
from common.errors import run_script
from common.model.metrics import click_metrics
from data.criteo_data import ClickDataModule
from deepfm.train import DATA

HIDDEN_UNITS, DROPOUT = (256, 128), 0.2
TRIES = tuple(product((1e-5, 3e-5, 1e-4, 3e-4), (1e-3, 3e-3)))  # (L2, rate); an L2 of 1e-5 is DeepCTR-Torch's default
EPOCHS, SEEDS = 8, (1, 2, 3)

Rows = tuple[dict[str, np.ndarray], np.ndarray]  # ids of each field by name, labels
Epochs = Iterator[Callable[[Rows], np.ndarray]]  # after each epoch, a function that predicts


def rows_of(data: ClickDataModule, split: str) -> Rows:
    _, ids, label = data.read(data.rows[split])
    return {f"C{i}": ids[:, i].astype(np.int64) for i in range(ids.shape[1])}, label


def deepctr(data: ClickDataModule, train: Rows, l2: float, rate: float, seed: int) -> Epochs:
    from deepctr_torch.inputs import SparseFeat
    from deepctr_torch.models import DeepFM

    columns = [SparseFeat(f"C{i}", size, EMBEDDING_DIM) for i, size in enumerate(data.cardinalities)]
    model = DeepFM(
        columns,
        columns,
        dnn_hidden_units=HIDDEN_UNITS,
        dnn_dropout=DROPOUT,
        l2_reg_linear=l2,
        l2_reg_embedding=l2,
        seed=seed,
    )
    model.compile(torch.optim.Adam(model.parameters(), rate), "binary_crossentropy")
    for _ in range(EPOCHS):
        model.fit(*train, batch_size=data.batch_size, epochs=1, verbose=0)
        yield lambda rows: model.predict(rows[0], 8192)[:, 0]


def fuxictr(data: ClickDataModule, train: Rows, l2: float, rate: float, seed: int) -> Epochs:
    """The package's layers, loader and fit()."""
    from fuxictr.pytorch.dataloaders import RankDataLoader

    torch.manual_seed(seed)
    model, features = fuxictr_model(0, data.cardinalities, HIDDEN_UNITS, rate, DROPOUT, l2)
    with tempfile.TemporaryDirectory() as folder:

        def save(rows: Rows) -> str:
            path = Path(folder) / f"{len(rows[1])}.npz"
            np.savez(path, label=rows[1], **rows[0])
            return str(path)

        def predict(rows: Rows) -> np.ndarray:
            return model.predict(RankDataLoader(features, "test", test_data=save(rows), batch_size=8192))

        batches, _ = RankDataLoader(features, "train", save(train), batch_size=data.batch_size)
        for _ in range(EPOCHS):
            model.fit(batches, epochs=1)
            yield predict


PEERS = {"deepctr-torch": deepctr, "fuxictr": fuxictr}


def best_epoch(
    peer: Callable, data: ClickDataModule, l2: float, rate: float, seed: int, test: bool
) -> tuple[float, dict[str, float]]:
    """Validation AUC of the best epoch, and its test metrics, if they are asked for."""
    train, val, held_out = (rows_of(data, split) for split in ("train", "val", "test"))
    best, tested = 0.0, {}
    for predict in peer(data, train, l2, rate, seed):
        auc = _metrics(predict, val)["auc"]
        if auc > best:
            best, tested = auc, _metrics(predict, held_out) if test else {}
    return best, tested


def _metrics(predict: Callable[[Rows], np.ndarray], rows: Rows) -> dict[str, float]:
    return click_metrics(torch.from_numpy(predict(rows)).double(), torch.from_numpy(rows[1]).double())


def main(*names: str) -> None:
    data = ClickDataModule(**DATA | {"dataset": "ml-1m", "split": "random"}, seed=1)
    data.setup()
    for name in names or PEERS:
        found = {}
        for l2, rate in TRIES:
            found[l2, rate] = best_epoch(PEERS[name], data, l2, rate, SEEDS[0], test=False)[0]
            print(f"{name}, L2 {l2:g}, rate {rate:g}: validation AUC {found[l2, rate]:.4f}", flush=True)
        l2, rate = max(found, key=found.__getitem__)
        tested = [best_epoch(PEERS[name], data, l2, rate, seed, test=True)[1] for seed in SEEDS]
        for metric in ("auc", "log_loss"):
            values = [each[metric] for each in tested]
            spread = f"{np.mean(values):.4f} ± {np.std(values, ddof=1):.4f}"
            print(f"{name}, L2 {l2:g}, rate {rate:g}: {metric} {spread}", flush=True)


if __name__ == "__main__":
    run_script(main, "[PEER...]")
