"""What the scorers of tables and of histories share."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from common.errors import check, shown
from data.reader import Source
from data.schema import Description, Plain
from data.table.encoder import nearly_unseen


class RowScorer:
    """kept: the columns that are copied to the output. counts: of fields, values new to the model and all so far."""

    def __init__(self, description: Any, fields: Sequence[str]):
        self.form = Description.model_validate(description)
        self.kept = self.form.of_role("kept")
        self.counts = {name: np.zeros(2, np.int64) for name in fields}

    def keep(self, names: Sequence[str]) -> None:
        """Add columns to `kept`. Raises: UserError for one that the table does not have."""
        for name in names:
            known = self.form.columns
            check(name in known, f"there is no column {name!r}; the columns are {shown(list(known))}.")
            if known[name].role == "excluded":
                self.form = self.form.with_columns({name: Plain(role="kept")})
        self.kept = list(dict.fromkeys([*self.kept, *names]))

    def kept_texts(self, source: Source, batch: pa.RecordBatch) -> list[list[str]]:
        """The texts (N,) of each column of `kept`, "" if missing; of a number "9" for 9.0; several values joined by
        "|"."""
        found = []
        for name in self.kept:
            check(name in batch.schema.names, f"{source.name} has no column {name!r}.")
            array = batch.column(name)
            if pa.types.is_list(array.type):
                array = pc.binary_join(array, "|")
            found.append(array.cast(pa.string()).fill_null("").to_pylist())
        return found

    @property
    def unseen(self) -> dict[str, int]:
        """Rows with a value new to the model, by field."""
        return {name: int(unseen) for name, (unseen, _) in self.counts.items()}

    def nearly_unseen(self) -> list[str]:
        """The fields of which nearly all values so far are new to the model."""
        return nearly_unseen({name: counts.tolist() for name, counts in self.counts.items()})
