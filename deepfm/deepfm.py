"""DeepFM: A Factorization-Machine based Neural Network for CTR Prediction (Guo et al. 2017, arXiv:1703.04247).

B: rows of a batch, I: dense columns, F: categorical fields, D: embedding size (k in the paper).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from common.model.embedding import PackedEmbedding
from common.model.layers import mlp
from common.model.recommender import CTRModel


class DeepFM(CTRModel):
    """logit = y_FM + y_DNN (eq. 1; the sigmoid is in the loss), both on the same embedding vectors.

    num_dense: I; cardinalities: ids of each categorical field; hidden_units: widths of the deep part; dropout: of its
    layers; optimizer: arguments of build_optimizer. Forward: dense (B, I), ids (B, F) -> logits (B,).
    """

    def __init__(
        self,
        num_dense: int,
        cardinalities: Sequence[int],
        *,
        embedding_dim: int,
        hidden_units: Sequence[int],
        dropout: float,
        batch_norm: bool,
        optimizer: dict[str, Any],
    ):
        super().__init__()
        self.save_hyperparameters()
        # w and V of eq. 2: the first-order weight of an id lies behind its vector, in the same row of D + 1 numbers
        self.embedding = PackedEmbedding(cardinalities, embedding_dim + 1)
        self.dense_embedding = nn.Parameter(torch.empty(num_dense, embedding_dim + 1))
        self.bias = nn.Parameter(torch.zeros(()))
        widths = [(num_dense + len(cardinalities)) * embedding_dim, *hidden_units]
        self.deep = mlp(widths, dropout, batch_norm)
        self.deep_output = nn.Linear(widths[-1], 1)
        # small vectors: N(0, 1) would start at a log loss near 30
        nn.init.normal_(self.embedding.weight, std=0.01)
        nn.init.normal_(self.dense_embedding, std=0.01)

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        # a dense column is its value times its row, so it takes part in every term like a category
        rows = torch.cat([dense.unsqueeze(2) * self.dense_embedding, self.embedding(ids)], 1)  # (B, I + F, D + 1)
        first_order, v = rows[..., -1], rows[..., :-1]  # (B, I + F), (B, I + F, D)
        y_fm = self.bias + first_order.sum(1) + pairwise_interactions(v)  # eq. 2
        # Differs from the paper: its y_DNN is already a sigmoid, which eq. 1 would apply a second time
        y_dnn = self.deep_output(self.deep(v.flatten(1))).squeeze(1)  # eq. 3 and 4
        return y_fm + y_dnn


def pairwise_interactions(v: Tensor) -> Tensor:
    """Sum over field pairs i < j of <v_i, v_j>: (B, I + F, D) -> (B,)."""
    # 1/2 [(sum_i v_i)^2 - sum_i v_i^2], linear in I + F (Rendle 2010, Lemma 3.1)
    return 0.5 * (v.sum(1).square() - v.square().sum(1)).sum(1)
