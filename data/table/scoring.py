"""Encodes raw rows of a table for a trained model. If line 1 names the columns, their order may differ from training.

N: rows of a batch, K: outputs.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import torch
from torch import Tensor

from common.data.parallel import ordered_map
from data.attributes import joined_columns
from data.reader import Source
from data.scoring import RowScorer
from data.table.encoder import EMPTY, FIRST_ID, MISSING, OOV, TableEncoder, from_tensor
from data.table.rows import TableReader, label_name

READ_AHEAD = 2  # batches
IDS = "\0ids "  # a name that no column of a file begins with


class TableScorer(RowScorer):
    """state: TableDataModule.state_dict() in a checkpoint. Of numbers that are categories too, which are new to the
    model says little, so they are not counted."""

    def __init__(self, state: Mapping[str, Any]):
        self.encoder = TableEncoder.from_state(state["encoder"])
        super().__init__(state["description"], [field.name for field in self.encoder.fields if field.kind == "text"])
        self.attributes = {role: from_tensor(content) for role, content in state["attributes"].items()}
        self.tasks, self.columns = list(state["tasks"]), tuple(state["outputs"])
        self.names = [field.name for field in self.encoder.fields]

    def values_of(self, name: str) -> dict[str, int]:
        """The values of a field that have embeddings, and their ids."""
        field = self.encoder.fields[self.names.index(name)]
        hashed = [f"bucket {i}" for i in range(field.hash_size or 0)]
        return {text: i for i, text in enumerate(hashed or field.vocabulary.to_pylist(), FIRST_ID)}

    def batches(
        self, source: Source, moved: Callable[[int], object] | None = None
    ) -> Iterator[tuple[list[Tensor], Tensor, list[list[str]]]]:
        """The model's inputs, the labels (N, K), nan if unknown, and the texts of `kept`, in the order of the source.

        moved: called with the number of bytes read, as they are read. Raises: UserError naming the line and column of
        the first wrong row.
        """
        reader = TableReader(self.form, self.attributes, self.tasks, scoring=True)
        pooled = {field.name: field.pooling is not None for field in self.encoder.fields if field.kind == "text"}
        reader.types = {name: pa.list_(pa.string()) if lists else pa.string() for name, lists in pooled.items()}
        for batch, (dense, ids, unseen) in ordered_map(self._encoded, self._looked_up(reader.batches(source, moved))):
            for name, counts in self.counts.items():
                counts += unseen[self.names.index(name)]
            labels = np.stack([batch.column(label_name(task)).to_numpy() for task in self.tasks], 1)
            inputs = [torch.from_numpy(dense), torch.from_numpy(ids)]
            yield inputs, torch.from_numpy(labels), self.kept_texts(source, batch)

    def _looked_up(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The batches, and the ids of whole cells: by expressions, because each call of a function would build the hash
        table of a vocabulary again."""
        first = next(batches)
        columns = {name: ds.field(name) for name in first.schema.names}
        for field in self.encoder.fields:
            if field.kind == "text" and not (field.hash_size or field.pooling):
                columns[f"{IDS}{field.name}"] = field.looked_up(ds.field(field.name))
        scanner = ds.Scanner.from_batches(
            chain([first], batches), schema=first.schema, columns=columns, batch_readahead=READ_AHEAD
        )
        return scanner.to_batches()

    def _encoded(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        ids = {name.removeprefix(IDS): column for name, column in columns.items() if name.startswith(IDS)}
        return batch, self.encoder.encode(columns | ids, len(batch))

    def random_inputs(self, rows: int, rng: np.random.Generator) -> list[Tensor]:
        """Inputs of random rows."""
        dense = rng.exponential(20.0, (rows, self.encoder.num_dense)).astype(np.float32)
        parts = []
        for field in self.encoder.fields:
            width = 3 if field.pooling else 1
            ids = rng.integers(field.cardinality, size=(rows, width), dtype=np.int32)
            ids[np.arange(width) > rng.integers(width, size=(rows, 1))] = EMPTY
            parts.append(ids)
        ids = np.concatenate(parts, 1) if parts else np.empty((rows, 0), np.int32)
        return [torch.from_numpy(dense), torch.from_numpy(ids)]

    def metadata(self) -> dict[str, Any]:
        """What another program needs to encode a raw row; categories by their text (docs/onnx.md)."""
        columns = joined_columns(self.form) | self.form.columns
        options = {name: columns[name].model_dump() for name in self.names}
        return {
            "outputs": list(self.columns),
            "columns": self.form.in_file,
            "separator": self.form.separator,
            "header": self.form.header,
            "decimal": self.form.decimal,
            "missing": self.form.missing_texts,
            "numbers": [vars(number) | {"has_flag": number.has_flag} for number in self.encoder.numbers],
            "fields": [
                {option: options[field.name].get(option) for option in ("type", "separator", "source", "pattern")}
                | {name: getattr(field, name) for name in ("name", "kind", "edges", "hash_size", "pooling")}
                | {"vocabulary": {text: i for i, text in enumerate(field.vocabulary.to_pylist(), FIRST_ID)}}
                for field in self.encoder.fields
            ],
            "ids": {"unseen": OOV, "missing": MISSING, "empty": EMPTY},
        }
