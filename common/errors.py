"""The one error that users are meant to see, and how a script shows it."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input or a bad setting; the message alone says where, what was found and what to do."""


def run_script(main: Callable[[], object]) -> None:
    """Call `main` as a script: a UserError or Ctrl-C ends it with one line on stderr and exit code 1 or 130.

    A KeyboardInterrupt may say how to go on.
    """
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as error:
        print("; ".join(["interrupted", *map(str, error.args)]), file=sys.stderr)
        sys.exit(130)


def check(condition: bool, message: str) -> None:
    """Raise UserError(message) unless `condition` holds."""
    if not condition:
        raise UserError(message)
