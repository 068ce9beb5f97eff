"""The cost of a step in several processes: `python benchmarks/studies/processes.py`.

Writes processes.csv and processes.png to OUTPUT. DeepFM in the sizes of speed.py, gloo on the loopback interface, one
thread per process. The parts of a step run one after another here, so that each can be timed (Lightning's DDP overlaps
the exchange of dense gradients with the backward pass). Compares the bytes that the system counts on the loopback
interface with the formula in docs/processes.md. Linux only (/sys).
"""

import os
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repo root, ahead of this folder

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, distributed, multiprocessing

from benchmarks.criteo_shaped import OUTPUT, RawRows
from benchmarks.ours import deepfm
from common.model.embedding import average_touched_rows
from common.process_group import is_distributed

WORLD_SIZES = (1, 2, 4)  # processes
BATCH_SIZES = (512, 4096)  # rows per process
STEPS, WARM_UP = 30, 5
REPEATS = 3
PARTS = ("compute", "wait", "dense exchange", "row exchange", "update")


def sent_bytes() -> int:
    """All bytes sent over the loopback interface so far."""
    return int(Path("/sys/class/net/lo/statistics/tx_bytes").read_text())


def step_times(rank: int, world_size: int, batch_size: int, port: int, results: list) -> None:
    """Run the steps of one process; the first process appends the medians, in seconds, and the bytes per step."""
    torch.set_num_threads(1)
    if world_size > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        distributed.init_process_group("gloo", rank=rank, world_size=world_size)
    data = RawRows(world_size * batch_size)
    torch.manual_seed(0)
    model = deepfm(data)
    optimizer = model.configure_optimizers()["optimizer"]
    table = model.embedding.weight
    dense = [parameter for parameter in model.parameters() if parameter is not table]
    batches = [[part.tensor_split(world_size)[rank] for part in batch] for batch in data.batches()[:STEPS]]
    times, rows = [], []
    for index in range(WARM_UP + STEPS):
        *inputs, label = batches[index % len(batches)]
        if index == WARM_UP:
            meet()
            sent = sent_bytes()
        marks = [time.perf_counter()]
        model.loss(model(*inputs), label).backward()
        marks.append(time.perf_counter())
        meet()
        marks.append(time.perf_counter())
        average_dense(dense, world_size)
        marks.append(time.perf_counter())
        rows.append(table.grad._nnz())
        if is_distributed():
            average_touched_rows(table)
        marks.append(time.perf_counter())
        optimizer.step()
        optimizer.zero_grad()
        marks.append(time.perf_counter())
        times.append(np.diff(marks))
    meet()
    measured = dict(zip(PARTS, np.median(times[WARM_UP:], 0), strict=True))
    measured |= {"counted bytes": (sent_bytes() - sent) / STEPS, "touched rows": np.mean(rows[WARM_UP:])}
    values = sum(parameter.numel() for parameter in dense)
    row_bytes = 4 * (1 + table.shape[1]) * measured["touched rows"]
    measured["formula bytes"] = 2 * (world_size - 1) * 4 * values + world_size * (world_size - 1) * row_bytes
    if rank == 0:
        results.append({"processes": world_size, "batch": batch_size, **measured})


def meet() -> None:
    if is_distributed():
        distributed.barrier()


def average_dense(parameters: list[Tensor], world_size: int) -> None:
    """Average gradients as DDP does, in one bucket."""
    if is_distributed():
        flat = torch.cat([parameter.grad.flatten() for parameter in parameters])
        distributed.all_reduce(flat)
        sizes = [parameter.numel() for parameter in parameters]
        for parameter, mean in zip(parameters, (flat / world_size).split(sizes), strict=True):
            parameter.grad.copy_(mean.view_as(parameter))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def main() -> None:
    """Measure all numbers of processes and batch sizes in turn, then write table and figure."""
    RawRows(1)  # builds the cache in one process
    with multiprocessing.Manager() as manager:
        results = manager.list()
        for _ in range(REPEATS):
            for batch_size in BATCH_SIZES:
                for world_size in WORLD_SIZES:
                    multiprocessing.spawn(step_times, (world_size, batch_size, free_port(), results), world_size)
        table = pd.DataFrame(list(results))
    table = table.groupby(["batch", "processes"]).median()
    table.to_csv(OUTPUT / "processes.csv")
    shown = pd.concat([table[list(PARTS)].mul(1000).add_suffix(" ms"), table.drop(columns=list(PARTS))], axis=1)
    print(shown.round(1).to_string())
    measured = table[table.index.get_level_values("processes") <= os.cpu_count()]  # others share a core
    figure = Figure((7, 1.2 + 0.5 * len(measured)), layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(measured))
    names = [f"{processes} × {batch}" for batch, processes in measured.index]
    for part in PARTS:
        axes.barh(names, 1000 * measured[part], left=left, label=part)
        left += 1000 * measured[part].to_numpy()
    axes.invert_yaxis()
    axes.set(xlabel="milliseconds per step", ylabel="ranks × rows per rank")
    axes.legend(fontsize="small")
    figure.savefig(OUTPUT / "processes.png", dpi=120)


if __name__ == "__main__":
    main()
