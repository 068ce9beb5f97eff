"""DeepFM: A Factorization-Machine based Neural Network for CTR Prediction (Guo et al. 2017, arXiv:1703.04247).

B: rows of a batch, I: dense columns, F: categorical fields, D: embedding size (k in the paper).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from common.model.embedding import PackedEmbedding
from common.model.fixed_regression import FixedRegression
from common.model.layers import mlp
from common.model.recommender import CTRModel


class DeepFM(CTRModel):
    """logit = y_FM + y_DNN (eq. 1; the sigmoid is in the loss), both on the same embedding vectors.

    num_dense: I; cardinalities: number of ids of each categorical field; hidden_units: widths of the deep part;
    dropout: of its layers; on_regression: whether a FixedRegression is added; pooling: of fields with several
    values in a cell, see PackedEmbedding; optimizer: arguments of build_optimizer. Forward: dense (B, I), ids (B, F),
    or more columns with `pooling` -> logits (B,).
    """

    def __init__(
        self,
        num_dense: int,
        cardinalities: Sequence[int],
        *,
        pooling: Sequence[str | None] | None = None,
        embedding_dim: int,
        hidden_units: Sequence[int],
        dropout: float,
        on_regression: bool,
        batch_norm: bool,
        optimizer: dict[str, Any],
    ):
        super().__init__()
        self.save_hyperparameters()
        # w and V of eq. 2: the first-order weight of an id follows its vector, in the same row of D + 1 numbers
        self.embedding = PackedEmbedding(cardinalities, embedding_dim + 1, pooling)
        self.dense_embedding = nn.Parameter(torch.empty(num_dense, embedding_dim + 1))
        self.bias = nn.Parameter(torch.zeros(()))
        widths = [(num_dense + len(cardinalities)) * embedding_dim, *hidden_units]
        self.deep = mlp(widths, dropout, batch_norm)
        self.deep_output = nn.Linear(widths[-1], 1)
        self.regression = FixedRegression(num_dense, cardinalities, pooling) if on_regression else None
        # small initial vectors: N(0, 1) would start at a log loss near 30
        nn.init.normal_(self.embedding.weight, std=0.01)
        nn.init.normal_(self.dense_embedding, std=0.01)

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        # V_i x_i, and w_i x_i as its last number; x is 1 for a category, and the value of a dense column
        rows = torch.cat([dense.unsqueeze(2) * self.dense_embedding, self.embedding(ids)], 1)  # (B, I + F, D + 1)
        v, first_order = rows[..., :-1], rows[..., -1].sum(1)
        # sum_{i<j} <v_i, v_j> = 1/2 [(sum_i v_i)^2 - sum_i v_i^2], linear in I + F (Rendle 2010, Lemma 3.1)
        fm = first_order + 0.5 * (v.sum(1).square() - v.square().sum(1)).sum(1)  # eq. 2 without its bias
        # Differs from the paper: there y_DNN is already a sigmoid, and eq. 1 would apply it a second time
        y_dnn = self.deep_output(self.deep(v.flatten(1))).squeeze(1)  # eq. 3 and 4, on the same v
        if self.regression is not None:
            # Differs from the paper: w may start from a logistic regression; L2 then pulls it there instead of to 0
            fm = fm + self.regression(dense, ids)
        return self.bias + fm + y_dnn
