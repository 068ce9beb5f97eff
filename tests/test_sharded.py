"""DLRM with its table sharded over two processes against DLRM in one, in float64 so that only the order of sums
differs."""

import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from common.errors import UserError
from dlrm import sharded
from dlrm.dlrmnet import DLRM
from dlrm.sharded import ShardedDLRM
from tests.script_process import processes
from tests.test_dlrm import make_batch, make_model

STEPS, ROWS = 20, 16
SIZES = [50, 3, 1]  # some of the 54 rows are in no batch, and a batch touches few rows of a process


def make_sharded(state: dict, folder: Path, **settings) -> ShardedDLRM:
    model = ShardedDLRM(**make_model(**settings).hparams)
    model.trainer = SimpleNamespace(
        checkpoint_callback=SimpleNamespace(dirpath=folder), ckpt_path="last.ckpt", max_epochs=None
    )
    model.trainer.datamodule = SimpleNamespace(dataset="criteo", state_dict=dict)
    model.configure_model()
    model.load_state_dict(state)
    return model


def fit(model: DLRM, optimizer: torch.optim.Optimizer, batches: list, rank: int | None = None) -> None:
    """rank: of two processes, each of which takes half of a batch."""
    forward = model if rank is None else DistributedDataParallel(model)
    for batch in batches:
        dense, ids, label = batch if rank is None else (part.chunk(2)[rank] for part in batch)
        optimizer.zero_grad()
        model.loss(forward(dense, ids), label).backward()
        optimizer.step()


def compare(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    sharded.CHUNK = 5  # so that there are several chunks
    same = {"rtol": 0, "atol": 1e-12, "check_dtype": False}  # Adam reads its number of steps as float32
    for optimizer, l2 in (("sgd", 0.0), ("adam", 1e-3), ("dense_adam", 1e-3), ("adagrad", 0.0)):
        torch.manual_seed(0)
        settings = {"cardinalities": SIZES, "optimizer": optimizer, "embedding_l2": l2}
        if optimizer == "adagrad":  # a field of two values in a cell, or one and padding
            settings |= {"pooling": [None, "mean", None]}
        model = make_model(**settings)
        batches = [make_batch(ROWS, SIZES) for _ in range(STEPS)]
        batches = [(dense, ids, label.double()) for dense, ids, label in batches]
        if "pooling" in settings:
            batches = [(dense, ids[:, [0, 1, 1, 2]], label) for dense, ids, label in batches]
            for _, ids, _ in batches:
                ids[:, 2] = torch.randint(-1, SIZES[1], (ROWS,))
        parts = make_sharded(model.state_dict(), folder, **settings)
        assert len(parts.embedding.weight) == 27
        steps, part_steps = model.configure_optimizers()["optimizer"], parts.configure_optimizers()["optimizer"]
        fit(model, steps, batches)
        fit(parts, part_steps, batches[: STEPS // 2], rank)

        checkpoint = {"state_dict": parts.state_dict(), "optimizer_states": [part_steps.state_dict()]}
        parts.on_save_checkpoint(checkpoint)  # as Lightning calls it, in all processes
        if rank == 0:
            torch.save(checkpoint, folder / "last.ckpt")
        distributed.barrier()
        checkpoint = torch.load(folder / "last.ckpt", mmap=True)
        distributed.barrier()
        parts = make_sharded(make_model(**settings).state_dict(), folder, **settings)  # of other values
        parts.on_load_checkpoint(checkpoint | {"SimpleNamespace": {}})
        parts.load_state_dict(checkpoint["state_dict"])
        part_steps = parts.configure_optimizers()["optimizer"]
        part_steps.load_state_dict(checkpoint["optimizer_states"][0])
        fit(parts, part_steps, batches[STEPS // 2 :], rank)

        checkpoint = {"state_dict": parts.state_dict(), "optimizer_states": [part_steps.state_dict()]}
        parts.on_save_checkpoint(checkpoint)
        if rank == 0:
            again = DLRM(**parts.hparams)
            again.load_state_dict(checkpoint["state_dict"])
            torch.testing.assert_close(again.state_dict(), model.state_dict(), **same)
            assert checkpoint["model"] == "DLRM"
            torch.testing.assert_close(checkpoint["optimizer_states"][0]["state"], steps.state_dict()["state"], **same)
        torch.testing.assert_close(parts(*batches[0][:2]), model(*batches[0][:2]), **same)
        assert not list(folder.glob("tmp*"))
    distributed.destroy_process_group()  # otherwise gloo can abort the process at exit


def test_two_processes_equal_one(tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    multiprocessing.start_processes(compare, (port, tmp_path), 2, start_method=processes.get_start_method())


def test_needs_several_processes():
    with pytest.raises(UserError, match="Raise devices or num_nodes"):
        ShardedDLRM(**make_model().hparams).configure_model()
