"""The training step of the paper's DLRM, rebuilt from the paper: one EmbeddingBag per field, SGD, batches in memory."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.criteo_shaped import RawRows
from benchmarks.ours import BOTTOM_MLP_UNITS, EMBEDDING_DIM, TOP_MLP_UNITS
from benchmarks.turns import timed
from common.model.layers import mlp

LEARNING_RATE = 0.1  # of the paper's code on Kaggle


class ReferenceDLRM(nn.Module):
    """dense (B, I), ids of each field (B,) -> logits (B,)."""

    def __init__(self, num_dense: int, cardinalities: list[int]):
        super().__init__()
        self.tables = nn.ModuleList(
            nn.EmbeddingBag(size, EMBEDDING_DIM, mode="sum", sparse=True) for size in cardinalities
        )
        self.bottom_mlp = mlp([num_dense, *BOTTOM_MLP_UNITS, EMBEDDING_DIM])
        vectors = len(cardinalities) + 1
        rows, columns = torch.tril_indices(vectors, vectors, -1)
        self.register_buffer("rows", rows)
        self.register_buffer("columns", columns)
        self.top_mlp = mlp([EMBEDDING_DIM + len(rows), *TOP_MLP_UNITS])
        self.output = nn.Linear(TOP_MLP_UNITS[-1], 1)

    def forward(self, dense: Tensor, ids: list[Tensor]) -> Tensor:
        bottom = self.bottom_mlp(dense)
        offsets = torch.arange(len(bottom))  # one id per bag
        looked_up = [table(column, offsets) for table, column in zip(self.tables, ids, strict=True)]
        vectors = torch.cat([bottom, *looked_up], 1).view(len(bottom), -1, EMBEDDING_DIM)
        products = torch.bmm(vectors, vectors.transpose(1, 2))[:, self.rows, self.columns]
        return self.output(self.top_mlp(torch.cat([bottom, products], 1))).squeeze(1)


def reference(data: RawRows) -> float:
    """Samples per second of training."""
    model = ReferenceDLRM(data.num_dense, data.cardinalities)
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE)
    batches = [(dense, [*ids.T.long().contiguous()], label) for dense, ids, label in data.batches()]

    def epoch() -> None:
        for dense, ids, label in batches:
            loss = functional.binary_cross_entropy_with_logits(model(dense, ids), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return timed(epoch, len(data.rows["train"]))
