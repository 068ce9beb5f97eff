"""Raw Criteo rows for a trained model: `label I1-I13 C1-C26` as in train.txt, or without the label as in test.txt.

N: rows of a block, F: categorical fields.
"""

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from data.criteo_encoding import FIRST_ID, UNSEEN, CriteoEncoder
from data.criteo_raw import CATEGORIES, NUMBERS, blocks, parse
from data.parallel import ordered_map


class CriteoScoring:
    """state: what a checkpoint holds of CriteoDataModule. unseen: rows with an unseen or rare category, by field."""

    columns = ("probability",)

    def __init__(self, state: dict):
        self.encoder = CriteoEncoder.from_state(state)
        self.unseen = dict.fromkeys(self.encoder.fields, 0)

    def batches(self, stream: BinaryIO, name: str) -> Iterator[tuple[list[Tensor], Tensor]]:
        """The model's inputs and the label (N, 1), nan where there is none; in the order of the stream.

        Raises: UserError naming line and column of the first wrong row.
        """
        for numbers, ids, label in ordered_map(
            lambda block: self._encode(*block, name), _with_labels(blocks(stream, name))
        ):
            for field, count in zip(self.unseen, (ids == UNSEEN).sum(0).tolist(), strict=True):
                self.unseen[field] += count
            yield [torch.from_numpy(numbers), torch.from_numpy(ids)], torch.from_numpy(label).unsqueeze(1)

    def draw(self, rows: int, rng: np.random.Generator) -> list[Tensor]:
        """Inputs of made-up rows."""
        numbers = rng.exponential(1.0, (rows, self.encoder.num_numbers)).astype(np.float32)
        ids = rng.integers(self.encoder.field_sizes, size=(rows, len(self.encoder.fields)), dtype=np.int32)
        return [torch.from_numpy(numbers), torch.from_numpy(ids)]

    def sidecar(self) -> dict:
        """What another program needs to make inputs of a raw row; categories by their text."""
        forms = ["{}" if name in NUMBERS else "{:08x}" for name in self.encoder.fields]
        return {
            "numbers": self.encoder.numbers,
            "scale": self.encoder.scale.tolist(),
            "vocabularies": {
                name: {form.format(value): number for number, value in enumerate(vocabulary.tolist(), FIRST_ID)}
                for name, form, vocabulary in zip(self.unseen, forms, self.encoder.vocabularies, strict=True)
            },
        }

    def _encode(self, first_line: int, block: bytes, labelled: bool, name: str) -> tuple[np.ndarray, ...]:
        rows = parse(block, labelled, name, first_line)
        label = rows.label.astype(np.float32) if labelled else np.full(len(rows), np.nan, np.float32)
        return *self.encoder.encode(rows), label


def _with_labels(blocks: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes, bool]]:
    """Adds whether the rows have labels, which the first line tells."""
    labelled = None
    for first_line, block in blocks:
        if labelled is None:
            labelled = block[: block.find(b"\n")].count(b"\t") + 1 != len(NUMBERS) + len(CATEGORIES)
        yield first_line, block, labelled
