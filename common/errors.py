"""The one error that users are meant to see, and how a script shows it."""

import os
import reprlib
import sys
from collections.abc import Callable

SHOWN = reprlib.Repr()  # a value from a file may be of any size
SHOWN.maxlevel, SHOWN.maxstring, SHOWN.maxother = 2, 100, 100
LINE_CHARACTERS = 500


class Terminated(KeyboardInterrupt):
    """SIGTERM instead of Ctrl-C."""


class UserError(Exception):
    """Bad input or a bad setting; the message alone says where, what was found and what to do."""


def run_script(main: Callable[..., object], usage: str = "") -> None:
    """Call `main` as a script, with the arguments of the command line: what ends it is one line on stderr.

    usage: names of the arguments, "FILE [NAME]" or "[NAME...]"; "": none, settings are edited in the file. --help
    prints the script's docstring. The exit code is 1 after a UserError or without memory, 130 after Ctrl-C, 143 after
    SIGTERM; the last two may say how to go on.
    """
    _open_standard_streams()
    answer_help(sys.modules[main.__module__].__doc__)
    arguments = sys.argv[1:]
    try:
        check_arguments(arguments, usage)
        main(*arguments)
    except UserError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as error:
        print("; ".join(["interrupted", *map(str, error.args)]), file=sys.stderr)
        sys.exit(143 if isinstance(error, Terminated) else 130)
    except MemoryError as error:
        print(f"error: not enough memory. {one_line(error)}".strip(), file=sys.stderr)
        sys.exit(1)


def answer_help(docstring: str | None) -> None:
    """Print a script's docstring and exit, if the command line asks for --help."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print((docstring or "").strip())
        sys.exit()


def check_arguments(arguments: list[str], usage: str) -> None:
    """Raise UserError unless there are as many arguments as `usage` names: [NAME] may be missing, [NAME...] be many."""
    script, names = sys.argv[0], usage.split()
    least = sum(not name.startswith("[") for name in names)
    enough = least <= len(arguments) and (len(arguments) <= len(names) or "...]" in usage)
    check(enough or not usage, f"usage: python {script} {usage}")
    check(
        bool(usage) or not arguments,
        f"{script} takes no arguments; found {shown(' '.join(arguments))}. Settings are edited in the file; "
        f"`python {script} --help` describes it.",
    )


def _open_standard_streams() -> None:
    """Replace closed streams (`2>&-`) by ones that lead nowhere.

    Otherwise libraries write to None, or into a file of ours that was given the number of the closed stream. sys.stdin
    and sys.stdout stay None, so that a script can tell.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")


def check(condition: bool, message: str) -> None:
    """Raise UserError(message) unless `condition` holds."""
    if not condition:
        raise UserError(message)


def shown(value: object) -> str:
    """`repr` of a value that comes from a file: short, whatever the value."""
    return SHOWN.repr(value)


def one_line(value: object) -> str:
    """A text that comes from a file, to be shown without quotes: short, no line ends, no codes for the terminal."""
    text = str(value)
    text = text if len(text) <= LINE_CHARACTERS else f"{text[:LINE_CHARACTERS]}..."
    return printable(text).replace("\n", "\\n")


def printable(text: str) -> str:
    """The text with its control characters, except line ends, as escapes: a terminal must not obey them."""
    return "".join(char if char == "\n" or char.isprintable() else ascii(char)[1:-1] for char in text)
