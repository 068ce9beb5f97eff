"""DLRM: Deep Learning Recommendation Model for Personalization and Recommendation Systems (Naumov et al. 2019,
arXiv:1906.00091; its code is facebookresearch/dlrm). The paper numbers no equations; its sections are cited.

B: batch, I: numeric fields, C: categorical fields, D: embedding size, P: pairs of the C + 1 vectors.
"""

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor, nn

from common.embedding import PackedEmbedding
from common.errors import check
from common.layers import mlp
from common.module import ClickModel


class DLRM(ClickModel):
    """logit = top MLP of the bottom MLP's vector and all dot products between it and the embedding vectors (sec. 2.2).

    num_numbers: I; field_sizes: ids of each categorical field; bottom: hidden widths of the bottom MLP, whose output
    has width D; top: hidden widths of the top MLP; self_interaction: whether a vector's product with itself counts.
    Forward: numbers (B, I), ids (B, C) -> logits (B,).
    """

    table_class = PackedEmbedding

    def __init__(
        self,
        num_numbers: int,
        field_sizes: Sequence[int],
        embedding_dim: int,
        bottom: Sequence[int],
        top: Sequence[int],
        self_interaction: bool,
        dropout: float,
        optimizer: str,
        learning_rate: float,
        embedding_l2: float,
    ):
        super().__init__()
        check(num_numbers > 0, 'DLRM has no numbers to feed its bottom MLP; NUMBERS_AS must be "log" or "log+missing".')
        self.save_hyperparameters()
        self.categories = self.table_class(field_sizes, embedding_dim)
        # Differs from the paper: dropout is possible; it has none
        self.bottom = mlp([num_numbers, *bottom, embedding_dim], dropout)
        vectors = len(field_sizes) + 1
        pairs = torch.tril_indices(vectors, vectors, 0 if self_interaction else -1)  # (2, P)
        self.register_buffer("pairs", pairs[0] * vectors + pairs[1], persistent=False)
        widths = [embedding_dim + pairs.shape[1], *top]
        self.top = mlp(widths, dropout)
        self.output = nn.Linear(widths[-1], 1)
        self.reset_parameters()

    def forward(self, numbers: Tensor, ids: Tensor) -> Tensor:
        dense = self.bottom(numbers)  # (B, D)
        vectors = torch.cat([dense.unsqueeze(1), self.categories(ids)], 1)  # (B, C + 1, D)
        top_input = torch.cat([dense, dot_products(vectors, self.pairs)], 1)  # (B, D + P)
        return self.output(self.top(top_input)).squeeze(1)  # the sigmoid is in the loss

    def reset_parameters(self) -> None:
        """The initial values of the paper's code."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=sqrt(2 / (layer.in_features + layer.out_features)))
                nn.init.normal_(layer.bias, std=sqrt(1 / layer.out_features))
        self.reset_table(self.categories.weight.split(list(self.hparams.field_sizes)))

    def reset_table(self, parts: Sequence[Tensor]) -> None:
        """parts: rows of each field, some or all."""
        for size, part in zip(self.hparams.field_sizes, parts, strict=True):
            nn.init.uniform_(part, -sqrt(1 / size), sqrt(1 / size))


def dot_products(vectors: Tensor, pairs: Tensor) -> Tensor:
    """Vectors (B, C + 1, D) -> the products of the chosen pairs (B, P); pair (i, j) is i * (C + 1) + j in `pairs`."""
    return (vectors @ vectors.transpose(1, 2)).flatten(1).index_select(1, pairs)
