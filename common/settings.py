"""Which values the constants of the train scripts may have; refused before anything is made."""

from common.errors import UserError

COUNTS = {"batch_size", "max_epochs", "validations_per_epoch", "patience", "embedding_dim", "min_count", "num_bins"}
COUNTS |= {"num_experts", "heads", "blocks"}
WIDTHS = {"hidden", "bottom", "top", "expert_units", "tower_units"}
RATES = {"learning_rate", "embedding_learning_rate"}
COUNTS |= {"devices", "num_nodes"}
NOT_NEGATIVE = {"seed", "num_workers"}


def check_settings(settings: dict) -> None:
    """Raise UserError for the first constant that is out of range; names that are not known here pass."""
    for name, value in settings.items():
        if name in COUNTS and not (_is_integer(value) and value >= 1):
            _refuse(name, value, "an integer of at least 1")
        if name in NOT_NEGATIVE and not (_is_integer(value) and value >= 0):
            _refuse(name, value, "an integer of at least 0")
        if name in WIDTHS and not all(_is_integer(width) and width >= 1 for width in value):
            _refuse(name, value, "a tuple of integers of at least 1")
        if name in RATES and not 0 < value < float("inf"):
            _refuse(name, value, "a number above 0")
        if name == "dropout" and not 0 <= value < 1:
            _refuse(name, value, "at least 0 and below 1")
        if name == "embedding_l2" and not 0 <= value < float("inf"):
            _refuse(name, value, "a number of at least 0")


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _refuse(name: str, value: object, expected: str) -> None:
    raise UserError(f"{name.upper()} is {value!r}; it must be {expected}.")
