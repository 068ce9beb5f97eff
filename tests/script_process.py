"""Scripts in processes of their own, forked from one that has imported the libraries, which takes seconds each time."""

import multiprocessing
import os
import runpy
import subprocess
import sys
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
    written = [folder / f".{name}" for name in STREAMS[1:]]
    usual: dict[int, Stream] = {i: (path, os.O_WRONLY | os.O_CREAT) for i, path in enumerate(written, 1)}
    command = [str(REPO / script), *map(str, arguments)]
    variables = os.environ | {name: str(value) for name, value in environment.items()}
    given = {0: (Path(os.devnull), os.O_RDONLY)} | usual | (streams or {})
    process = processes.Process(target=_run, args=(command, folder, variables, given))
    process.start()
    process.join(SECONDS)
    if process.exitcode is None:
        process.kill()
        raise subprocess.TimeoutExpired(command, SECONDS)
    texts = [path.read_text() if path.exists() else "" for path in written]
    for path in written:
        path.unlink(missing_ok=True)
    return subprocess.CompletedProcess(command, process.exitcode, *texts)


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
            setattr(sys, name, open(number, mode, closefd=False))
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    sys.argv = command
    sys.path[:] = [str(Path(command[0]).parent), *(path for path in sys.path if path not in ("", str(REPO)))]
    runpy.run_path(command[0], run_name="__main__")
