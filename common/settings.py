"""The settings of a run: the values each may have, and how a script groups them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pytorch_lightning.loggers import Logger

from common.errors import check, shown

Rule = tuple[Callable[[Any], bool], str]


def _integer(least: int, greatest: int) -> Rule:
    # not isinstance: True is an int, and a NumPy number could not be read back from a checkpoint
    return lambda value: type(value) is int and least <= value <= greatest, f"an integer from {least} to {greatest}"


def _tuple_of(rule: Rule, example: str, least: int = 0) -> Rule:
    return (
        lambda value: type(value) in (tuple, list) and len(value) >= least and all(map(rule[0], value)),
        f"a tuple such as {example}, of length {f'at least {least}' if least else '0 or more'}; each element {rule[1]}",
    )


def _one_of(*choices: str) -> Rule:
    return choices.__contains__, f"one of {', '.join(map(repr, choices))}"


def _or_none(rule: Rule) -> Rule:
    return lambda value: value is None or rule[0](value), f"None or {rule[1]}"


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


LOG_TRANSFORMS = ("log", "log+missing", "log+quantile", "clamped_log")
DENSE_TRANSFORMS = (*LOG_TRANSFORMS, "bucket", "quantile")  # the last two make categories alone
POOLINGS = ("mean", "sum")  # of the vectors of several values in a cell; the first is the default

# upper bounds far above any real use, so that a typo or a forged checkpoint cannot exhaust memory
COUNT, SIZE = _integer(1, 2**31 - 1), _integer(1, 2**16)
RATE: Rule = (lambda value: _is_number(value) and 0 < value <= 1000, "a number above 0, at most 1000")
WEIGHT: Rule = (lambda value: _is_number(value) and 0 <= value <= 1000, "a number from 0 to 1000")
SHARE: Rule = (lambda value: _is_number(value) and 0 <= value < 1, "a number of at least 0 and below 1")
FLAG: Rule = (lambda value: type(value) is bool, "True or False")
TEXT: Rule = (lambda value: type(value) is str, "a string")

RULES: dict[str, Rule] = {
    # DATA
    **dict.fromkeys(("dataset", "split"), TEXT),
    "data_root": _or_none(TEXT),
    "dense_transform": _one_of(*DENSE_TRANSFORMS),
    "target": _one_of("auto", "rating", "click"),
    "tasks": _tuple_of(TEXT, "('income', 'education')", 1),
    **dict.fromkeys(("min_count", "batch_size"), COUNT),
    "negatives": _integer(1, 1000),
    **dict.fromkeys(("history_length", "num_bins"), SIZE),
    **dict.fromkeys(("history_ratings", "start_from_biases"), FLAG),
    **dict.fromkeys(("weighted", "label_inputs"), FLAG),
    "negative_rate": (lambda value: _is_number(value) and 0 < value <= 1, "a number above 0, at most 1"),
    "num_workers": _integer(0, 128),
    # MODEL
    **dict.fromkeys(("embedding_dim", "num_experts", "num_heads", "num_factors"), SIZE),
    **dict.fromkeys(("hidden_units", "bottom_mlp_units", "top_mlp_units", "tower_units"), _tuple_of(SIZE, "(128, 64)")),
    "expert_units": _tuple_of(SIZE, "(128, 64)", 1),
    "num_blocks": _integer(1, 100),
    "dropout": SHARE,
    **dict.fromkeys(("batch_norm", "on_regression", "self_interaction", "use_sequence"), FLAG),
    "variant": _one_of("mmoe", "omoe", "shared_bottom", "single_task"),
    "task_weights": _tuple_of(WEIGHT, "(1.0, 0.5)"),
    "slots": _or_none(_tuple_of(_integer(1, 1024), "(1, 3)")),
    "pooling": _or_none(
        _tuple_of((lambda value: value in (None, *POOLINGS), "None, 'mean' or 'sum'"), "(None, 'sum')")
    ),
    # OPTIMIZER
    "optimizer": _one_of("adam", "dense_adam", "adagrad", "sgd"),
    "learning_rate": RATE,
    "embedding_learning_rate": _or_none(RATE),
    "embedding_l2": WEIGHT,
    "schedule": _one_of("linear", "cosine", "plateau"),
    "warmup_steps": _integer(0, 2**31 - 1),
    # TRAINING
    **dict.fromkeys(("max_epochs", "validations_per_epoch", "patience"), COUNT),
    "seed": _integer(0, 2**32 - 1),
    "precision": _one_of("auto", "32-true", "bf16-mixed"),
    **dict.fromkeys(("devices", "num_nodes"), _integer(1, 128)),
    "strategy": _one_of("auto", "ddp", "ray"),
    **dict.fromkeys(("shard_table", "resume"), FLAG),
    "start_from": _or_none(TEXT),
    "logger": (
        lambda value: value in ("csv", "tensorboard") or isinstance(value, Logger),
        "'csv', 'tensorboard' or a Lightning logger",
    ),
    # SEARCH of tune_dlrm.py
    "space": (lambda value: type(value) is dict and len(value) > 0, "a dict of settings"),
    "fixed": (lambda value: type(value) is dict, "a dict of settings"),
    **dict.fromkeys(("trials", "grace_validations", "cpus_per_trial"), COUNT),
    "concurrent_trials": _or_none(COUNT),
    "reduction_factor": _integer(2, 1000),
    "gpus_per_trial": WEIGHT,
    "workers_per_trial": _integer(1, 128),
    **dict.fromkeys(("ray_address", "storage"), _or_none(TEXT)),
}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise UserError for the first setting that is out of range; names without a rule pass."""
    for name, value in settings.items():
        if name in RULES:
            holds, expected = RULES[name]
            check(holds(value), f"{name} is {shown(value)}; it must be {expected}.")


def check_names(changes: Iterable[str], known: Sequence[str]) -> None:
    """Raise UserError for a name that is not in `known`, with the closest one that is."""
    for name in changes:
        close = get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]!r}?" if close else f"the settings are {', '.join(known)}."
        check(name in known, f"there is no setting {name!r}; {hint}")


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
        known = {name: value for group in groups for name, value in group.items()}
        check_names(changes, list(known))
        check_settings(known | dict(changes))
        return Settings(*({name: changes.get(name, value) for name, value in group.items()} for group in groups))

    def flat(self) -> dict[str, Any]:
        """All settings by name; a Lightning logger is given by its class name."""
        flat = self.data | self.model | self.optimizer | self.training
        return {name: type(value).__name__ if isinstance(value, Logger) else value for name, value in flat.items()}
