"""A description that cannot be meant is refused with its file, column and entry."""

import json

import pytest

from common.errors import UserError
from data.schema import described, read_description

LABEL, TEXT, NUMBER = (
    {"role": "label", "positive": ["1"], "negative": ["0"]},
    {"role": "categorical"},
    {"role": "dense"},
)
ITEMS = {"u": {"role": "user"}, "i": {"role": "item"}}


def with_column(**column) -> dict:
    return {"file": "f", "columns": {"y": LABEL, "a": TEXT, "b": column}}


def with_entries(**entries) -> dict:
    return {"file": "f", "columns": {"y": LABEL, "a": TEXT}} | entries


WRONG = [
    ([], "it is []; it must be"),
    ({"file": "f"}, 'it has no "columns".'),
    (with_entries(colums=1), "'colums' is not an entry here. Correct or remove it."),
    (with_column(role="labl"), """column 'b': its "role" is 'labl'; it must be one of "label", "rating","""),
    (with_column(), "column 'b': its \"role\" is None; it must be one of"),
    (with_column(role="label"), "column 'b': it has no \"positive\"."),
    (with_column(role="label", positive=["1"], negative=["1"]), "column 'b': a value is in both"),
    (with_column(role="label", positive=["1"], task="y"), "two labels are the same task"),
    (with_column(role="dense", transform="lg"), "column 'b': \"transform\" is 'lg'; it must be 'log', 'log+missing'"),
    (with_column(role="dense", scale=1), "column 'b': 'scale' is not an entry here"),
    (with_column(role="categorical", min_count=0), 'column \'b\': "min_count" is 0; it must be greater'),
    (with_column(role="categorical", min_count="3"), "\"min_count\" is '3'; it must be a valid integer"),
    (with_column(role="categorical", type="int"), "it must be 'text', 'number' or 'boolean'"),
    (with_column(role="categorical", source="a"), '"source" and "pattern" need each other'),
    (with_column(role="categorical", source="c", pattern="(?P<x>.)"), "\"source\" of column 'b' is 'c', which is no"),
    (with_column(role="categorical", source="a", pattern="(?P<x>["), "column 'b': \"pattern\" is '(?P<x>['; invalid"),
    (with_column(role="categorical", source="a", pattern="x"), "column 'b': \"pattern\" is 'x'"),
    (with_column(role="rating", click_from=float("nan")), '"click_from" is nan; it must be a finite number'),
    (with_column(role="rating", positive=["5"]), 'a click needs either "click_from" or both'),
    (with_column(role="time", unit="h"), "\"unit\" is 'h'; it must be 's', 'ms'"),
    (with_column(role="user"), 'the roles "user" and "item" need each other'),
    ({"file": "f", "columns": {"y": LABEL}}, "no column is an input"),
    (with_entries(separator="é"), '"separator" must be one ASCII character'),
    (with_entries(missing="NA"), "\"missing\" is 'NA'; it must be a valid tuple"),
    (with_entries(missing=["\ud800"]), '"missing" is \'\\ud800\'; it must be a valid string'),
    (with_entries(header="yes"), "\"header\" is 'yes'; it must be a valid boolean"),
    (with_entries(split={"by": "luck"}), '"split" must be null, {"by": "time"}, {"by": "random"} or {"column": ...'),
    (with_entries(split={"column": "x", "train": ["a"], "val": ["b"], "test": ["c"]}), "\"split\" names 'x'; it must"),
    (with_entries(files={"train": "a", "test": "b"}), 'it needs either "file" or "files"'),
    ({"files": {"train": "a"}, "columns": {"a": TEXT}}, '"files" must have "train", "test"'),
    (with_entries(group="y"), "\"group\" is 'y'; it must be a categorical column"),
    (with_entries(group=7), '"group" is 7; it must be a valid string'),
    (with_entries(item_attributes={"file": "i", "columns": ITEMS}), '"item_attributes" needs a "file" and one column'),
    (
        {"file": "f", "columns": ITEMS, "user_attributes": {"file": "u", "columns": {"u": {"role": "user", "x": 1}}}},
        "user_attributes, column 'u': 'x' is not an entry here",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), WRONG)
def test_a_wrong_entry_is_named(content, message):
    with pytest.raises(UserError) as raised:
        described(content, "columns.json")
    assert str(raised.value).startswith("columns.json") and message in str(raised.value), raised.value


@pytest.mark.parametrize(("text", "message"), [
    ('{"file": "f", "columns": {"a": {}, "a": {}}}', "is not JSON: it has 'a' twice"), ("{", "is not JSON"),
    ("[" * 100_000, "is not JSON"), (b"\xff", "is not JSON"), (None, "cannot read .*columns.json: No such file"),
])  # fmt: skip
def test_a_file_that_is_no_description(tmp_path, text, message):
    if text is not None:
        (tmp_path / "columns.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        read_description(tmp_path / "columns.json")


def test_a_description_is_the_same_after_a_checkpoint():
    content = with_column(role="dense", transform="log") | {"group": "a", "split": {"by": "time"}, "missing": ["?"]}
    one = described(content, "columns.json")
    assert described(json.loads(json.dumps(one.model_dump(mode="json"))), "checkpoint") == one
    assert one.tasks == {"y": "y"} and one.missing_texts == ["", "?"] and one.in_file == ["y", "a", "b"]
