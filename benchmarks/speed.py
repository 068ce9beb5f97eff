"""Training speed of DeepFM beside its peers: `python benchmarks/speed.py`, with benchmarks/requirements.txt installed.

Same generated rows, fields, widths, batch and threads for all. Peers get encoded arrays in memory and their documented
loop; ours is the whole run through Lightning with its own loader, validation left out of the time. Each repeat is a
process of its own, the contenders take turns; shown are medians, spreads and the ratio to ours within each turn.
Writes speed.csv, speed.md and speed.png to OUTPUT.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repo root, ahead of this folder

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional

from benchmarks.generate_criteo import generate
from common.embedding import PackedEmbedding
from common.paths import output_root
from common.training import resolve_precision, train_and_test
from data.criteo_data import CriteoDataModule
from deepfm.deepfm import DeepFM, pairwise_interactions

ROWS = 2_160_000  # generated: 1.36 million embedding rows
TRAIN_ROWS = 200_000  # of them, trained on in each repeat
EMBEDDING_DIM = 16
HIDDEN = (400, 400, 400)
BATCH_SIZE = 4096
LEARNING_RATE = 1e-3
REPEATS = 5
OUTPUT = output_root() / "runs" / "speed"


def open_data() -> CriteoDataModule:
    folder = OUTPUT / "data"
    if not (folder / "criteo" / "train.txt").exists():
        generate(folder, ROWS)
    data = CriteoDataModule(data_root=str(folder), numbers="log", min_count=1, batch_size=BATCH_SIZE)
    data.setup()
    data.rows = {name: rows[: TRAIN_ROWS if name == "train" else BATCH_SIZE] for name, rows in data.rows.items()}
    return data


def ours(data: CriteoDataModule, precision: str) -> float:
    sizes = data.num_numbers, data.field_sizes, EMBEDDING_DIM, HIDDEN
    model = DeepFM(*sizes, 0.0, False, LEARNING_RATE, LEARNING_RATE, 0.0)
    settings = {"max_epochs": 1, "validations_per_epoch": 1, "precision": precision, "schedule": "linear"}
    settings |= {"patience": 1, "seed": 1}
    with tempfile.TemporaryDirectory() as folder:
        results = train_and_test(
            model,
            data,
            Path(folder),
            settings,
            monitor="val_auc",
            mode="max",
            baselines=dict,
            best_possible=dict,
            draw=lambda *_: None,
            test=False,
        )
    return results["train_samples_per_second"]


def deepctr(data: CriteoDataModule) -> float:
    from deepctr_torch.inputs import DenseFeat, SparseFeat
    from deepctr_torch.models import DeepFM as Peer

    features, label = _columns(data)
    columns = [SparseFeat(f"C{i}", size, EMBEDDING_DIM) for i, size in enumerate(data.field_sizes)]
    columns += [DenseFeat(f"I{i}", 1) for i in range(data.num_numbers)]
    model = Peer(columns, columns, dnn_hidden_units=HIDDEN)
    model.compile("adam", "binary_crossentropy")
    return _timed(lambda: model.fit(features, label, batch_size=BATCH_SIZE, epochs=1, verbose=0), len(label))


def rechub(data: CriteoDataModule) -> float:
    from torch_rechub.basic.features import DenseFeature, SparseFeature
    from torch_rechub.models.ranking import DeepFM as Peer
    from torch_rechub.trainers import CTRTrainer
    from torch_rechub.utils.data import DataGenerator

    features, label = _columns(data)
    sparse = [SparseFeature(f"C{i}", size, EMBEDDING_DIM) for i, size in enumerate(data.field_sizes)]
    dense = [DenseFeature(f"I{i}") for i in range(data.num_numbers)]
    model = Peer(dense + sparse, sparse, {"dims": list(HIDDEN), "activation": "relu"})
    loader, _, _ = DataGenerator(features, label).generate_dataloader(split_ratio=[0.99, 0.005], batch_size=BATCH_SIZE)
    trainer = CTRTrainer(model, optimizer_params={"lr": LEARNING_RATE}, n_epoch=1)
    return _timed(lambda: trainer.train_one_epoch(loader), len(loader.dataset))


def fbgemm(data: CriteoDataModule, precision: str) -> float:
    """Fused row-wise Adagrad of fbgemm-gpu on its tables, with the head that ours has."""
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    width = 4 * -(-(EMBEDDING_DIM + 1) // 4)  # its rows are multiples of 4 wide
    tables = SplitTableBatchedEmbeddingBagsCodegen(
        [(size, width, EmbeddingLocation.HOST, ComputeDevice.CPU) for size in data.field_sizes],
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=LEARNING_RATE,
        pooling_mode=PoolingMode.SUM,
    )
    fields = len(data.field_sizes)

    def look_up(ids: torch.Tensor) -> torch.Tensor:
        offsets = torch.arange(ids.numel() + 1)
        return tables(ids.T.flatten().long(), offsets).unflatten(1, (fields, width))

    model = DeepFM(data.num_numbers, [1] * fields, EMBEDDING_DIM, HIDDEN, 0.0, False, LEARNING_RATE, LEARNING_RATE, 0.0)
    head = nn.ParameterList(p for name, p in model.named_parameters() if not name.startswith("categories"))
    optimizer = torch.optim.Adam(head, LEARNING_RATE, fused=True)

    def epoch() -> None:
        for numbers, ids, label in _batches(data):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
                rows = torch.cat([numbers.unsqueeze(2) * model.numbers, look_up(ids)[..., : EMBEDDING_DIM + 1]], 1)
                v = rows[..., :-1]
                deep = model.deep_output(model.deep(v.flatten(1))).squeeze(1)
                logits = model.bias + rows[..., -1].sum(1) + pairwise_interactions(v) + deep
                loss = functional.binary_cross_entropy_with_logits(logits.float(), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return _timed(epoch, len(data.rows["train"]))


def floor(data: CriteoDataModule, precision: str) -> float:
    """The matrix products of the deep part and one gather and scatter of the touched rows: no step can be faster."""
    fields = data.num_numbers + len(data.field_sizes)
    widths = [fields * EMBEDDING_DIM, *HIDDEN, 1]
    deep = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))
    table = torch.randn(sum(data.field_sizes), EMBEDDING_DIM + 1)
    offsets = PackedEmbedding(data.field_sizes, 1).offsets
    steps = [(len(ids), torch.unique(ids + offsets).long()) for _, ids, _ in _batches(data)]
    x = torch.randn(BATCH_SIZE, widths[0], requires_grad=True)

    def epoch() -> None:
        for count, rows in steps:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
                loss = deep(x[:count]).sum()
            loss.backward()
            table.index_copy_(0, rows, table.index_select(0, rows))

    return _timed(epoch, len(data.rows["train"]))


def contenders() -> dict[str, Callable[[CriteoDataModule], float]]:
    """Name -> samples/s; what runs in bf16 is in float32 beside it where the processor has bf16."""
    best = resolve_precision("auto")
    entries = {}
    for precision in dict.fromkeys([best, "32-true"]):
        for name, function in (("ours", ours), ("fbgemm", fbgemm), ("floor", floor)):
            entries[f"{name} {precision}"] = lambda data, f=function, p=precision: f(data, p)
    return entries | {"deepctr-torch": deepctr, "torch-rechub": rechub}


def _columns(data: CriteoDataModule) -> tuple[dict[str, np.ndarray], np.ndarray]:
    numbers, ids, label = data.read(data.rows["train"])
    features = {f"C{i}": ids[:, i].astype(np.int64) for i in range(ids.shape[1])}
    return features | {f"I{i}": numbers[:, i] for i in range(numbers.shape[1])}, label


def _batches(data: CriteoDataModule) -> Iterator[tuple[torch.Tensor, ...]]:
    tensors = [torch.from_numpy(array) for array in data.read(data.rows["train"])]
    return zip(*(tensor.split(BATCH_SIZE) for tensor in tensors), strict=True)


def _timed(epoch: Callable[[], object], samples: int) -> float:
    begin = time.perf_counter()
    epoch()
    return samples / (time.perf_counter() - begin)


def main() -> None:
    """All contenders in turn, then table and figure."""
    open_data()
    names, turns = list(contenders()), []
    for turn in range(REPEATS):
        speeds = {}
        for name in names:
            done = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{name} failed:\n{done.stderr[-2000:]}")
            speeds[name] = json.loads(done.stdout.splitlines()[-1])
            print(f"turn {turn + 1} of {REPEATS}  {name:20} {speeds[name]:10,.0f} samples/s", flush=True)
        turns.append(speeds)
    speeds = pd.DataFrame(turns)
    ratio = (1 / speeds).mul(speeds[names[0]], axis=0)
    table = pd.DataFrame(
        {
            "samples/s": speeds.median(),
            "min": speeds.min(),
            "max": speeds.max(),
            f"{names[0]} is so many times faster": ratio.median(),
        }
    ).round(2)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    speeds.to_csv(OUTPUT / "speed.csv", index=False)
    head = f"{torch.get_num_threads()} threads, batch {BATCH_SIZE}, {REPEATS} turns\n\n"
    (OUTPUT / "speed.md").write_text(head + table.to_string() + "\n")
    print(head + table.to_string())
    figure = Figure((7, 3), layout="constrained")
    axes = figure.subplots()
    axes.barh(table.index, table["samples/s"])
    axes.set(xlabel="samples/s", title="DeepFM, training")
    figure.savefig(OUTPUT / "speed.png", dpi=120)


if __name__ == "__main__":
    if len(sys.argv) > 1:  # one repeat of one contender, in a process of its own
        torch.manual_seed(0)
        print(json.dumps(contenders()[sys.argv[1]](open_data())))
    else:
        main()
