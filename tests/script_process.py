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

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(LIBRARIES)


def run_process(script: str, *arguments: Any, folder: Path, **environment: Any) -> subprocess.CompletedProcess:
    """`python script *arguments` in a folder, with the variables of `environment`: its exit code, stdout and stderr.

    It is imported from nowhere but the place of the script, with nothing on standard input.
    """
    written = [folder / f".{name}" for name in ("stdout", "stderr")]
    command = [str(REPO / script), *map(str, arguments)]
    variables = os.environ | {name: str(value) for name, value in environment.items()}
    process = processes.Process(target=_run, args=(command, folder, variables, written))
    process.start()
    process.join(SECONDS)
    if process.exitcode is None:
        process.kill()
        raise subprocess.TimeoutExpired(command, SECONDS)
    texts = [path.read_text() for path in written]
    for path in written:
        path.unlink()
    return subprocess.CompletedProcess(command, process.exitcode, *texts)


def _run(command: list[str], folder: Path, variables: dict[str, str], written: list[Path]) -> None:
    for number, path in enumerate(written, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    sys.argv = command
    sys.path[:] = [str(Path(command[0]).parent), *(path for path in sys.path if path not in ("", str(REPO)))]
    runpy.run_path(command[0], run_name="__main__")
