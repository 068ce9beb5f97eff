"""Behavior Sequence Transformer for E-commerce Recommendation in Alibaba (Chen et al. 2019, arXiv:1905.06874).

B: rows of a batch, Q: candidate items of a row, L: length of the history, D: embedding size, H: attention heads, Z:
latent factors, M: item ids, A: values of the items' attributes, C: feature columns of a user.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bst.behaviors import FusedBehaviors, behaviors
from common.errors import check
from common.model.embedding import PackedEmbedding
from common.model.layers import mlp
from common.model.metrics import ClickMetrics, PredictionMetric, RatingMetrics
from common.model.ranking import RankingMetrics
from common.model.recommender import Recommender
from data.history.dataset import PADDING, TIME_GAP_BUCKETS

USER_FEATURE_DIM = 8
NUM_DENSE = 3  # expected rating, user's bias, log of 1 + the number of past ratings
INIT_STD = 0.05  # of embeddings
POSITION_STD = 0.5  # of position embeddings; if they start alike, attention starts uniform and sharpens slowly


class Block(nn.Module):
    """A post-norm transformer block (section 2.2), for some queries of a sequence.

    In the paper's notation:
    S' = LN(Q + Dropout(MultiHead(Q, S, S))); F = LN(S' + Dropout(LeakyReLU(S' W1 + b1) W2 + b2))
    """

    def __init__(self, dim: int, num_heads: int, dropout: float):
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, num_heads, batch_first=True)
        self.feed_forward = nn.Sequential(nn.Linear(dim, 4 * dim), nn.LeakyReLU(), nn.Linear(4 * dim, dim))
        self.norm_attention, self.norm_output = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, past: Tensor, padding: Tensor, *, to_itself: bool) -> tuple[Tensor, Tensor]:
        """queries (B, Q, D), past (B, L, D), padding (B, L) bool -> output (B, Q, D), attention weights.

        to_itself: whether a query also attends to itself, as the one element that follows the past.
        """
        attended, weights = self.attend(queries, past, padding, to_itself=to_itself)
        out = self.norm_attention(queries + self.dropout(attended))
        return self.norm_output(out + self.dropout(self.feed_forward(out))), weights

    def attend(self, queries: Tensor, past: Tensor, padding: Tensor, *, to_itself: bool) -> tuple[Tensor, Tensor]:
        """The output of self.attention, and its weights (B, H, Q, L), or L + 1 if queries attend to themselves.

        With few queries it is cheaper to fold the key projection into the queries than to project the whole past:
        (Q Wq)(S Wk)^T = (Q Wq Wk^T) S^T and A (S Wv) = (A S) Wv. The keys' bias adds the same to every score, so it is
        left out.
        """
        dim, heads, length = queries.shape[2], self.attention.num_heads, past.shape[1]
        w_query, w_key, w_value = self.attention.in_proj_weight.view(3, heads, dim // heads, dim)
        b_query, _, b_value = self.attention.in_proj_bias.view(3, heads, 1, dim // heads)
        projected = torch.einsum("bqd,hed->bhqe", queries, w_query) + b_query
        folded = torch.einsum("bhqe,hed->bhqd", projected, w_key) / (dim // heads) ** 0.5
        scores = folded.flatten(1, 2) @ past.mT  # (B, H Q, L)
        scores = scores.masked_fill(padding.unsqueeze(1), float("-inf")).unflatten(1, (heads, -1))
        if to_itself:
            scores = torch.cat([scores, (folded * queries.unsqueeze(1)).sum(3, keepdim=True)], 3)
        weights = scores.softmax(3)
        attended = (weights[..., :length].flatten(1, 2) @ past).unflatten(1, (heads, -1))  # (B, H, Q, D)
        if to_itself:
            attended = attended + weights[..., length:] * queries.unsqueeze(1)
        values = torch.einsum("bhqd,hed->bhqe", attended, w_value) + b_value
        return self.attention.out_proj(values.transpose(1, 2).flatten(2)), weights


class BST(Recommender):
    """A user's rating of items, the logit of a click, or the score of an item that may come next, from the user's past.

    num_items: M; num_attributes: A; user_cardinalities: number of ids of the user itself and of each feature;
    history_length: L; num_factors: Z; hidden_units: widths of the MLP; dropout: of blocks and MLP; target: "rating",
    "click" or "item"; rating_range: least and greatest rating; rating_units: offset and unit, with logits = (rating -
    offset) / unit; loss: for "item", "softmax" or "bce" over an item and its sampled negatives; use_sequence: False
    leaves out the transformer and keeps everything else; optimizer: arguments of build_optimizer, in which embedding_*
    apply to the factors.
    """

    attribute_shares: Tensor
    metrics: PredictionMetric
    candidate_inputs = ("items", "dense")

    def __init__(
        self,
        num_items: int,
        num_attributes: int,
        user_cardinalities: Sequence[int],
        *,
        history_length: int,
        target: str,
        rating_range: Sequence[float],
        rating_units: Sequence[float],
        embedding_dim: int,
        num_heads: int,
        num_blocks: int,
        num_factors: int,
        hidden_units: Sequence[int],
        dropout: float,
        loss: str,
        use_sequence: bool,
        optimizer: dict[str, Any],
    ):
        super().__init__()
        check(
            embedding_dim % num_heads == 0,
            f"num_heads is {num_heads}; it must divide embedding_dim, which is {embedding_dim}.",
        )
        self.save_hyperparameters()
        self.metrics = {"rating": RatingMetrics, "click": ClickMetrics, "item": RankingMetrics}[target]()
        self.loss_weight = None if target == "item" else 1.0
        # An item's vector is the sum of an id, an attribute and a factor part. Each part has a second vector, added in
        # proportion to the rating's residual. Differs from the paper, whose behaviors carry no rating
        self.items = nn.Embedding(num_items, 2 * embedding_dim)  # dense: a batch of histories touches most items
        self.attributes = nn.Linear(num_attributes, 2 * embedding_dim)
        self.item_factors = nn.Linear(num_factors, 2 * embedding_dim, bias=False)
        self.register_buffer("attribute_shares", torch.zeros(num_items, num_attributes))
        self.user_features = nn.ModuleList(nn.Embedding(size, USER_FEATURE_DIM) for size in user_cardinalities[1:])
        # Differs from the paper: a factorization beside the MLP; a row is a vector and a bias
        self.factors = PackedEmbedding([user_cardinalities[0], num_items], num_factors + 1)
        nn.init.normal_(self.items.weight, std=INIT_STD)
        nn.init.normal_(self.factors.weight, std=INIT_STD)
        if use_sequence:
            self.time_gaps = nn.Embedding(TIME_GAP_BUCKETS, embedding_dim)
            # Differs from the paper: positions in the sequence beside the time gap (many ratings share a second)
            self.positions = nn.Parameter(torch.empty(history_length + 1, embedding_dim))
            self.blocks = nn.ModuleList(Block(embedding_dim, num_heads, dropout) for _ in range(num_blocks))
            self.history_factors = nn.Linear(embedding_dim, num_factors)
            nn.init.normal_(self.time_gaps.weight, std=INIT_STD)
            nn.init.normal_(self.positions, std=POSITION_STD)
        features = USER_FEATURE_DIM * len(self.user_features) + NUM_DENSE
        widths = [embedding_dim * (1 + use_sequence) + features, *hidden_units]
        self.mlp = mlp(widths, dropout, activation=nn.LeakyReLU)
        self.output = nn.Linear(widths[-1], 1)

    @property
    def display_name(self) -> str:
        return "BST" if self.hparams["use_sequence"] else "BST without its sequence"

    def forward(
        self, items: Tensor, history: Tensor, residual: Tensor, time_gap: Tensor, user_ids: Tensor, dense: Tensor
    ) -> Tensor:
        """Ratings in units, or logits, of candidates (B, Q), from items (B, Q), history (B, L) of past items, residual
        (B, L) of their ratings, time_gap (B, L) to now in buckets, user_ids (B, 1 + C), dense (B, Q, 3); ids int32."""
        vectors = self.item_vectors()
        target = functional.embedding(items, vectors[:, : self.hparams["embedding_dim"]])  # (B, Q, D)
        of_user = [table(ids) for table, ids in zip(self.user_features, user_ids.T[1:], strict=True)]
        features = [target, dense, *(part.unsqueeze(1).expand(-1, items.shape[1], -1) for part in of_user)]
        rows = torch.cat([user_ids[:, :1], items + self.hparams["user_cardinalities"][0]], 1)
        user_factors, item_factors = self.factors.lookup(rows).tensor_split([1], 1)  # (B, 1, Z + 1), (B, Q, Z + 1)
        interest = user_factors[..., :-1]
        if self.hparams["use_sequence"]:
            encoded, _ = self.encode_sequence(target, vectors, history, residual, time_gap)
            features.append(encoded)
            interest = interest + self.history_factors(encoded)
        factorization = (interest * item_factors[..., :-1]).sum(2) + user_factors[..., -1] + item_factors[..., -1]
        deep = self.output(self.mlp(torch.cat(features, 2))).squeeze(2)
        # Differs from the paper: predictions start from the expected rating, mean + item bias + user bias
        return dense[..., 0] + factorization + deep

    def item_vectors(self) -> Tensor:
        """The vector of each item, followed by what a residual of 1 adds to it (M, 2 D)."""
        factors = self.factors.weight[self.hparams["user_cardinalities"][0] :, :-1]
        # detached, so that only the factorization trains the factors
        return self.items.weight + self.attributes(self.attribute_shares) + self.item_factors(factors.detach())

    def encode_sequence(
        self, target: Tensor, vectors: Tensor, history: Tensor, residual: Tensor, time_gap: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The transformer's output at each target (B, Q, D), and the last block's attention weights."""
        form = FusedBehaviors.apply if self.training else behaviors
        past = form(vectors, self.time_gaps.weight, self.positions[:-1], history, residual, time_gap)  # (B, L, D)
        target = target + self.positions[-1]
        padding, candidates = history == PADDING, target.shape[1]
        if len(self.blocks) > 1:  # the past attends to the target, so each candidate has its own
            target = target.flatten(0, 1).unsqueeze(1)  # (B Q, 1, D)
            sequence = torch.cat([past.repeat_interleave(candidates, 0), target], 1)
            padding = padding.repeat_interleave(candidates, 0)
            for block in self.blocks[:-1]:
                sequence, _ = block(sequence, sequence, functional.pad(padding, (0, 1)), to_itself=False)
            past, target = sequence[:, :-1], sequence[:, -1:]
        # only the last block's output at the target is used
        out, weights = self.blocks[-1](target, past, padding, to_itself=True)
        return out.view(history.shape[0], candidates, -1), weights  # len() would fix the rows of an exported model

    @torch.no_grad()
    def attention(self, items: Tensor, history: Tensor, residual: Tensor, time_gap: Tensor) -> Tensor:
        """The last block's attention from one target a row (B, 1) to history and itself, mean over heads (B, L + 1)."""
        vectors = self.item_vectors()
        target = functional.embedding(items, vectors[:, : self.hparams["embedding_dim"]])
        return self.encode_sequence(target, vectors, history, residual, time_gap)[1].mean(1).squeeze(1)

    def validation_step(self, batch: list[Tensor], batch_index: int) -> None:
        *inputs, target = batch
        prediction = self.predict(self(*inputs).float())
        if self.hparams["target"] != "item":  # one candidate a row
            prediction, target = prediction.squeeze(1), target.squeeze(1)
        self.metrics.update(prediction, target)

    test_step = validation_step

    def loss(self, logits: Tensor, target: Tensor, log_q: Tensor | None = None) -> Tensor:
        """log_q (B, Q): for a softmax over negatives that are not drawn uniformly, the log of how often each is."""
        if self.hparams["target"] == "rating":
            offset, unit = self.hparams["rating_units"]
            return functional.mse_loss(logits, (target - offset) / unit)
        if self.hparams["target"] == "item" and self.hparams["loss"] == "softmax":
            # without the correction, frequent negatives would be scored too low (Bengio and Senecal 2008)
            return functional.cross_entropy(logits if log_q is None else logits - log_q, target)
        return functional.binary_cross_entropy_with_logits(logits, target)

    def predict(self, logits: Tensor) -> Tensor:
        """Ratings, probabilities of a click, or scores that order the items of a user."""
        if self.hparams["target"] == "item":
            return logits
        if self.hparams["target"] == "click":
            return logits.sigmoid()
        offset, unit = self.hparams["rating_units"]
        least, greatest = map(float, self.hparams["rating_range"])  # ONNX clips to two values of one type
        return (logits * unit + offset).clamp(least, greatest)
