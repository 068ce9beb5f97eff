"""Raw Census-Income or Adult rows for a trained model: all columns, or all but the last, the income.

N: rows of a chunk, K: tasks.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, repeat
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from data.census_format import MISSING_TEXT, Chunk, Layout, Task, read_rows
from data.census_income import FIRST_ID, MISSING, UNSEEN, CensusEncoder
from data.raw_text import limited_lines


class CensusScoring:
    """state: what a checkpoint holds of CensusIncomeDataModule. unseen: rows with an unseen or rare text, by column."""

    def __init__(self, state: dict):
        self.encoder = CensusEncoder.from_state(state)
        self.layout = self.encoder.layout
        self.columns = tuple(state["tasks"])
        if not set(self.columns) <= set(self.layout.tasks):
            raise ValueError(f"tasks {self.columns}")
        if len(self.encoder.vocabularies) != len(self.layout.inputs):
            raise ValueError(f"{len(self.encoder.vocabularies)} vocabularies for {len(self.layout.inputs)} columns")
        self.unseen = dict.fromkeys(self.layout.inputs, 0)

    def batches(self, stream: BinaryIO, name: str) -> Iterator[tuple[list[Tensor], Tensor]]:
        """The model's inputs and the labels (N, K), nan where not known; in the order of the stream.

        Raises: UserError naming line and column of the first wrong row.
        """
        lines, layout = self._with_layout(limited_lines(stream, name))
        for chunk in read_rows(lines, name, layout):
            numbers, ids = self.encoder.encode(chunk)
            for column, count in zip(self.unseen, (ids == UNSEEN).sum(0).tolist(), strict=True):
                self.unseen[column] += count * (column not in layout.numbers)
            labels = np.stack([known_labels(chunk, layout.tasks[task]) for task in self.columns], 1)
            yield [torch.from_numpy(numbers), torch.from_numpy(ids)], torch.from_numpy(labels)

    def draw(self, rows: int, rng: np.random.Generator) -> list[Tensor]:
        """Inputs of made-up rows."""
        sizes = self.encoder.field_sizes
        numbers = rng.integers(0, 60, (rows, len(self.layout.number_inputs))).astype(np.float32)
        return [
            torch.from_numpy(numbers),
            torch.from_numpy(rng.integers(sizes, size=(rows, len(sizes)), dtype=np.int32)),
        ]

    def sidecar(self) -> dict:
        """What another program needs to make inputs of a raw row."""
        vocabularies = zip(self.layout.inputs, self.encoder.vocabularies, strict=True)
        return {
            "columns": list(self.layout.columns),
            "number_columns": self.layout.number_inputs,
            "tasks": list(self.columns),
            "vocabularies": {
                name: {MISSING_TEXT: MISSING} | {text: number for number, text in enumerate(texts, FIRST_ID)}
                for name, texts in vocabularies
            },
        }

    def _with_layout(self, lines: Iterator[bytes]) -> tuple[Iterator[bytes], Layout]:
        """All lines, and the layout that the first row has: with or without the last column."""
        # what comes before the first row is only counted, as there is no end to how many such lines there may be
        before, row = 0, b""
        for row in lines:
            if row.strip() and not row.startswith(b"|"):
                break
            before += 1
        shorter = self.layout.columns[:-1]
        has_last = row.count(b",") + 1 != len(shorter)
        lines = chain(repeat(b"\n", before), [row], lines)
        return lines, self.layout if has_last else replace(self.layout, columns=shorter)


def known_labels(chunk: Chunk, task: Task) -> np.ndarray:
    """(N,) float32, nan where the column is missing or not there."""
    texts = chunk.columns.get(task.column, (MISSING_TEXT,) * len(chunk))
    rows = [row for row, text in enumerate(texts) if text != MISSING_TEXT]
    known = Chunk(chunk.file, tuple(chunk.lines[row] for row in rows), {task.column: tuple(texts[row] for row in rows)})
    labels = np.full(len(chunk), np.nan, np.float32)
    labels[rows] = known.label(task)
    return labels
