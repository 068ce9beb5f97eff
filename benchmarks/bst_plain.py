"""BST as most public ports write it: nn.TransformerEncoder over all places, a Dataset of rows, a default DataLoader.

The same sizes and inputs as bst/bst.py, for the comparison of speed; only the errors of those ports are left out.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Subset

from benchmarks.ours import speed
from benchmarks.turns import timed
from bst import train as settings
from bst.bst import BST, DISTANCE_BUCKETS, PADDING
from common.layers import mlp
from data.movie_rating_seq import MovieRatingDataModule

ROWS = 40_000  # training rows of one measurement


class PlainRows(Dataset):
    """One row after the other, its history sliced and padded in Python."""

    def __init__(self, data: MovieRatingDataModule):
        columns = data.examples().arrays
        self.movie, self.deviation, self.expected, self.level, self.user_ids = (a.numpy() for a in columns[:5])
        self.rating, self.time, self.user_row, self.start = (a.numpy() for a in columns[5:])
        self.history = data.history

    def __len__(self) -> int:
        return len(self.movie)

    def __getitem__(self, row: int) -> tuple:
        past = slice(max(self.start[row], row - self.history), row)
        empty = self.history - (past.stop - past.start)
        distance = np.log2(self.time[row] - self.time[past] + 1.0) * 2
        level = self.level[row]
        return (
            self.movie[row],
            np.pad(self.movie[past], (empty, 0), constant_values=PADDING),
            np.pad(self.deviation[past], (empty, 0)),
            np.pad(np.minimum(distance, DISTANCE_BUCKETS - 1).astype(np.int32), (empty, 0)),
            self.user_ids[self.user_row[row]],
            np.array([self.expected[row] + level, level, np.log(1 + row - self.start[row])], np.float32),
            self.rating[row],
        )


class PlainBST(nn.Module):
    """The parts of BST with torch's own layers."""

    def __init__(self, num_movies: int, user_sizes: list[int]):
        super().__init__()
        dim, factors = settings.EMBEDDING_DIM, settings.FACTORS
        self.movies, self.rated = nn.Embedding(num_movies, dim), nn.Embedding(num_movies, dim)
        self.distances = nn.Embedding(DISTANCE_BUCKETS, dim)
        self.places = nn.Embedding(settings.HISTORY + 1, dim)
        layer = nn.TransformerEncoderLayer(
            dim, settings.HEADS, 4 * dim, settings.DROPOUT, functional.leaky_relu, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, settings.BLOCKS, enable_nested_tensor=False)
        self.user_factors, self.movie_factors = nn.Embedding(user_sizes[0], factors), nn.Embedding(num_movies, factors)
        self.user_features = nn.ModuleList(nn.Embedding(size, 8) for size in user_sizes[1:])
        widths = [2 * dim + 8 * len(self.user_features) + 3, *settings.HIDDEN]
        self.mlp = nn.Sequential(mlp(widths, settings.DROPOUT, activation=nn.LeakyReLU), nn.Linear(widths[-1], 1))

    def forward(self, movie, history, deviation, distance, user, numbers) -> Tensor:
        target = self.movies(movie)
        behaviors = self.movies(history) + deviation.unsqueeze(2) * self.rated(history) + self.distances(distance)
        sequence = torch.cat([behaviors, target.unsqueeze(1)], 1) + self.places.weight
        padding = functional.pad(history == PADDING, (0, 1), value=False)
        out = self.encoder(sequence, src_key_padding_mask=padding)[:, -1]
        features = [table(user[:, i + 1]) for i, table in enumerate(self.user_features)]
        deep = self.mlp(torch.cat([target, out, numbers, *features], 1)).squeeze(1)
        return numbers[:, 0] + (self.user_factors(user[:, 0]) * self.movie_factors(movie)).sum(1) + deep


def rows(count: int = ROWS) -> MovieRatingDataModule:
    """The data of bst/train.py, `count` random rows of it to train on."""
    data = MovieRatingDataModule(settings.DATASET, history=settings.HISTORY, batch_size=settings.BATCH_SIZE)
    data.setup()
    data.rows["train"] = np.random.default_rng(0).permutation(data.rows["train"])[:count]
    data.rows["val"] = data.rows["val"][: settings.BATCH_SIZE]
    return data


def plain(data: MovieRatingDataModule) -> float:
    """Training samples per second of the plain port."""
    model = PlainBST(data.encoder.num_movies, data.encoder.user_sizes)
    optimizer = torch.optim.Adam(model.parameters(), settings.LEARNING_RATE)
    loader = DataLoader(Subset(PlainRows(data), data.rows["train"].tolist()), settings.BATCH_SIZE, shuffle=True)

    def epoch() -> None:
        for *inputs, rating in loader:
            loss = functional.mse_loss(model(*inputs), rating)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return timed(epoch, len(data.rows["train"]))


def ours(data: MovieRatingDataModule, precision: str) -> float:
    """Training samples per second of bst/bst.py."""
    model = BST(
        data.encoder.num_movies,
        len(data.encoder.genres),
        data.encoder.user_sizes,
        data.history,
        settings.EMBEDDING_DIM,
        settings.HEADS,
        settings.BLOCKS,
        settings.FACTORS,
        settings.HIDDEN,
        settings.DROPOUT,
        "rating",
        data.scale,
        True,
        settings.LEARNING_RATE,
        settings.EMBEDDING_LEARNING_RATE,
        settings.EMBEDDING_L2,
    )
    return speed(model, data, precision, monitor="val_rmse")
