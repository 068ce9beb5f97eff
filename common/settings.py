"""Which values the constants of the scripts may have; refused before anything is made."""

from collections.abc import Callable

from common.errors import check

Rule = tuple[Callable[[object], bool], str]


def _integer(least: int, greatest: int) -> Rule:
    # the type itself: True is an int, and a number of NumPy cannot be read back from a checkpoint
    return lambda value: type(value) is int and least <= value <= greatest, f"an integer from {least} to {greatest}"


def _tuple_of(rule: Rule, least: int = 0) -> Rule:
    return (
        lambda value: type(value) in (tuple, list) and len(value) >= least and all(map(rule[0], value)),
        f"a tuple of at least {least}, each of them {rule[1]}",
    )


def _or_none(rule: Rule) -> Rule:
    return lambda value: value is None or rule[0](value), f"None or {rule[1]}"


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


# the greatest values are far beyond use: a typing error, or a forged checkpoint, must not fill the memory
COUNT, SIZE = _integer(1, 2**31 - 1), _integer(1, 2**16)
RATE: Rule = (lambda value: _is_number(value) and 0 < value <= 1000, "a number above 0, at most 1000")
WEIGHT: Rule = (lambda value: _is_number(value) and 0 <= value <= 1000, "a number from 0 to 1000")
SHARE: Rule = (lambda value: _is_number(value) and 0 <= value < 1, "a number of at least 0 and below 1")
FLAG: Rule = (lambda value: type(value) is bool, "True or False")
TEXT: Rule = (lambda value: type(value) is str, "a text")

RULES: dict[str, Rule] = {
    **dict.fromkeys(("batch_size", "max_epochs", "validations_per_epoch", "patience", "min_count"), COUNT),
    **dict.fromkeys(("embedding_dim", "num_experts", "heads", "factors", "history", "num_bins"), SIZE),
    **dict.fromkeys(("hidden", "bottom", "top", "tower_units"), _tuple_of(SIZE)),
    "expert_units": _tuple_of(SIZE, 1),
    "blocks": _integer(1, 100),
    **dict.fromkeys(("learning_rate", "embedding_learning_rate"), RATE),
    "embedding_l2": WEIGHT,
    "task_weights": _tuple_of(WEIGHT),
    "dropout": SHARE,
    "seed": _integer(0, 2**32 - 1),
    "num_workers": _integer(0, 128),
    **dict.fromkeys(("devices", "num_nodes", "workers_per_trial"), _integer(1, 128)),
    **dict.fromkeys(("batch_norm", "self_interaction", "history_ratings", "start_from_biases", "resume"), FLAG),
    **dict.fromkeys(("uses_sequence", "shard_table"), FLAG),
    **dict.fromkeys(("dataset", "split", "numbers_as", "target", "model", "optimizer", "schedule", "precision"), TEXT),
    "strategy": (("auto", "ddp", "ray").__contains__, '"auto", "ddp" or "ray"'),
    "tasks": _tuple_of(TEXT, 1),
    "data_root": _or_none(TEXT),
    # of a search
    "space": (lambda value: type(value) is dict and len(value) > 0, "a dict of settings"),
    **dict.fromkeys(("trials", "grace_validations", "cpus_per_trial"), COUNT),
    "concurrent_trials": _or_none(COUNT),
    "reduction_factor": _integer(2, 1000),
    "gpus_per_trial": WEIGHT,
    **dict.fromkeys(("ray_address", "storage"), _or_none(TEXT)),
}


def check_settings(settings: dict) -> None:
    """Raise UserError for the first constant that is out of range; names that are not known here pass."""
    for name, value in settings.items():
        if name in RULES:
            holds, expected = RULES[name]
            check(holds(value), f"{name.upper()} is {value!r}; it must be {expected}.")
