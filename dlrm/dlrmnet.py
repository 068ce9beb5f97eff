"""DLRM: Deep Learning Recommendation Model for Personalization and Recommendation Systems (Naumov et al. 2019,
arXiv:1906.00091; its code is facebookresearch/dlrm). The paper numbers no equations; its sections are cited.

B: rows of a batch, I: dense columns, F: categorical fields, D: embedding size, P: feature pairs.
"""

from collections.abc import Sequence
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import check
from common.model.dot_products import DotProducts
from common.model.embedding import PackedEmbedding
from common.model.layers import mlp
from common.model.recommender import CTRModel


class DLRM(CTRModel):
    """logit = top MLP of the bottom MLP's vector and of all dot products of it and the embedding vectors (sec. 2.2).

    num_dense: I; cardinalities: number of ids of each categorical field; bottom_mlp_units: hidden widths of the bottom
    MLP, whose output has D units; top_mlp_units: hidden widths of the top MLP; self_interaction: whether to include the
    product of each vector with itself; pooling: of fields with several values in a cell, see PackedEmbedding;
    optimizer: arguments of build_optimizer. Forward: dense (B, I), ids (B, F), or more columns with `pooling` ->
    logits (B,).
    """

    table_class = PackedEmbedding

    def __init__(
        self,
        num_dense: int,
        cardinalities: Sequence[int],
        *,
        pooling: Sequence[str | None] | None = None,
        embedding_dim: int,
        bottom_mlp_units: Sequence[int],
        top_mlp_units: Sequence[int],
        self_interaction: bool,
        dropout: float,
        optimizer: dict[str, Any],
    ):
        super().__init__()
        self.save_hyperparameters()
        self.embedding = self.table_class(cardinalities, embedding_dim, pooling)
        # Differs from the paper, which has no dropout: it is possible here
        self.bottom_mlp = mlp([num_dense, *bottom_mlp_units, embedding_dim], dropout) if num_dense else None
        # Differs from the paper: a table without dense columns is possible, and has no bottom MLP
        num_vectors = len(cardinalities) + (num_dense > 0)
        check(
            num_vectors > 1 or self_interaction or num_dense > 0,
            "DLRM multiplies pairs of vectors, but a single categorical column makes no pair. Add an input column.",
        )
        self.dot_products = DotProducts(num_vectors, self_interaction)
        widths = [embedding_dim * (num_dense > 0) + self.dot_products.num_pairs, *top_mlp_units]
        self.top_mlp = mlp(widths, dropout)
        self.output = nn.Linear(widths[-1], 1)
        self.reset_parameters()

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        vectors = self.embedding(ids)  # (B, F, D)
        if self.bottom_mlp is None:
            return self.output(self.top_mlp(self.dot_products(vectors))).squeeze(1)
        bottom = self.bottom_mlp(dense)  # (B, D)
        vectors = torch.cat([bottom.unsqueeze(1), vectors], 1)  # (B, 1 + F, D)
        top_input = torch.cat([bottom, self.dot_products(vectors)], 1)  # (B, D + P)
        return self.output(self.top_mlp(top_input)).squeeze(1)  # the sigmoid is in the loss

    def reset_parameters(self) -> None:
        """Initialise as the paper's code does."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=sqrt(2 / (layer.in_features + layer.out_features)))
                nn.init.normal_(layer.bias, std=sqrt(1 / layer.out_features))
        self.reset_table(self.embedding.weight.split(list(self.hparams["cardinalities"])))

    def reset_table(self, parts: Sequence[Tensor]) -> None:
        """Fill the given rows of each field with U(-1/sqrt(n), 1/sqrt(n)); n: number of all rows of the field."""
        for size, part in zip(self.hparams["cardinalities"], parts, strict=True):
            nn.init.uniform_(part, -sqrt(1 / size), sqrt(1 / size))
