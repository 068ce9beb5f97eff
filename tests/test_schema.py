"""A description that cannot be meant is refused with its file, column and entry."""

import json

import pytest

from common.errors import UserError
from data.schema import described, read_description

LABEL = {"role": "label", "positive": ["1"], "negative": ["0"]}
TEXT = {"role": "categorical"}
ITEMS = {"u": {"role": "user"}, "i": {"role": "item"}}


def with_column(role: str = "categorical", **entries) -> dict:
    return {"file": "f", "columns": {"y": LABEL, "a": TEXT, "b": {"role": role} | entries}}


def with_entries(**entries) -> dict:
    return {"file": "f", "columns": {"y": LABEL, "a": TEXT}} | entries


@pytest.mark.parametrize(("content", "message"), [
    ([], ": Input should be a valid dictionary or instance of Description (found [])."),
    ({"file": "f"}, ", columns: Field required."),
    (with_entries(colums=1), ", colums: Extra inputs are not permitted (found 1)."),
    (with_column("labl"), ", columns.b: Input tag 'labl' found using 'role' does not match any of the expected"),
    (with_column("label"), ", columns.b.label.positive: Field required."),
    (with_column("label", positive=["1"], negative=["1"]), ", columns.b.label: a value is in both"),
    (with_column("label", positive=["1"], task="y"), ": two labels are the same task."),
    (with_column("dense", transform="lg"), ", columns.b.dense.transform: Input should be 'log', 'log+missing'"),
    (with_column(min_count=0), ", columns.b.categorical.min_count: Input should be greater than or equal to 1 (f"),
    (with_column(type="int"), ", columns.b.categorical.type: Input should be 'text', 'number' or 'boolean' (fo"),
    (with_column(source="a"), ', columns.b.categorical: "source" and "pattern" need each other.'),
    (with_column(source="c", pattern="(?P<x>.)"), ": \"source\" of column 'b' is 'c', which is no column."),
    (with_column(source="a", pattern="(?P<x>["), ", columns.b.categorical: Invalid regular expression"),
    (with_column(source="a", pattern="x"), ", columns.b.categorical: "),
    (with_column("rating", click_from=float("nan")), ", columns.b.rating.click_from: Input should be a finite number"),
    (with_column("rating", positive=["5"]), ', columns.b.rating: a click needs either "click_from" or both'),
    (with_column("rating", positive=["5"], negative=["1"], click_from=2), ", columns.b.rating: a click needs either"),
    (with_column("user"), ': the roles "user" and "item" need each other.'),
    ({"file": "f", "columns": {"y": LABEL}}, ": no column is an input"),
    ({"file": "f", "columns": {"a": TEXT, "t": {"role": "time"}, "u": {"role": "time"}}}, ": more than one column has"),
    (with_entries(separator="é"), ': "separator" must be one ASCII character'),
    (with_entries(missing="NA"), ", missing: Input should be a valid tuple (found 'NA')."),
    (with_entries(split={"by": "luck"}), ', split: Input should be {"by": "time"}, {"by": "random"} or {"column": ...'),
    (with_entries(split={"column": "y", "train": ["a"], "val": ["b"], "test": ["c"]}), ": \"split\" names 'y'; its"),
    (with_entries(files={"train": "a", "test": "b"}), ': it needs either "file" or "files".'),
    ({"files": {"train": "a"}, "columns": {"a": TEXT}}, ': "files" must have "train" and "test".'),
    (with_entries(group="y"), ": \"group\" is 'y'; it must be a categorical column"),
    (with_entries(item_attributes={"file": "i", "columns": ITEMS}), ': "item_attributes" needs a "file" and one'),
    ({"file": "f", "columns": ITEMS, "user_attributes": {"file": "u", "columns": {"u": {"role": "user", "x": 1}}}},
     ", user_attributes.columns.u.user.x: Extra inputs are not permitted (found 1)."),
])  # fmt: skip
def test_a_wrong_entry_is_named(content, message):
    with pytest.raises(UserError) as raised:
        described(content, "columns.json")
    assert str(raised.value).startswith(f"columns.json{message}") and "\n" not in str(raised.value)


@pytest.mark.parametrize(("text", "message"), [
    ('{"file": "f", "columns": {"a": {}, "a": {}}}', "is not JSON: an entry comes twice among"),
    ("{", "is not JSON"), ("\xff", "is not JSON"), (None, "cannot read .*columns.json: No such file"),
])  # fmt: skip
def test_a_file_that_is_no_description(tmp_path, text, message):
    if text is not None:
        (tmp_path / "columns.json").write_text(text, "latin-1")
    with pytest.raises(UserError, match=message):
        read_description(tmp_path / "columns.json")


def test_a_description_is_the_same_after_a_checkpoint():
    content = with_column("dense", transform="log") | {"group": "a", "split": {"by": "time"}, "missing": ["?"]}
    one = described(content, "columns.json")
    assert described(json.loads(json.dumps(one.model_dump(mode="json"))), "checkpoint") == one
    assert one.tasks == {"y": "y"} and one.missing_texts == ["", "?"] and one.in_file == ["y", "a", "b"]
