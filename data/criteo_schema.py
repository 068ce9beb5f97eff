"""Criteo's columns (Kaggle 2014): label, I1-I13, C1-C26 in train.txt; no label in test.txt. TAB-separated, no header.

An empty field is a missing value, also at the end of a line.
"""

from data.table_schema import Column, Schema, Task

DENSE = [f"I{i}" for i in range(1, 14)]  # integers, some negative
CATEGORICAL = [f"C{i}" for i in range(1, 27)]  # hashes of 8 hexadecimal digits

CRITEO = Schema(
    columns=(
        Column("label", "label"),
        *(Column(name, "dense", type="integer") for name in DENSE),
        *(Column(name, "categorical") for name in CATEGORICAL),
    ),
    tasks={"click": Task("label", ("1",), ("0",))},
    separator="\t",
    header=False,
    quoted=False,
)
