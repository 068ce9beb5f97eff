"""The cost of Criteo at its full size: `python benchmarks/studies/rehearsal.py` runs every stage in its own process.

One stage: `python benchmarks/studies/rehearsal.py STAGE PART MIN_COUNT [STEPS]`, on 1/PART of the rows.
STAGE, in this order:
  generate  raw rows in OUTPUT/one_of_PART/criteo/train.txt, unless they exist
  read      raw text to columns, shared by every MIN_COUNT
  encode    vocabularies and encoded rows; `read` and `encode` together are the preparation
  deepfm, dlrm                one epoch, or STEPS steps of it on rows from all of it
  deepfm_resume, dlrm_resume  resume the last checkpoint of that in a new process, and then remove it
`python benchmarks/studies/rehearsal.py report`: table and figure from OUTPUT/stages.jsonl. Linux only (/proc).
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repo root, ahead of this folder

import pandas as pd
import torch
from matplotlib.figure import Figure

from benchmarks.generate_criteo import FULL_ROWS, generate
from benchmarks.ours import deepfm, dlrm, keep_rows, train_one_epoch
from benchmarks.turns import GIB, AnonymousMemory
from common.checkpoint import MappedCheckpointIO
from common.paths import output_root
from common.training.results import peak_memory_mib
from common.training.seeds import markdown_table
from data.criteo_data import CRITEO, ClickDataModule
from data.schema import Dataset
from data.table.module import stored_rows
from deepfm.train import DATA

PARTS = (16, 4, 1)  # of the full size: one sixteenth, ...
MIN_COUNTS = (1, 10)  # training rows in which a value must occur to get an id; 1: nothing is pruned
BATCH_SIZE = 4096
STAGES = ("generate", "read", "encode", "deepfm", "deepfm_resume", "dlrm", "dlrm_resume")
OUTPUT = output_root() / "runs" / "rehearsal"


def measure(stage: str, part: int, min_count: int, steps: int | None) -> dict:
    """Run a stage in this process; returns its cost as one row of the table."""
    raw = (OUTPUT / f"one_of_{part}" / "criteo" / "train.txt").resolve()  # the path that keys the cache
    row = {"stage": stage, "raw_rows": FULL_ROWS // part, "min_count": min_count, "steps": steps}
    memory, begin = AnonymousMemory(), time.perf_counter()
    if stage == "generate":
        if raw.exists():
            sys.exit(0)  # nothing to measure
        generate(raw.parents[1], FULL_ROWS // part)
    elif stage == "read":
        stored_rows(Dataset("criteo", CRITEO, raw.parent, str(raw)), CRITEO)
    else:
        changes = dict(data_root=str(raw.parents[1]), dense_transform="log", min_count=min_count)
        data = ClickDataModule(**DATA | changes | dict(batch_size=BATCH_SIZE), seed=0)
        data.setup()
        row |= {"ids": sum(data.cardinalities)}
        if stage != "encode":
            keep_rows(data, steps and steps * BATCH_SIZE, BATCH_SIZE)
            folder = OUTPUT / f"{stage.removesuffix('_resume')}-{part}-{min_count}-{steps}"
            row |= train(stage, data, folder)
    row |= {"wall_seconds": time.perf_counter() - begin}
    row.setdefault("per_second", row["raw_rows"] / row["wall_seconds"])
    return row | {"peak_rss_gib": peak_memory_mib() / 1024, "peak_anonymous_gib": memory.stop() / GIB}


def train(stage: str, data: ClickDataModule, folder: Path) -> dict:
    """Train an epoch, or resume at its end from the last checkpoint."""
    if not stage.endswith("_resume"):
        shutil.rmtree(folder, ignore_errors=True)  # left by an earlier attempt
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    saves = time_saves()
    torch.manual_seed(1)
    model = (deepfm if stage.startswith("deepfm") else dlrm)(data)
    results = train_one_epoch(model, data, folder)
    table = model.embedding.weight
    row = {
        "samples": len(data.rows["train"]),
        "table_and_moments_gib": 3 * table.numel() * table.element_size() / GIB,
        "checkpoint_gib": (folder / "checkpoints" / "last.ckpt").stat().st_size / GIB,
        "precision": results["precision"],
    }
    if stage.endswith("_resume"):
        shutil.rmtree(folder)
        return row | {"per_second": float("nan")}  # it trained nothing
    return row | {
        "per_second": results["train_samples_per_second"],
        "epoch_seconds": row["samples"] / results["train_samples_per_second"],
        "save_seconds": sum(saves),  # for best.ckpt (weights), last.ckpt and those every ten minutes, until on disk
    }


def time_saves() -> list[float]:
    """A list that collects the seconds that each checkpoint takes to write, from now on."""
    seconds, save = [], MappedCheckpointIO.save_checkpoint

    def timed(*arguments, **options) -> None:
        begin = time.perf_counter()
        save(*arguments, **options)
        seconds.append(time.perf_counter() - begin)

    MappedCheckpointIO.save_checkpoint = timed
    return seconds


def report() -> None:
    """Write stages.csv, stages.md and stages.png from the last measurement of each stage."""
    stages = pd.read_json(OUTPUT / "stages.jsonl", lines=True)
    stages = stages.drop_duplicates(["stage", "raw_rows", "min_count", "steps"], keep="last")
    stages = stages.sort_values(["stage", "min_count", "raw_rows"], kind="stable")
    stages.to_csv(OUTPUT / "stages.csv", index=False)
    cells = stages.map(lambda value: f"{value:,.2f}".removesuffix(".00") if isinstance(value, float) else str(value))
    (OUTPUT / "stages.md").write_text(markdown_table([*stages.columns], cells.replace("nan", "").values))

    figure = Figure((11, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    for color, stage in enumerate(name for name in STAGES if name != "generate"):
        for min_count, part in stages[stages["stage"] == stage].groupby("min_count"):
            rows = part["raw_rows"] / 1e6
            # the minutes of a whole epoch, also if only some of its steps were run
            epoch = rows * 1e6 * 6 / 7 / part["per_second"] if stage in ("deepfm", "dlrm") else part["wall_seconds"]
            label = stage if stage == "read" else f"{stage}, minimum count {min_count}"
            style = {"color": f"C{color}", "marker": "o", "linestyle": "-" if min_count == MIN_COUNTS[0] else ":"}
            axes[0].plot(rows, epoch / 60, **style, label=label)
            axes[1].plot(rows, part["peak_anonymous_gib"], **style)
    ticks = sorted(stages["raw_rows"].unique() / 1e6)
    for each, title, unit in zip(
        axes, ("Time (models: an epoch)", "Peak anonymous memory"), ("minutes", "GiB"), strict=True
    ):
        each.set(
            xscale="log",
            yscale="log" if unit == "minutes" else "linear",
            title=title,
            xlabel="million raw rows",
            ylabel=unit,
        )
        each.set_xticks(ticks, [f"{tick:.1f}" for tick in ticks])
        each.minorticks_off()
        each.yaxis.set_major_formatter("{x:g}")
    figure.legend(loc="outside right center", fontsize="small")
    figure.savefig(OUTPUT / "stages.png", dpi=120)
    print((OUTPUT / "stages.md").read_text())


def main() -> None:
    OUTPUT.mkdir(parents=True, exist_ok=True)
    if sys.argv[1:] == ["report"]:
        report()
    elif len(sys.argv) > 1:
        part, min_count, *steps = map(int, sys.argv[2:])
        row = measure(sys.argv[1], part, min_count, steps[0] if steps else None)
        with open(OUTPUT / "stages.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row))
    else:
        for part in PARTS:
            for min_count in MIN_COUNTS:
                for stage in STAGES[2 if min_count != MIN_COUNTS[0] else 0 :]:
                    subprocess.run([sys.executable, __file__, stage, str(part), str(min_count)], check=True)
        report()


if __name__ == "__main__":
    main()
