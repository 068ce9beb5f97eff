"""The settings of a run: how a script groups them, and the values that each may have."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from os import PathLike, fspath
from typing import Any, Literal, get_args

import numpy as np

from common.errors import check, shown

# of dense inputs: a number ("log" is signed and centred), with a 0/1 input for "missing" or with its quantile as a
# category, or a category alone
Transform = Literal["log", "log+missing", "log+quantile", "clamped_log", "bucket", "quantile"]
Pooling = Literal["mean", "sum"]  # of the vectors of several values in a cell; the first is the default
DENSE_TRANSFORMS, POOLINGS = get_args(Transform), get_args(Pooling)

# by name, because a type read off the dicts would follow whoever edits them: a type, the integers of a range, the
# numbers from one to another (ends included), or a list of choices. Far above any real use, so that a typo is noticed
COUNT, SIZE, RATE, WEIGHT = range(1, 10**9), range(1, 2**16 + 1), (1e-15, 1000.0), (0.0, 1000.0)
RULES: dict[str, Any] = {
    name: rule
    for names, rule in (
        ("dataset data_root split tasks monitor start_from ray_address storage", str),
        ("history_ratings start_from_biases weighted label_inputs batch_norm on_regression", bool),
        ("self_interaction use_sequence shard_table resume", bool),
        ("space fixed", dict),
        ("min_count batch_size max_epochs validations_per_epoch patience", COUNT),
        ("trials grace_validations cpus_per_trial concurrent_trials", COUNT),
        ("embedding_dim num_experts num_heads num_factors num_bins history_length", SIZE),
        ("hidden_units bottom_mlp_units top_mlp_units tower_units expert_units", SIZE),
        ("learning_rate embedding_learning_rate", RATE),
        ("embedding_l2 task_weights gpus_per_trial", WEIGHT),
        ("devices num_nodes workers_per_trial", range(1, 129)),
        ("warmup_steps", range(10**9)),
        ("seed", range(2**32)),
        ("num_workers", range(129)),
        ("num_blocks", range(1, 101)),
        ("negatives", range(1, 10_001)),
        ("negatives_power", (0.0, 1.0)),
        ("reduction_factor", range(2, 1001)),
        ("dropout", (0.0, 0.99)),
        ("negative_rate", (1e-12, 1.0)),
        ("dense_transform", list(DENSE_TRANSFORMS)),
        ("target", ["auto", "rating", "click", "item"]),
        ("loss", ["softmax", "bce"]),
        ("variant", ["mmoe", "omoe", "shared_bottom", "single_task"]),
        ("optimizer", ["adam", "dense_adam", "adagrad", "sgd"]),
        ("schedule", ["linear", "cosine", "plateau"]),
        ("precision", ["auto", "32-true", "bf16-mixed"]),
        ("strategy", ["auto", "ddp", "ray"]),
    )
    for name in names.split()
}
OPTIONAL = {"data_root", "split", "start_from", "ray_address", "storage"}
OPTIONAL |= {"patience", "concurrent_trials", "embedding_learning_rate"}
TUPLES = {"hidden_units", "bottom_mlp_units", "top_mlp_units", "tower_units", "expert_units", "tasks", "task_weights"}
NOT_EMPTY = {"expert_units", "tasks", "space"}
BY_ROWS = {"batch_size", "max_epochs"}  # may be "auto", see Settings.for_rows


def plain(value: Any) -> Any:
    """NumPy's numbers, paths and lists as Python's numbers, strings and tuples, which any checkpoint can hold."""
    value = value.tolist() if isinstance(value, np.generic | np.ndarray) else value
    if isinstance(value, list | tuple):
        return tuple(map(plain, value))
    return fspath(value) if isinstance(value, PathLike) else value


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise UserError for the first setting that is out of range; names without a rule pass."""
    for name, value in settings.items():
        if name in RULES and not (value is None and name in OPTIONAL) and not (value == "auto" and name in BY_ROWS):
            holds, expected = _holds(RULES[name], value), _words(RULES[name])
            if name in TUPLES:
                holds = isinstance(value, list | tuple) and all(_holds(RULES[name], item) for item in value)
                expected = f"a tuple, each element {expected}"
            holds, filled = (holds and bool(value), " and not empty") if name in NOT_EMPTY else (holds, "")
            other = "None or " if name in OPTIONAL else "'auto' or " if name in BY_ROWS else ""
            check(holds, f"{name} is {shown(value)}; it must be {other}{expected}{filled}.")


def _holds(rule: Any, value: Any) -> bool:
    if isinstance(rule, tuple):
        return type(value) in (int, float) and rule[0] <= value <= rule[1]
    if isinstance(rule, list | range):  # the type first: a range searches for anything but an int one by one
        return type(value) is type(rule[0]) and value in rule
    return type(value) is rule


def _words(rule: Any) -> str:
    if isinstance(rule, list | type):
        return f"one of {', '.join(map(repr, rule))}" if isinstance(rule, list) else f"of type {rule.__name__}"
    return f"{'an integer' if isinstance(rule, range) else 'a number'} from {rule[0]} to {rule[-1]}"


def check_names(changes: Iterable[str], known: Sequence[str]) -> None:
    """Raise UserError for a name that is not in `known`, with the closest one that is."""
    for name in changes:
        close = get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"the settings are {', '.join(known)}."
        check(name in known, f"there is no setting {name!r}; {hint}")


def by_rows(rows: int) -> tuple[int, int]:
    """The most rows in a batch and the fewest epochs that let a model learn from so many training rows.

    A batch has at most the largest power of two up to rows / 100, but 32; below 50,000 rows there are 4 epochs.
    """
    return max(32, 2 ** ((rows // 100).bit_length() - 1)), 4 if rows < 50_000 else 1


@dataclass(frozen=True)
class Settings:
    """The settings of a run, in the four groups at the top of a train.py."""

    data: dict[str, Any]
    model: dict[str, Any]
    optimizer: dict[str, Any]
    training: dict[str, Any]

    def changed(self, changes: Mapping[str, Any]) -> "Settings":
        """A copy with some settings changed. Raises: UserError for an unknown name or a value out of range."""
        groups = (self.data, self.model, self.optimizer, self.training)
        check_names(changes, [name for group in groups for name in group])
        changed = [{name: plain(changes.get(name, value)) for name, value in group.items()} for group in groups]
        for group in changed:
            check_settings(group)
        return Settings(*changed)

    def for_rows(self, rows: int, usual: Mapping[str, int]) -> "Settings":
        """A copy with numbers in place of "auto". rows: for training; usual: batch_size and max_epochs for many."""
        most, least = by_rows(rows)
        numbers = {"batch_size": min(most, usual["batch_size"]), "max_epochs": max(least, usual["max_epochs"])}
        chosen = {name: number for name, number in numbers.items() if self.flat()[name] == "auto"}
        return self.changed(chosen)

    def flat(self) -> dict[str, Any]:
        """All settings by name; loggers are given by their class."""
        flat = self.data | self.model | self.optimizer | self.training
        logger = flat.get("logger", "")
        return flat | ({} if isinstance(logger, str) else {"logger": type(logger).__name__})
