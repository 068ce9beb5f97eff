"""Encodes raw rows of a table for a trained model. If line 1 names the columns, their order may differ from training.

N: rows of a block, K: outputs.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.data.raw_files import Stream
from data.table_categories import EMPTY_SLOT, FIRST_ID, MISSING, OOV
from data.table_encoder import PIECEWISE, TableEncoder, nearly_unseen
from data.table_reader import Rows, read_stream
from data.table_values import as_texts, input_values, read_labels


class TablePreprocessor:
    """state: TableDataModule.state_dict() in a checkpoint. kept: the columns that are copied to the output."""

    def __init__(self, state: dict[str, Any]):
        self.encoder = TableEncoder.from_state(state)
        self.schema = self.encoder.schema
        self.tasks, self.columns = list(state["tasks"]), tuple(state["outputs"])
        if not all(isinstance(name, str) for name in (*self.tasks, *self.columns)):
            raise ValueError("tasks or outputs that are not strings")
        if not set(self.tasks) <= self.schema.tasks.keys() or len(self.tasks) != len(self.columns):
            raise ValueError(f"tasks {self.tasks} for the outputs {self.columns}")
        self.kept = tuple(column.name for column in self.schema.of_role("kept"))
        fields = [field.name for field in self.encoder.fields]
        self._unseen, self._values = dict.fromkeys(fields, 0), dict.fromkeys(fields, 0)

    @property
    def unseen(self) -> dict[str, int]:
        """Rows with an unseen or rare category, by field; without numbers that are categories too, for which it says
        little."""
        return {field.name: self._unseen[field.name] for field in self.encoder.fields if field.source == "text"}

    def nearly_unseen(self) -> list[str]:
        """The fields of which nearly all values so far are out of vocabulary."""
        return nearly_unseen({name: (self._unseen[name], count) for name, count in self._values.items()})

    def batches(self, stream: Stream, name: str) -> Iterator[tuple[list[Tensor], Tensor, list[list[str]]]]:
        """The model's inputs, the labels (N, K), nan if unknown, and the texts of `kept`, in the order of the stream.

        Raises: UserError naming the line and column of the first wrong row.
        """
        for dense, ids, labels, kept in read_stream(stream, name, self.schema, self._encode, scoring=True):
            first_ids = ids[:, self.encoder.starts]
            for field, unseen, missing in zip(
                self._unseen, (first_ids == OOV).sum(0).tolist(), (first_ids == MISSING).sum(0).tolist(), strict=True
            ):
                self._unseen[field] += unseen
                self._values[field] += len(ids) - missing
            yield [torch.from_numpy(dense), torch.from_numpy(ids)], torch.from_numpy(labels), kept

    def _encode(self, rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[list[str]]]:
        values, _ = input_values(rows, self.schema)
        kept = [as_texts(rows, rows.columns[name], self.schema[name], self.schema).to_pylist() for name in self.kept]
        labels = read_labels(rows, self.schema, self.tasks, scoring=True)
        return *self.encoder.encode(values), labels, [[text or "" for text in column] for column in kept]

    def random_inputs(self, rows: int, rng: np.random.Generator) -> list[Tensor]:
        """Inputs of random rows."""
        dense = np.floor(rng.exponential(20.0, (rows, self.encoder.num_dense))).astype(np.float32)
        if not any(column.transform == PIECEWISE for column in self.encoder.dense):
            dense = np.log1p(dense)
        sizes = np.repeat(np.array(self.encoder.cardinalities, int), np.array(self.encoder.slots, int))
        ids = rng.integers(sizes, size=(rows, len(sizes)), dtype=np.int32)
        for values in np.split(ids, np.cumsum(self.encoder.slots, dtype=int), axis=1)[:-1]:
            counts = rng.integers(values.shape[1], size=(rows, 1)) + 1  # of values in each cell
            values[np.arange(values.shape[1]) >= counts] = EMPTY_SLOT
        return [torch.from_numpy(dense), torch.from_numpy(ids)]

    def metadata(self) -> dict[str, Any]:
        """What another program needs to encode a raw row; categories by their text."""
        transforms = [column.transform for column in self.encoder.dense]
        return {
            "columns": self.schema.names,
            "missing": list(self.schema.missing),
            "outputs": list(self.columns),
            "dense_columns": [column.name for column in self.encoder.dense],
            # a single one if all are equal
            "dense_transform": transforms[0] if len(set(transforms)) == 1 else transforms,
            "dense_mean": [column.mean for column in self.encoder.dense],
            "dense_std": [column.std for column in self.encoder.dense],
            "fields": {
                field.name: {"source": field.source, "edges": field.edges, "hash_size": field.hash_size}
                | {"slots": field.slots, "pooling": field.pooling}
                for field in self.encoder.fields
            },
            "vocabularies": {
                field.name: {text: number for number, text in enumerate(field.texts(), FIRST_ID)}
                for field in self.encoder.fields
            },
        }
