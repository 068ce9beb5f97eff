"""Runs the contenders of a comparison in turn, each repeat in its own process; table and figure of all comparisons."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure

from common.training.processor import has_bf16
from common.training.results import peak_memory_mib, versions
from common.training.seeds import markdown_table

GIB = 2**30
TURN = "--turn"  # first argument of a process that runs one repeat


@dataclass
class Contender:
    """run(): samples or rows per second. at_least: how many times as fast the first contender should be."""

    run: Callable[[], float]
    at_least: float | None = None


@dataclass
class Comparison:
    """What is compared, and the contenders, of which the first is ours."""

    title: str
    repeats: int
    contenders: dict[str, Contender]


class AnonymousMemory(threading.Thread):
    """Peak of this process's anonymous memory in bytes, sampled ten times a second (on Linux; 0 elsewhere).

    Resident memory (RSS) also counts the pages of mapped files: the cache and, on loading, the checkpoint. The system
    can reclaim those at any time; anonymous memory is what a machine must have.
    """

    def __init__(self):
        super().__init__(daemon=True)
        self.peak, self._stopped = 0, threading.Event()
        if Path("/proc/self/status").exists():
            self.start()

    def run(self) -> None:
        while not self._stopped.wait(0.1):
            status = Path("/proc/self/status").read_text()
            self.peak = max(self.peak, int(status.split("RssAnon:")[1].split()[0]) * 1024)

    def stop(self) -> int:
        self._stopped.set()
        return self.peak


def timed(work: Callable[[], object], count: int) -> float:
    """How many of `count` items `work` processes per second."""
    begin = time.perf_counter()
    work()
    return count / (time.perf_counter() - begin)


def take_turns(script: str, name: str, comparison: Comparison) -> pd.DataFrame:
    """One row per repeat; `script TURN NAME CONTENDER`, started as a process, must call run_once."""
    rows = []
    for turn in range(comparison.repeats):
        for contender in comparison.contenders:
            done = subprocess.run([sys.executable, script, TURN, name, contender], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{contender} failed:\n{done.stderr[-3000:]}")
            cost = json.loads(done.stdout.splitlines()[-1])
            rows.append({"comparison": name, "contender": contender, "turn": turn, **cost})
            print(f"{name} {turn + 1}/{comparison.repeats}  {contender:32} {cost['per_second']:12,.0f} /s", flush=True)
    return pd.DataFrame(rows)


def run_once(contender: Contender) -> None:
    """One repeat, in this process; its last line of output has the speed and the memory used."""
    torch.manual_seed(0)
    memory = AnonymousMemory()
    speed = contender.run()
    cost = {"peak_rss_gib": peak_memory_mib() / 1024, "peak_anonymous_gib": memory.stop() / GIB}
    print(json.dumps({"per_second": speed, **cost}))


def summarise(turns: pd.DataFrame, comparison: Comparison) -> pd.DataFrame:
    """Median and spread of each contender, and how many times as fast ours is (median of the ratios within a turn)."""
    speeds = turns.pivot(index="turn", columns="contender", values="per_second")[list(comparison.contenders)]
    ratios = (1 / speeds).mul(speeds.iloc[:, 0], axis=0)
    memory = turns.groupby("contender")[["peak_anonymous_gib", "peak_rss_gib"]].max()
    return pd.DataFrame(
        {
            "median per second": speeds.median(),
            "least": speeds.min(),
            "most": speeds.max(),
            "our speed ÷ theirs": ratios.median(),
            "ratio, least": ratios.min(),
            "ratio, most": ratios.max(),
            "goal": pd.Series({name: contender.at_least for name, contender in comparison.contenders.items()}),
            "peak anonymous GiB": memory["peak_anonymous_gib"],
            "peak RSS GiB": memory["peak_rss_gib"],
        },
        list(comparison.contenders),
    )


def write_tables(turns: pd.DataFrame, comparisons: dict[str, Comparison], output: Path) -> None:
    """Write speed.md and speed.png for all comparisons that have been run."""
    run = {name: comparison for name, comparison in comparisons.items() if name in set(turns["comparison"])}
    text = [
        f"{torch.get_num_threads()} threads, {versions()['processor']}, torch {torch.__version__}, "
        f"{'with' if has_bf16() else 'no'} native bf16. Medians over turns, each repeat a process of its own.\n"
    ]
    figure = Figure((8, 1 + 1.7 * len(run)), layout="constrained")
    for axes, (name, comparison) in zip(figure.subplots(len(run), squeeze=False).flat, run.items(), strict=True):
        table = summarise(turns[turns["comparison"] == name], comparison)
        text += [f"\n{comparison.title} (`{name}`, {comparison.repeats} turns)\n", _markdown(table)]
        middle = table["median per second"]
        axes.barh(table.index, middle, xerr=[middle - table["least"], table["most"] - middle], capsize=3)
        axes.invert_yaxis()
        axes.set_title(comparison.title, fontsize="medium")
    figure.axes[-1].set_xlabel("samples (for preparation: rows) per second")
    figure.savefig(output / "speed.png", dpi=120)
    (output / "speed.md").write_text("\n".join(text))


def _markdown(table: pd.DataFrame) -> str:
    def cell(value: float) -> str:
        return "" if pd.isna(value) else f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"

    rows = ([str(name), *map(cell, row)] for name, row in zip(table.index, table.values, strict=True))
    return markdown_table(["", *table.columns], rows)
