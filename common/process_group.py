"""The process group: rank, broadcast, and the Trainer's strategy."""

import atexit
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities import rank_zero_only
from torch import distributed

T = TypeVar("T")

# environment variables: the file through which the processes of one machine meet, and the pid that starts the others
RENDEZVOUS, STARTER = "RENDEZVOUS_FILE", "RENDEZVOUS_STARTER"
LOOK_SECONDS = 0.2  # between two checks that the others are alive; Lightning, which looks too, kills without a line


def is_distributed() -> bool:
    """Whether the process group is initialized."""
    return distributed.is_available() and distributed.is_initialized()


def is_rank_zero() -> bool:
    """Whether this process is the one that writes and prints."""
    if is_distributed():
        return distributed.get_rank() == 0
    # before the group exists: by the environment variables of Lightning, torchrun and Slurm
    rank = rank_zero_only.rank  # type: ignore[attr-defined]  # Lightning sets it on the function
    return not (rank or int(os.environ.get("NODE_RANK", 0)))


on_rank_zero: Any = partial(rank_zero_only, default={})  # a decorator: other ranks get an empty dict


def broadcast(value: T) -> T:
    """Rank zero's value on all ranks; without a process group, `value`."""
    box = [value]
    if is_distributed():
        distributed.broadcast_object_list(box)
    return box[0]


class LocalDDPStrategy(DDPStrategy):
    """DDP with a rendezvous through a file, because torch's TCP store listens on all network interfaces."""

    def setup_distributed(self) -> None:
        if not is_distributed():
            self.set_world_ranks()
            backend = distributed.get_default_backend_for_device(self.root_device)
            store = distributed.FileStore(os.environ[RENDEZVOUS], self.world_size)
            met = threading.Event()
            threading.Thread(target=self.watch, args=(met,), daemon=True).start()
            try:
                distributed.init_process_group(backend, store=store, rank=self.global_rank, world_size=self.world_size)
            finally:
                met.set()
            # otherwise gloo's threads can outlive the objects they use and abort the process (pytorch#190489)
            atexit.register(lambda: is_distributed() and distributed.destroy_process_group())
        super().setup_distributed()

    def watch(self, met: threading.Event) -> None:
        """End this process if one that it waits for dies, its starter or one that it started: torch would wait on."""
        starter, started = int(os.environ[STARTER]), getattr(self.launcher, "procs", [])  # those of Lightning
        while not met.wait(LOOK_SECONDS):
            if os.getppid() != starter != os.getpid() or any(process.poll() is not None for process in started):
                remove_rendezvous()
                sys.stderr.write("error: another process of this run died.\n")
                os._exit(1)  # not an exception: the main thread is inside torch


def remove_rendezvous() -> None:
    """What the starter does at its end, unless it was killed."""
    if RENDEZVOUS in os.environ:
        shutil.rmtree(Path(os.environ[RENDEZVOUS]).parent, ignore_errors=True)


def is_peer_failure(error: RuntimeError) -> bool:
    """Whether torch raised it because another process of this run has died."""
    return is_distributed() and ("gloo" in str(error) or isinstance(error, distributed.DistError))


def distributed_trainer_kwargs(training: Mapping[str, Any], *plugins: object) -> dict[str, Any]:
    """Arguments of Lightning's Trainer for the settings devices, num_nodes and strategy."""
    keywords = {name: training[name] for name in ("devices", "num_nodes", "strategy")}
    if training["strategy"] == "ray":  # this is a worker of Ray Train, which has started the processes
        from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment

        plugins = *plugins, RayLightningEnvironment()
        keywords = {"devices": "auto", "strategy": RayDDPStrategy()}
    elif training["devices"] > 1 and training["num_nodes"] == 1:
        if not {RENDEZVOUS, "LOCAL_RANK", "SLURM_PROCID"} & set(os.environ):  # Lightning, torchrun and Slurm set one
            # the processes that Lightning starts inherit them
            os.environ |= {RENDEZVOUS: f"{tempfile.mkdtemp()}/store", STARTER: str(os.getpid())}
            atexit.register(remove_rendezvous)
        if RENDEZVOUS in os.environ:
            keywords["strategy"] = LocalDDPStrategy()
    return keywords | {"accelerator": "auto", "plugins": list(plugins)}
