"""BST as most public ports write it: nn.TransformerEncoder over all positions, a Dataset of rows, a default DataLoader.

It has the sizes and inputs of bst/bst.py, to compare speed, and none of the ports' errors.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Subset

from benchmarks.ours import speed
from benchmarks.turns import timed
from bst.bst import BST, NUM_DENSE, USER_FEATURE_DIM
from bst.train import AUTO, DATA, MODEL, OPTIMIZER
from common.model.layers import mlp
from data.history.dataset import PADDING, TIME_GAP_BUCKETS, USER_BIAS_SHRINKAGE
from data.movie_rating_seq import HistoryDataModule

ROWS = 40_000  # training rows of one measurement


class PlainRows(Dataset):
    """One row at a time, with its history sliced and padded in Python."""

    def __init__(self, data: HistoryDataModule):
        columns = [array.numpy() for array in data.examples().arrays]
        self.item, self.residual, self.total, self.user_ids, self.expected, self.time, first, self.rating, self.user = (
            columns
        )
        self.start = first[self.user]
        self.history_length = data.history_length

    def __len__(self) -> int:
        return len(self.item)

    def __getitem__(self, row: int) -> tuple:
        past = slice(max(self.start[row], row - self.history_length), row)
        empty = self.history_length - (past.stop - past.start)
        time_gap = np.log2(self.time[row] - self.time[past] + 1.0) * 2
        user_bias = (self.total[row] - self.total[self.start[row]]) / (USER_BIAS_SHRINKAGE + row - self.start[row])
        return (
            self.item[row],
            np.pad(self.item[past], (empty, 0), constant_values=PADDING),
            np.pad(self.residual[past], (empty, 0)),
            np.pad(np.minimum(time_gap, TIME_GAP_BUCKETS - 1).astype(np.int32), (empty, 0)),
            self.user_ids[self.user[row]],
            np.array(
                [self.expected[self.item[row]] + user_bias, user_bias, np.log(1 + row - self.start[row])], np.float32
            ),
            self.rating[row],
        )


class PlainBST(nn.Module):
    """BST built from torch's layers."""

    def __init__(self, num_items: int, user_cardinalities: list[int]):
        super().__init__()
        dim, num_factors, dropout = MODEL["embedding_dim"], MODEL["num_factors"], MODEL["dropout"]
        self.items, self.rated = nn.Embedding(num_items, dim), nn.Embedding(num_items, dim)
        self.time_gaps = nn.Embedding(TIME_GAP_BUCKETS, dim)
        self.positions = nn.Embedding(DATA["history_length"] + 1, dim)
        layer = nn.TransformerEncoderLayer(
            dim, MODEL["num_heads"], 4 * dim, dropout, functional.leaky_relu, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, MODEL["num_blocks"], enable_nested_tensor=False)
        self.user_factors = nn.Embedding(user_cardinalities[0], num_factors)
        self.item_factors = nn.Embedding(num_items, num_factors)
        self.user_features = nn.ModuleList(nn.Embedding(size, USER_FEATURE_DIM) for size in user_cardinalities[1:])
        features = USER_FEATURE_DIM * len(self.user_features) + NUM_DENSE
        widths = [2 * dim + features, *MODEL["hidden_units"]]
        self.mlp = nn.Sequential(mlp(widths, dropout, activation=nn.LeakyReLU), nn.Linear(widths[-1], 1))

    def forward(self, item, history, residual, time_gap, user_ids, dense) -> Tensor:
        target = self.items(item)
        behaviors = self.items(history) + residual.unsqueeze(2) * self.rated(history) + self.time_gaps(time_gap)
        sequence = torch.cat([behaviors, target.unsqueeze(1)], 1) + self.positions.weight
        padding = functional.pad(history == PADDING, (0, 1), value=False)
        out = self.encoder(sequence, src_key_padding_mask=padding)[:, -1]
        features = [table(ids) for table, ids in zip(self.user_features, user_ids.T[1:], strict=True)]
        deep = self.mlp(torch.cat([target, out, dense, *features], 1)).squeeze(1)
        factorization = (self.user_factors(user_ids[:, 0]) * self.item_factors(item)).sum(1)
        return dense[:, 0] + factorization + deep


def rows(count: int = ROWS) -> HistoryDataModule:
    """The data of bst/train.py, with `count` random training rows."""
    data = HistoryDataModule(**DATA | {"batch_size": AUTO["batch_size"]}, seed=0)
    data.setup()
    data.rows["train"] = np.random.default_rng(0).permutation(data.rows["train"])[:count]
    data.rows["val"] = data.rows["val"][: data.batch_size]
    return data


def plain(data: HistoryDataModule) -> float:
    """Training samples per second of the plain port."""
    model = PlainBST(data.encoder.num_items, data.encoder.user_cardinalities)
    optimizer = torch.optim.Adam(model.parameters(), OPTIMIZER["learning_rate"])
    loader = DataLoader(Subset(PlainRows(data), data.rows["train"].tolist()), data.batch_size, shuffle=True)

    def epoch() -> None:
        for *inputs, rating in loader:
            loss = functional.mse_loss(model(*inputs), rating)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return timed(epoch, len(data.rows["train"]))


def our_model(data: HistoryDataModule) -> BST:
    return BST(
        data.encoder.num_items,
        data.encoder.num_attributes,
        data.encoder.user_cardinalities,
        history_length=data.history_length,
        target=data.target,
        rating_range=data.encoder.scale.range,
        rating_units=data.encoder.scale.units,
        **MODEL,
        optimizer=OPTIMIZER,
    )


def ours(data: HistoryDataModule, precision: str) -> float:
    """Training samples per second of bst/bst.py."""
    return speed(our_model(data), data, precision, monitor="val_rmse")
