"""The settings of a run: how a script groups them, and the values that each may have."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from os import PathLike, fspath
from typing import Annotated, Any, Literal, get_args

import numpy as np
from annotated_types import Interval, MinLen
from pydantic import TypeAdapter, ValidationError

from common.errors import UserError, check, shown

# of dense inputs: a number ("log" is signed and centred), with a 0/1 input for "missing" or with its quantile as a
# category, or a category alone
Transform = Literal["log", "log+missing", "log+quantile", "clamped_log", "bucket", "quantile"]
Pooling = Literal["mean", "sum"]  # of the vectors of several values in a cell; the first is the default
DENSE_TRANSFORMS, POOLINGS = get_args(Transform), get_args(Pooling)

# far above any real use, so that a typo is noticed
Count = Annotated[int, Interval(ge=1, le=10**9)]
Size = Annotated[int, Interval(ge=1, le=2**16)]
Rate = Annotated[float, Interval(ge=1e-15, le=1000)]
Weight = Annotated[float, Interval(ge=0, le=1000)]
Some = MinLen(1)
# by name, because a type read off the dicts would follow whoever edits them
RULES: dict[str, Any] = {
    name: rule
    for names, rule in (
        ("dataset monitor", str),
        ("data_root split start_from ray_address storage", str | None),
        ("history_ratings start_from_biases weighted label_inputs batch_norm on_regression", bool),
        ("self_interaction use_sequence shard_table resume", bool),
        ("space", Annotated[dict, Some]),
        ("fixed", dict),
        ("tasks", Annotated[tuple[str, ...], Some]),
        ("task_weights", tuple[Weight, ...]),
        ("batch_size max_epochs", Count | Literal["auto"]),  # see Settings.for_rows
        ("min_count validations_per_epoch trials grace_validations cpus_per_trial", Count),
        ("patience concurrent_trials", Count | None),
        ("embedding_dim num_experts num_heads num_factors num_bins history_length", Size),
        ("hidden_units bottom_mlp_units top_mlp_units tower_units", tuple[Size, ...]),
        ("expert_units", Annotated[tuple[Size, ...], Some]),
        ("learning_rate", Rate),
        ("embedding_learning_rate", Rate | None),
        ("embedding_l2 gpus_per_trial", Weight),
        ("devices num_nodes workers_per_trial", Annotated[int, Interval(ge=1, le=128)]),
        ("warmup_steps", Annotated[int, Interval(ge=0, le=10**9)]),
        ("seed", Annotated[int, Interval(ge=0, lt=2**32)]),
        ("num_workers", Annotated[int, Interval(ge=0, le=128)]),
        ("num_blocks", Annotated[int, Interval(ge=1, le=100)]),
        ("negatives", Annotated[int, Interval(ge=1, le=10_000)]),
        ("negatives_power", Annotated[float, Interval(ge=0, le=1)]),
        ("reduction_factor", Annotated[int, Interval(ge=2, le=1000)]),
        ("dropout", Annotated[float, Interval(ge=0, lt=1)]),
        ("negative_rate", Annotated[float, Interval(ge=1e-12, le=1)]),
        ("dense_transform", Transform),
        ("target", Literal["auto", "rating", "click", "item"]),
        ("loss", Literal["softmax", "bce"]),
        ("variant", Literal["mmoe", "omoe", "shared_bottom", "single_task"]),
        ("optimizer", Literal["adam", "dense_adam", "adagrad", "sgd"]),
        ("schedule", Literal["linear", "cosine", "plateau"]),
        ("precision", Literal["auto", "32-true", "bf16-mixed"]),
        ("strategy", Literal["auto", "ddp", "ray"]),
    )
    for name in names.split()
}


def plain(value: Any) -> Any:
    """NumPy's numbers, paths and lists as Python's numbers, strings and tuples, which any checkpoint can hold."""
    value = value.tolist() if isinstance(value, np.generic | np.ndarray) else value
    if isinstance(value, list | tuple):
        return tuple(map(plain, value))
    return fspath(value) if isinstance(value, PathLike) else value


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise UserError for the first setting that is out of range; names without a rule pass."""
    for name, value in settings.items():
        try:
            TypeAdapter(RULES.get(name, Any)).validate_python(plain(value), strict=True)
        except ValidationError as error:
            # pydantic says "Input should be ...", once for each type that is allowed, except None
            expected = [each["msg"].partition("should ")[2] for each in error.errors()]
            expected += ["be None"] if type(None) in get_args(RULES[name]) else []
            raise UserError(f"{name} is {shown(value)}; it must {' or '.join(expected)}.") from error


def check_names(changes: Iterable[str], known: Sequence[str]) -> None:
    """Raise UserError for a name that is not in `known`, with the closest one that is."""
    for name in changes:
        close = get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"the settings are {', '.join(known)}."
        check(name in known, f"there is no setting {name!r}; {hint}")


def by_rows(rows: int) -> tuple[int, int]:
    """The most rows in a batch and the fewest epochs that let a model learn from so many training rows. A batch has at
    most the largest power of two up to rows / 100, but 32; below 50,000 rows there are 4 epochs."""
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
        return self.changed({name: number for name, number in numbers.items() if self.flat()[name] == "auto"})

    def flat(self) -> dict[str, Any]:
        """All settings by name; loggers are given by their class."""
        flat = self.data | self.model | self.optimizer | self.training
        logger = flat.get("logger", "")
        return flat | ({} if isinstance(logger, str) else {"logger": type(logger).__name__})
