"""Behavior Sequence Transformer for E-commerce Recommendation in Alibaba (Chen et al. 2019, arXiv:1905.06874).

B: batch, L: length of the history, D: embedding size, H: heads, K: factors, M: movie ids, G: genres, C: features of a
user.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.embedding import PackedEmbedding
from common.errors import check
from common.layers import mlp
from common.metrics import ClickMetrics, RatingMetrics
from common.module import Recommender

PADDING = 1  # id that fills up a history
DISTANCE_BUCKETS = 64  # of the time between a past rating and the target
USER_FEATURE_DIM = 8
NUM_NUMBERS = 3  # expected rating, user's level, log of the number of past ratings
INIT_STD = 0.05  # of embeddings
PLACE_STD = 0.5  # of places: equal ones attend to all alike, and that is slow to unlearn


class Block(nn.Module):
    """One transformer block, post-norm (section 2.2), for some queries Q of a sequence S.

    S' = LN(Q + Dropout(MultiHead(Q, S, S))); F = LN(S' + Dropout(LeakyReLU(S' W1 + b1) W2 + b2))
    """

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.feed_forward = nn.Sequential(nn.Linear(dim, 4 * dim), nn.LeakyReLU(), nn.Linear(4 * dim, dim))
        self.norm_attention, self.norm_output = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, sequence: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (B, Q, D), sequence (B, S, D), padding (B, S) True where nothing is -> (B, Q, D), weights."""
        attended, weights = self.attend(queries, sequence, padding)
        out = self.norm_attention(queries + self.dropout(attended))
        return self.norm_output(out + self.dropout(self.feed_forward(out))), weights

    def attend(self, queries: Tensor, sequence: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
        """What self.attention computes, and its weights (B, H, Q, S).

        With few queries it is cheaper to carry them into the space of the sequence than to project each element of it:
        (Q Wq)(S Wk)^T = (Q Wq Wk^T) S^T and A (S Wv) = (A S) Wv. A key's bias adds the same to every score.
        """
        dim, heads = queries.shape[2], self.attention.num_heads
        w_query, w_key, w_value = self.attention.in_proj_weight.view(3, heads, dim // heads, dim)
        b_query, _, b_value = self.attention.in_proj_bias.view(3, heads, 1, dim // heads)
        projected = torch.einsum("bqd,hed->bhqe", queries, w_query) + b_query
        carried = torch.einsum("bhqe,hed->bhqd", projected, w_key) / (dim // heads) ** 0.5
        scores = carried.flatten(1, 2) @ sequence.mT  # (B, H Q, S)
        weights = scores.masked_fill(padding.unsqueeze(1), float("-inf")).softmax(2)
        mixed = (weights @ sequence).unflatten(1, (heads, -1))  # (B, H, Q, D)
        values = torch.einsum("bhqd,hed->bhqe", mixed, w_value) + b_value
        return self.attention.out_proj(values.transpose(1, 2).flatten(2)), weights.unflatten(1, (heads, -1))


class BST(Recommender):
    """A user's rating of a movie, or the logit of a click, from the user's past ratings.

    num_movies: M; num_genres: G; user_sizes: ids of the user itself and of each feature; history: L; factors: K;
    hidden: widths of the MLP; dropout: of blocks and MLP; target: "rating" or "click"; scale: least and greatest
    rating; uses_sequence: False leaves out the transformer and keeps all else; embedding_learning_rate,
    embedding_l2: of the factors, the latter on those of a batch.
    """

    def __init__(
        self,
        num_movies: int,
        num_genres: int,
        user_sizes: Sequence[int],
        history: int,
        embedding_dim: int,
        heads: int,
        blocks: int,
        factors: int,
        hidden: Sequence[int],
        dropout: float,
        target: str,
        scale: Sequence[float],
        uses_sequence: bool,
        learning_rate: float,
        embedding_learning_rate: float,
        embedding_l2: float,
        optimizer: str = "adam",
    ):
        super().__init__()
        check(embedding_dim % heads == 0, f"HEADS is {heads}; it must divide EMBEDDING_DIM, {embedding_dim}.")
        self.save_hyperparameters()
        self.metrics = RatingMetrics() if target == "rating" else ClickMetrics()
        # A movie is its id, its genres and its factors. Each has a vector for the movie, and one that a rating above or
        # below expectation adds to it. Differs from the paper, whose behaviors have no strength
        self.movies = nn.Embedding(num_movies, 2 * embedding_dim)  # dense: a batch of histories touches most movies
        self.genres = nn.Linear(num_genres, 2 * embedding_dim)
        self.movie_factors = nn.Linear(factors, 2 * embedding_dim, bias=False)
        self.register_buffer("genre_shares", torch.zeros(num_movies, num_genres))
        self.user_features = nn.ModuleList(nn.Embedding(size, USER_FEATURE_DIM) for size in user_sizes[1:])
        # Differs from the paper: a factorization beside the MLP; a row is a vector and a bias
        self.factors = PackedEmbedding([user_sizes[0], num_movies], factors + 1)
        nn.init.normal_(self.movies.weight, std=INIT_STD)
        nn.init.normal_(self.factors.weight, std=INIT_STD)
        if uses_sequence:
            self.distances = nn.Embedding(DISTANCE_BUCKETS, embedding_dim)
            # Differs from the paper: the place in the sequence beside the time distance (many ratings share a second)
            self.places = nn.Parameter(torch.empty(history + 1, embedding_dim))
            self.blocks = nn.ModuleList(Block(embedding_dim, heads, dropout) for _ in range(blocks))
            self.history_factors = nn.Linear(embedding_dim, factors)
            nn.init.normal_(self.distances.weight, std=INIT_STD)
            nn.init.normal_(self.places, std=PLACE_STD)
        features = USER_FEATURE_DIM * len(self.user_features) + NUM_NUMBERS
        widths = [embedding_dim * (1 + uses_sequence) + features, *hidden]
        self.mlp = mlp(widths, dropout, activation=nn.LeakyReLU)
        self.output = nn.Linear(widths[-1], 1)

    @property
    def title(self) -> str:
        return "BST" if self.hparams.uses_sequence else "BST without its sequence"

    def forward(
        self, movie: Tensor, history: Tensor, deviation: Tensor, distance: Tensor, user: Tensor, numbers: Tensor
    ) -> Tensor:
        """movie (B,), history (B, L) past movies, deviation (B, L) of their ratings, distance (B, L) to the target in
        buckets, user (B, 1 + C), numbers (B, 3); ids int32 -> ratings or logits (B,)."""
        movies = self.movie_vectors()
        target = functional.embedding(movie, movies).chunk(2, 1)[0]  # (B, D)
        features = [table(ids) for table, ids in zip(self.user_features, user.T[1:], strict=True)]
        user_factors, movie_factors = self.factors(torch.stack([user[:, 0], movie], 1)).unbind(1)  # (B, K + 1)
        vector = user_factors[:, :-1]
        if self.hparams.uses_sequence:
            read, _ = self.read(target, movies, history, deviation, distance)
            features.append(read)
            vector = vector + self.history_factors(read)
        factorization = (vector * movie_factors[:, :-1]).sum(1) + user_factors[:, -1] + movie_factors[:, -1]
        deep = self.output(self.mlp(torch.cat([target, numbers, *features], 1))).squeeze(1)
        # Differs from the paper: starts from the expected rating, mean + movie bias + the user's level
        return numbers[:, 0] + factorization + deep

    def movie_vectors(self) -> Tensor:
        """(M, 2 D): of each movie, and what a deviation of 1 from the expected rating adds."""
        factors = self.factors.weight[self.hparams.user_sizes[0] :, :-1].detach()  # learned by the factorization alone
        return self.movies.weight + self.genres(self.genre_shares) + self.movie_factors(factors)

    def read(
        self, target: Tensor, movies: Tensor, history: Tensor, deviation: Tensor, distance: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The transformer's output at the target (B, D) and the last block's weights (B, H, 1, L + 1)."""
        strength = torch.stack([torch.ones_like(deviation), deviation], 2).unsqueeze(3)  # (B, L, 2, 1)
        behaviors = (functional.embedding(history, movies).unflatten(2, (2, -1)) * strength).sum(2)
        behaviors = behaviors + self.distances(distance)
        sequence = torch.cat([behaviors, target.unsqueeze(1)], 1) + self.places  # (B, L + 1, D)
        padding = functional.pad(history == PADDING, (0, 1), value=False)
        for block in self.blocks[:-1]:
            sequence, _ = block(sequence, sequence, padding)
        # of the last block only the output at the target is used
        out, weights = self.blocks[-1](sequence[:, -1:], sequence, padding)
        return out.squeeze(1), weights

    @torch.no_grad()
    def attention(self, movie: Tensor, history: Tensor, deviation: Tensor, distance: Tensor) -> Tensor:
        """Weights of the last block at the target, over history and target, mean of the heads (B, L + 1)."""
        movies = self.movie_vectors()
        target = functional.embedding(movie, movies).chunk(2, 1)[0]
        return self.read(target, movies, history, deviation, distance)[1].mean(1).squeeze(1)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        if self.hparams.target == "rating":
            return functional.mse_loss(logits, target)
        return functional.binary_cross_entropy_with_logits(logits, target)

    def predict(self, logits: Tensor) -> Tensor:
        return logits.clamp(*self.hparams.scale) if self.hparams.target == "rating" else logits.sigmoid()
