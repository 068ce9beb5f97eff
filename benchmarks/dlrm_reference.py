"""The step of the paper's DLRM code, rebuilt from the paper: one EmbeddingBag per field, SGD, batches in memory."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.criteo_shaped import RawRows
from benchmarks.ours import BOTTOM, EMBEDDING_DIM, TOP
from benchmarks.turns import timed
from common.layers import mlp

LEARNING_RATE = 0.1  # of the paper's code on Kaggle


class ReferenceDLRM(nn.Module):
    """numbers (B, I), ids of each field (B,) -> logits (B,)."""

    def __init__(self, num_numbers: int, field_sizes: list[int]):
        super().__init__()
        self.tables = nn.ModuleList(
            nn.EmbeddingBag(size, EMBEDDING_DIM, mode="sum", sparse=True) for size in field_sizes
        )
        self.bottom = mlp([num_numbers, *BOTTOM, EMBEDDING_DIM])
        vectors = len(field_sizes) + 1
        rows, columns = torch.tril_indices(vectors, vectors, -1)
        self.register_buffer("rows", rows)
        self.register_buffer("columns", columns)
        self.top = mlp([EMBEDDING_DIM + len(rows), *TOP])
        self.output = nn.Linear(TOP[-1], 1)

    def forward(self, numbers: Tensor, ids: list[Tensor]) -> Tensor:
        dense = self.bottom(numbers)
        offsets = torch.arange(len(numbers))  # one id in each bag
        looked_up = [table(column, offsets) for table, column in zip(self.tables, ids, strict=True)]
        vectors = torch.cat([dense, *looked_up], 1).view(len(numbers), -1, EMBEDDING_DIM)
        products = torch.bmm(vectors, vectors.transpose(1, 2))[:, self.rows, self.columns]
        return self.output(self.top(torch.cat([dense, products], 1))).squeeze(1)


def reference(data: RawRows) -> float:
    """Samples per second of training."""
    model = ReferenceDLRM(data.num_numbers, data.field_sizes)
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE)
    batches = [(numbers, [*ids.T.long().contiguous()], label) for numbers, ids, label in data.batches()]

    def epoch() -> None:
        for numbers, ids, label in batches:
            loss = functional.binary_cross_entropy_with_logits(model(numbers, ids), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return timed(epoch, len(data.rows["train"]))
