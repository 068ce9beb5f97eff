"""The one error class that users are meant to see, and how a script reports it."""

import os
import sys
from collections.abc import Callable

LINE_CHARACTERS = 300


class Terminated(KeyboardInterrupt):
    """SIGTERM instead of Ctrl-C."""


class UserError(Exception):
    """Bad input or a bad setting. The message is complete: where, what was found, and what to do."""


def run_script(main: Callable[..., object], usage: str = "") -> None:
    """Run `main` as a script with the command line's arguments; a failure is reported as one line on stderr.

    usage: see answer_help. Exit codes: 1 after a UserError or out of memory, 130 after Ctrl-C, 143 after SIGTERM; for
    the last two the line may say how to continue."""
    _open_closed_streams()
    answer_help(sys.modules[main.__module__].__doc__, usage)
    try:
        main(*sys.argv[1:])
    except UserError as error:
        _fail(error)
    except BrokenPipeError:  # `script | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # otherwise Python would write again at exit, and report it
        sys.exit(1)
    except KeyboardInterrupt as error:
        print("; ".join(["interrupted", *map(str, error.args)]), file=sys.stderr)
        sys.exit(143 if isinstance(error, Terminated) else 130)
    except MemoryError as error:
        _fail(f"not enough memory. {one_line(error)}".strip())


def _fail(message: object) -> None:
    print(f"error: {printable(str(message))}", file=sys.stderr)
    sys.exit(1)


def answer_help(docstring: str | None, usage: str, name: str = "__main__") -> None:
    """Exit if the command line asks for --help, with the script's docstring, or does not match `usage`, with a line.

    A script calls it before its imports, which take seconds; name: its __name__. usage: names of the arguments, "FILE
    [NAME]", "[NAME...]" or "this|that", a choice; "" for none."""
    if name != "__main__":
        return
    arguments, names = sys.argv[1:], usage.split()
    if {"-h", "--help"} & set(arguments):
        print((docstring or "").strip())
        sys.exit()
    least = sum(not name.startswith("[") for name in names)
    chosen = all(given in name.split("|") for given, name in zip(arguments, names, strict=False) if "|" in name)
    if not chosen or len(arguments) < least or (len(arguments) > len(names) and "...]" not in usage):
        _fail(f"usage: python {sys.argv[0]} {usage or '(settings are edited in the file; --help describes it)'}")


def _open_closed_streams() -> None:
    """Open /dev/null in place of closed standard streams (`2>&-`), whose numbers would go to files of ours, into which
    libraries would write. sys.stdin and sys.stdout stay None, so that a script can tell."""
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
    """A short `repr` of a value."""
    return one_line(repr(value))


def one_line(value: object) -> str:
    """Text from a file, to be shown without quotes: shortened, on one line, without terminal control codes."""
    text = str(value)
    text = text if len(text) <= LINE_CHARACTERS else f"{text[:LINE_CHARACTERS]}..."
    return printable(text).replace("\n", "\\n")


def printable(text: str) -> str:
    """The text with control characters (except line ends) escaped, so that a terminal does not obey them."""
    return "".join(char if char == "\n" or char.isprintable() else ascii(char)[1:-1] for char in text)
