"""SASRec (Kang and McAuley 2018, arXiv:1808.09781) in plain torch, ranked on the same rows as BST with target="item":
`python benchmarks/sasrec.py`.

Differs from the paper: the loss is a softmax over the next item and negatives that a batch shares (Petrov and Macdonald
2023, Klenitskiy and Vasilev 2023), which needs a fraction of the epochs.
B: users of a batch, L: length of a sequence, D: embedding size, M: item ids.
"""

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repo root, ahead of this folder

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, embedding

from bst.train import DATA
from common.errors import run_script
from common.model.ranking import RankingMetrics
from data.history.dataset import FIRST_ID, PADDING
from data.movie_rating_seq import HistoryDataModule

LENGTH, DIM, HEADS, BLOCKS, DROPOUT = 200, 64, 2, 2, 0.2  # paper, on ML-1M: 200, 50, 1, 2, 0.2
NEGATIVES = 512  # shared by a batch
BATCH_USERS, LEARNING_RATE = 32, 1e-3
EPOCHS = 25  # 25 minutes on one core; the paper takes hundreds
SEED = 1


class SASRec(nn.Module):
    """Scores of all items after each position of a sequence, padded at the end."""

    def __init__(self, num_items: int):
        super().__init__()
        self.items, self.positions = nn.Embedding(num_items, DIM), nn.Parameter(0.02 * torch.randn(LENGTH, DIM))
        nn.init.normal_(self.items.weight, std=0.02)
        block = nn.TransformerEncoderLayer(DIM, HEADS, 4 * DIM, DROPOUT, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, BLOCKS, nn.LayerNorm(DIM), enable_nested_tensor=False)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, sequence: Tensor) -> Tensor:
        """Item ids (B, L) -> what follows each of them (B, L, D); no position sees a later one."""
        length = sequence.shape[1]
        hidden = self.dropout(self.items(sequence) * DIM**0.5 + self.positions[:length])
        return self.blocks(hidden, nn.Transformer.generate_square_subsequent_mask(length), is_causal=True)


def sequences(item: np.ndarray, start: np.ndarray, ends: np.ndarray) -> tuple[Tensor, Tensor]:
    """The last L items before each of the rows `ends` (B, L), and how many they are (B,)."""
    lengths = np.minimum(ends - start[ends - 1], LENGTH)
    found = np.full((len(ends), lengths.max()), PADDING, np.int64)
    for row, (end, length) in enumerate(zip(ends, lengths, strict=True)):
        found[row, :length] = item[end - length : end]
    return torch.from_numpy(found), torch.from_numpy(lengths)


def loss_of(model: SASRec, sequence: Tensor, lengths: Tensor) -> Tensor:
    """Cross-entropy of the next item among it and negatives, over all positions."""
    target = sequence[:, 1:]
    is_known = torch.arange(target.shape[1]) < (lengths - 1).unsqueeze(1)
    hidden, target = model(sequence[:, :-1])[is_known], target[is_known]  # (N, D), (N,)
    drawn = torch.randint(FIRST_ID, len(model.items.weight), (NEGATIVES,))
    negative = (hidden @ embedding(drawn, model.items.weight).T).masked_fill(drawn == target.unsqueeze(1), -torch.inf)
    positive = (hidden * embedding(target, model.items.weight)).sum(1, keepdim=True)
    return cross_entropy(torch.cat([positive, negative], 1), torch.zeros(len(target), dtype=torch.long))


@torch.no_grad()
def measure(model: SASRec, data: HistoryDataModule, split: str, item: np.ndarray, start: np.ndarray) -> dict:
    """Of the rows of a split, after everything that their users did before."""
    model.eval()
    metrics, done = RankingMetrics(), 0
    for *_, target in data.val_dataloader() if split == "val" else data.test_dataloader():
        rows = np.array(data.rows[split][done : done + len(target)])
        sequence, lengths = sequences(item, start, rows)
        last = model(sequence)[torch.arange(len(rows)), lengths - 1]
        metrics.update(last @ model.items.weight[FIRST_ID:].T, target)
        done += len(rows)
    metrics.gather()
    return metrics.measure(metrics.prediction, metrics.target)


def main() -> None:
    torch.manual_seed(SEED)
    settings: dict[str, Any] = DATA | {"target": "item"}
    data = HistoryDataModule(**settings, seed=SEED)
    data.setup()
    item, start = np.load(data.folder / "item.npy"), data.event("first")[data.event("user")]
    train = data.rows["train"]
    last = train[np.diff(start[train], append=-1) != 0]  # the last training row of each user
    ends = last[last > start[last]] + 1
    model = SASRec(data.encoder.num_items)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.01)
    steps = EPOCHS * -(-len(ends) // BATCH_USERS)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    begin = time.process_time()
    for epoch in range(1, EPOCHS + 1):
        model.train()
        for rows in np.array_split(np.random.default_rng([SEED, epoch]).permutation(ends), steps // EPOCHS):
            loss = loss_of(model, *sequences(item, start, rows))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        found = measure(model, data, "val", item, start)
        shown = "  ".join(f"val_{name} {value:.4f}" for name, value in found.items())
        print(f"epoch {epoch}  {shown}  {time.process_time() - begin:,.0f} s of CPU", flush=True)
    found = measure(model, data, "test", item, start)
    print("test  " + "  ".join(f"{name} {value:.4f}" for name, value in found.items()))


if __name__ == "__main__":
    run_script(main)
