"""Behavior Sequence Transformer for E-commerce Recommendation in Alibaba (Chen et al. 2019, arXiv:1905.06874).

B: rows of a batch, L: length of the history, D: embedding size, H: attention heads, Q: queries of a block, Z: latent
factors, M: movie ids, G: genres, C: feature columns of a user.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.errors import check
from common.model.embedding import PackedEmbedding
from common.model.layers import mlp
from common.model.metrics import ClickMetrics, RatingMetrics
from common.model.recommender import Recommender
from data.movie_history import PADDING, TIME_GAP_BUCKETS

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

    def forward(self, queries: Tensor, sequence: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        """queries (B, Q, D), sequence (B, L + 1, D), padding (B, L + 1) bool -> output (B, Q, D), attention weights."""
        attended, weights = self.attend(queries, sequence, padding)
        out = self.norm_attention(queries + self.dropout(attended))
        return self.norm_output(out + self.dropout(self.feed_forward(out))), weights

    def attend(self, queries: Tensor, sequence: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        """The output of self.attention, and its weights (B, H, Q, L + 1).

        With few queries it is cheaper to fold the key projection into the queries than to project the whole sequence:
        (Q Wq)(S Wk)^T = (Q Wq Wk^T) S^T and A (S Wv) = (A S) Wv. The keys' bias adds the same to every score, so it is
        left out.
        """
        dim, heads = queries.shape[2], self.attention.num_heads
        w_query, w_key, w_value = self.attention.in_proj_weight.view(3, heads, dim // heads, dim)
        b_query, _, b_value = self.attention.in_proj_bias.view(3, heads, 1, dim // heads)
        projected = torch.einsum("bqd,hed->bhqe", queries, w_query) + b_query
        folded_queries = torch.einsum("bhqe,hed->bhqd", projected, w_key) / (dim // heads) ** 0.5
        scores = folded_queries.flatten(1, 2) @ sequence.mT  # (B, H Q, L + 1)
        weights = scores.masked_fill(padding.unsqueeze(1), float("-inf")).softmax(2)
        attended = (weights @ sequence).unflatten(1, (heads, -1))  # (B, H, Q, D)
        values = torch.einsum("bhqd,hed->bhqe", attended, w_value) + b_value
        return self.attention.out_proj(values.transpose(1, 2).flatten(2)), weights.unflatten(1, (heads, -1))


class BST(Recommender):
    """A user's rating of a movie, or the logit of a click, from the user's past ratings.

    num_movies: M; num_genres: G; user_cardinalities: number of ids of the user itself and of each feature;
    history_length: L; num_factors: Z; hidden_units: widths of the MLP; dropout: of blocks and MLP; target: "rating" or
    "click"; rating_range: least and greatest rating; rating_units: offset and unit, with logits = (rating - offset) /
    unit; use_sequence: False leaves out the transformer and keeps everything else; optimizer: arguments of
    build_optimizer, in which embedding_* apply to the factors.
    """

    genre_shares: Tensor

    def __init__(
        self,
        num_movies: int,
        num_genres: int,
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
        use_sequence: bool,
        optimizer: dict[str, Any],
    ):
        super().__init__()
        check(
            embedding_dim % num_heads == 0,
            f"num_heads is {num_heads}; it must divide embedding_dim, which is {embedding_dim}.",
        )
        self.save_hyperparameters()
        self.metrics = RatingMetrics() if target == "rating" else ClickMetrics()
        # A movie's vector is the sum of an id, a genre and a factor part. Each part has a second vector, added in
        # proportion to the rating's residual. Differs from the paper, whose behaviors carry no rating
        self.movies = nn.Embedding(num_movies, 2 * embedding_dim)  # dense: a batch of histories touches most movies
        self.genres = nn.Linear(num_genres, 2 * embedding_dim)
        self.movie_factors = nn.Linear(num_factors, 2 * embedding_dim, bias=False)
        self.register_buffer("genre_shares", torch.zeros(num_movies, num_genres))
        self.user_features = nn.ModuleList(nn.Embedding(size, USER_FEATURE_DIM) for size in user_cardinalities[1:])
        # Differs from the paper: a factorization beside the MLP; a row is a vector and a bias
        self.factors = PackedEmbedding([user_cardinalities[0], num_movies], num_factors + 1)
        nn.init.normal_(self.movies.weight, std=INIT_STD)
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
        self, movie_id: Tensor, history: Tensor, residual: Tensor, time_gap: Tensor, user_ids: Tensor, dense: Tensor
    ) -> Tensor:
        """Ratings in units or logits (B,), from movie_id (B,), history (B, L) of past movies, residual (B, L) of their
        ratings, time_gap (B, L) to the target in buckets, user_ids (B, 1 + C) and dense (B, 3); ids are int32."""
        movies = self.movie_vectors()
        target = functional.embedding(movie_id, movies).chunk(2, 1)[0]  # (B, D)
        features = [table(ids) for table, ids in zip(self.user_features, user_ids.T[1:], strict=True)]
        user_factors, movie_factors = self.factors(torch.stack([user_ids[:, 0], movie_id], 1)).unbind(1)  # (B, Z + 1)
        vector = user_factors[:, :-1]
        if self.hparams["use_sequence"]:
            encoded, _ = self.encode_sequence(target, movies, history, residual, time_gap)
            features.append(encoded)
            vector = vector + self.history_factors(encoded)
        factorization = (vector * movie_factors[:, :-1]).sum(1) + user_factors[:, -1] + movie_factors[:, -1]
        deep = self.output(self.mlp(torch.cat([target, dense, *features], 1))).squeeze(1)
        # Differs from the paper: predictions start from the expected rating, mean + movie bias + user bias
        return dense[:, 0] + factorization + deep

    def movie_vectors(self) -> Tensor:
        """The vector of each movie, followed by what a residual of 1 adds to it (M, 2 D)."""
        factors = self.factors.weight[self.hparams["user_cardinalities"][0] :, :-1]
        # detached, so that only the factorization trains the factors
        return self.movies.weight + self.genres(self.genre_shares) + self.movie_factors(factors.detach())

    def encode_sequence(
        self, target: Tensor, movies: Tensor, history: Tensor, residual: Tensor, time_gap: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The transformer's output at the target (B, D), and the last block's attention weights (B, H, 1, L + 1)."""
        vector, strength = functional.embedding(history, movies).chunk(2, 2)  # (B, L, D) each
        behaviors = vector + strength * residual.unsqueeze(2) + self.time_gaps(time_gap)
        sequence = torch.cat([behaviors, target.unsqueeze(1)], 1) + self.positions  # (B, L + 1, D)
        padding = functional.pad(history == PADDING, (0, 1), value=False)
        for block in self.blocks[:-1]:
            sequence, _ = block(sequence, sequence, padding)
        # only the last block's output at the target is used
        out, weights = self.blocks[-1](sequence[:, -1:], sequence, padding)
        return out.squeeze(1), weights

    @torch.no_grad()
    def attention(self, movie_id: Tensor, history: Tensor, residual: Tensor, time_gap: Tensor) -> Tensor:
        """The last block's attention from the target to history and target, averaged over heads (B, L + 1)."""
        movies = self.movie_vectors()
        target = functional.embedding(movie_id, movies).chunk(2, 1)[0]
        return self.encode_sequence(target, movies, history, residual, time_gap)[1].mean(1).squeeze(1)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        if self.hparams["target"] == "rating":
            offset, unit = self.hparams["rating_units"]
            return functional.mse_loss(logits, (target - offset) / unit)
        return functional.binary_cross_entropy_with_logits(logits, target)

    def predict(self, logits: Tensor) -> Tensor:
        if self.hparams["target"] == "click":
            return logits.sigmoid()
        offset, unit = self.hparams["rating_units"]
        least, greatest = map(float, self.hparams["rating_range"])  # ONNX clips to two values of one type
        return (logits * unit + offset).clamp(least, greatest)
