"""DeepFM in other packages, and an upper bound: samples per second of training on encoded arrays in memory.

Each takes the data of criteo_shaped.py; packages are imported when they are used.
"""

import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.criteo_shaped import RawRows
from benchmarks.ours import ADAM, DEEPFM, EMBEDDING_DIM, HIDDEN_UNITS
from benchmarks.turns import timed
from common.model.embedding import PackedEmbedding
from deepfm.deepfm import DeepFM

LEARNING_RATE = ADAM["learning_rate"]


def pairwise_interactions(v: Tensor) -> Tensor:
    """Sum over field pairs i < j of <v_i, v_j> as plain operations: (B, I + F, D) -> (B,)."""
    return 0.5 * (v.sum(1).square() - v.square().sum(1)).sum(1)


def deepctr(data: RawRows) -> float:
    from deepctr_torch.inputs import DenseFeat, SparseFeat
    from deepctr_torch.models import DeepFM as Peer

    features, label = data.columns()
    columns = [SparseFeat(f"C{i}", size, EMBEDDING_DIM) for i, size in enumerate(data.cardinalities)]
    columns += [DenseFeat(f"I{i}", 1) for i in range(data.num_dense)]
    model = Peer(columns, columns, dnn_hidden_units=HIDDEN_UNITS)
    model.compile("adam", "binary_crossentropy")
    return timed(lambda: model.fit(features, label, batch_size=data.batch_size, epochs=1, verbose=0), len(label))


def rechub(data: RawRows) -> float:
    from torch_rechub.basic.features import DenseFeature, SparseFeature
    from torch_rechub.models.ranking import DeepFM as Peer
    from torch_rechub.trainers import CTRTrainer
    from torch_rechub.utils.data import DataGenerator

    features, label = data.columns()
    sparse = [SparseFeature(f"C{i}", size, EMBEDDING_DIM) for i, size in enumerate(data.cardinalities)]
    dense = [DenseFeature(f"I{i}") for i in range(data.num_dense)]
    model = Peer(dense + sparse, sparse, {"dims": list(HIDDEN_UNITS), "activation": "relu"})
    generator = DataGenerator(features, label)
    loader, _, _ = generator.generate_dataloader(split_ratio=[0.99, 0.005], batch_size=data.batch_size)
    trainer = CTRTrainer(model, optimizer_params={"lr": LEARNING_RATE}, n_epoch=1)
    return timed(lambda: trainer.train_one_epoch(loader), len(loader.dataset))


def fuxictr_model(
    num_dense: int,
    cardinalities: Sequence[int],
    hidden_units: Sequence[int],
    learning_rate: float,
    dropout: float = 0.0,
    l2: float = 0.0,
) -> tuple[Any, Any]:
    """DeepFM of the package's layers, which it leaves to its users to assemble, and its feature map.

    Columns are I0, I1, ... and C0, C1, ...; l2: on all embedding tables, the first-order weights included.
    """
    from fuxictr.features import FeatureMap
    from fuxictr.pytorch.layers import FactorizationMachine, FeatureEmbedding, MLP_Block
    from fuxictr.pytorch.models import BaseModel

    class Peer(BaseModel):
        def __init__(self, features: FeatureMap, **settings):
            super().__init__(features, **settings)
            self.embedding = FeatureEmbedding(features, EMBEDDING_DIM)
            self.fm = FactorizationMachine(features)
            self.deep = MLP_Block(features.sum_emb_out_dim(), list(hidden_units), output_dim=1, dropout_rates=dropout)
            self.compile("adam", "binary_crossentropy", learning_rate)
            self.reset_parameters()

        def forward(self, batch: dict) -> dict:
            inputs = self.get_inputs(batch)
            v = self.embedding(inputs)
            return {"y_pred": self.output_activation(self.fm(inputs, v) + self.deep(v.flatten(1)))}

        def eval_step(self) -> None:
            """Skip validation, which would be timed, and so the checkpoint after it,"""

        def load_weights(self, checkpoint: str) -> None:
            """which fit() would load at the end."""

    features = FeatureMap("table", "")
    features.labels, features.default_emb_dim = ["label"], EMBEDDING_DIM
    for i in range(num_dense):
        features.features[f"I{i}"] = {"source": "", "type": "numeric"}
    for i, size in enumerate(cardinalities):
        features.features[f"C{i}"] = {"source": "", "type": "categorical", "vocab_size": size}
    features.num_fields = features.get_num_fields()
    features.set_column_index()
    return Peer(features, model_root="", metrics=["AUC"], verbose=0, embedding_regularizer=l2 or None), features


def fuxictr(data: RawRows) -> float:
    """The package's layers, loader and fit()."""
    from fuxictr.pytorch.dataloaders import RankDataLoader

    columns, label = data.columns()
    model, features = fuxictr_model(data.num_dense, data.cardinalities, HIDDEN_UNITS, LEARNING_RATE)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.npz"
        np.savez(path, label=label, **columns)
        loader, _ = RankDataLoader(features, "train", str(path), batch_size=data.batch_size, data_format="npz")
    return timed(lambda: model.fit(loader, epochs=1), len(label))


def fbgemm(data: RawRows, precision: str) -> float:
    """fbgemm-gpu's tables with its fused row-wise Adagrad, and the same head as ours."""
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    width = 4 * -(-(EMBEDDING_DIM + 1) // 4)  # its row widths must be multiples of 4
    tables = SplitTableBatchedEmbeddingBagsCodegen(
        [(size, width, EmbeddingLocation.HOST, ComputeDevice.CPU) for size in data.cardinalities],
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=LEARNING_RATE,
        pooling_mode=PoolingMode.SUM,
    )
    fields = len(data.cardinalities)

    def look_up(ids: torch.Tensor) -> torch.Tensor:
        offsets = torch.arange(ids.numel() + 1)
        return tables(ids.T.flatten().long(), offsets).unflatten(1, (fields, width))

    model = DeepFM(data.num_dense, [1] * fields, **DEEPFM)  # for its head
    head = nn.ParameterList(p for name, p in model.named_parameters() if not name.startswith("embedding."))
    optimizer = torch.optim.Adam(head, LEARNING_RATE, fused=True)
    batches = data.batches()

    def epoch() -> None:
        for dense, ids, label in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
                rows = torch.cat(
                    [dense.unsqueeze(2) * model.dense_embedding, look_up(ids)[..., : EMBEDDING_DIM + 1]], 1
                )
                v = rows[..., :-1]
                deep = model.deep_output(model.deep(v.flatten(1))).squeeze(1)
                logits = model.bias + rows[..., -1].sum(1) + pairwise_interactions(v) + deep
                loss = functional.binary_cross_entropy_with_logits(logits.float(), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return timed(epoch, len(data.rows["train"]))


def floor(data: RawRows, precision: str) -> float:
    """Only the deep part's matrix products and one gather and scatter of the touched rows: no step can be faster."""
    fields = data.num_dense + len(data.cardinalities)
    widths = [fields * EMBEDDING_DIM, *HIDDEN_UNITS, 1]
    deep = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))
    table = torch.randn(sum(data.cardinalities), EMBEDDING_DIM + 1)
    offsets = PackedEmbedding(data.cardinalities, 1).offsets
    steps = [(len(ids), torch.unique(ids + offsets).long()) for _, ids, _ in data.batches()]
    x = torch.randn(data.batch_size, widths[0], requires_grad=True)

    def epoch() -> None:
        for count, rows in steps:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
                loss = deep(x[:count]).sum()
            loss.backward()
            table.index_copy_(0, rows, table.index_select(0, rows))

    return timed(epoch, len(data.rows["train"]))
