"""Scripts in processes of their own, forked from one that has imported the libraries, which takes seconds each time."""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]  # not from common.paths: the process must find the repo by itself
LIBRARIES = ["torch", "pytorch_lightning", "torchmetrics", "matplotlib.figure", "pandas", "pyarrow.csv", "sklearn"]
SECONDS = 300

STREAMS = ("stdin", "stdout", "stderr")
Stream = tuple[Path, int] | None

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(LIBRARIES)


def run_process(
    script: str | Path, *arguments: Any, folder: Path, streams: dict[int, Stream] | None = None, **environment: Any
) -> subprocess.CompletedProcess:
    """`python script *arguments` in a folder, with the variables of `environment`: its exit code, stdout and stderr.

    It is imported from nowhere but the place of the script. streams: of the numbers 0, 1 and 2, path and flags, or None
    if it is closed; others are as usual, with nothing on standard input.
    """
    process = start_process(script, *arguments, folder=folder, streams=streams, **environment)
    process.join(SECONDS)
    if process.exitcode is None:
        process.kill()
        raise subprocess.TimeoutExpired(str(script), SECONDS)
    texts = [written(folder, name) for name in STREAMS[1:]]
    for name in STREAMS[1:]:
        (folder / f".{name}").unlink(missing_ok=True)
    return subprocess.CompletedProcess(str(script), process.exitcode, *texts)


def start_process(
    script: str | Path, *arguments: Any, folder: Path, streams: dict[int, Stream] | None = None, **environment: Any
) -> BaseProcess:
    """As run_process, without waiting for its end; `written` is what it has written so far."""
    usual: dict[int, Stream] = {i: (folder / f".{STREAMS[i]}", os.O_WRONLY | os.O_CREAT) for i in (1, 2)}
    command = [str(REPO / script), *map(str, arguments)]
    variables = os.environ | {name: str(value) for name, value in environment.items()}
    given = {0: (Path(os.devnull), os.O_RDONLY)} | usual | (streams or {})
    process = processes.Process(target=_run, args=(command, folder, variables, given))
    process.start()
    return process


def written(folder: Path, stream: str) -> str:
    path = folder / f".{stream}"
    return path.read_text() if path.exists() else ""


def _run(command: list[str], folder: Path, variables: dict[str, str], streams: dict[int, Stream]) -> None:
    for number, stream in streams.items():
        name, mode = STREAMS[number], "w" if number else "r"
        if stream is None:
            os.close(number)
            setattr(sys, name, None)  # as Python starts with a closed stream
        else:
            opened = os.open(*stream)
            os.dup2(opened, number)
            os.close(opened)
            setattr(sys, name, open(number, mode, 1 if name == "stderr" else -1, closefd=False))
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]  # a script may have other tests
    sys.argv = command
    sys.path[:] = [str(Path(command[0]).parent), *(path for path in sys.path if path not in ("", str(REPO)))]
    try:
        runpy.run_path(command[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # as Python does at its end; multiprocessing does not
