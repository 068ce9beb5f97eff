"""DeepFM: A Factorization-Machine based Neural Network for CTR Prediction (Guo et al. 2017, arXiv:1703.04247).

B: batch, I: numeric fields, C: categorical fields, F = I + C, D: embedding size (k in the paper).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from common.embedding import PackedEmbedding
from common.layers import mlp
from common.module import ClickModel


class DeepFM(ClickModel):
    """logit = y_FM + y_DNN (eq. 1; the sigmoid is in the loss), both on the same embedding vectors.

    num_numbers: I; field_sizes: ids of each categorical field; hidden: widths of the deep part; dropout: of its layers;
    embedding_l2: on the rows of the batch. Forward: numbers (B, I), ids (B, C) -> logits (B,).
    """

    def __init__(
        self,
        num_numbers: int,
        field_sizes: Sequence[int],
        embedding_dim: int,
        hidden: Sequence[int],
        dropout: float,
        batch_norm: bool,
        learning_rate: float,
        embedding_learning_rate: float,
        embedding_l2: float,
        optimizer: str = "adam",
    ):
        super().__init__()
        self.save_hyperparameters()
        # w and V of eq. 2: the first-order weight of an id lies behind its vector, in the same row
        self.categories = PackedEmbedding(field_sizes, embedding_dim + 1)
        self.numbers = nn.Parameter(torch.empty(num_numbers, embedding_dim + 1))
        self.bias = nn.Parameter(torch.zeros(()))
        widths = [(num_numbers + len(field_sizes)) * embedding_dim, *hidden]
        self.deep = mlp(widths, dropout, batch_norm)
        self.deep_output = nn.Linear(widths[-1], 1)
        # small vectors: N(0, 1) would start at a log loss near 30
        nn.init.normal_(self.categories.weight, std=0.01)
        nn.init.normal_(self.numbers, std=0.01)

    def forward(self, numbers: Tensor, ids: Tensor) -> Tensor:
        # a numeric field is its value times the field's row, so it takes part in every term like a category
        rows = torch.cat([numbers.unsqueeze(2) * self.numbers, self.categories(ids)], 1)  # (B, F, D + 1)
        first_order, v = rows[..., -1], rows[..., :-1]  # (B, F), (B, F, D)
        y_fm = self.bias + first_order.sum(1) + pairwise_interactions(v)  # eq. 2
        # Differs from the paper's text, whose y_DNN is a sigmoid already: eq. 1 would apply it twice
        y_dnn = self.deep_output(self.deep(v.flatten(1))).squeeze(1)  # eq. 3 and 4
        return y_fm + y_dnn


def pairwise_interactions(v: Tensor) -> Tensor:
    """Sum over field pairs i < j of <v_i, v_j>: (B, F, D) -> (B,)."""
    # 1/2 [(sum_i v_i)^2 - sum_i v_i^2], linear in F (Rendle 2010, Lemma 3.1)
    return 0.5 * (v.sum(1).square() - v.square().sum(1)).sum(1)
