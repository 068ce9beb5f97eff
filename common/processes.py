"""Which of the processes that train together this one is, and what Lightning is told of them."""

import functools
import inspect
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities import rank_zero_only
from torch import distributed

from common.errors import UserError

MEETING = "MEETING_FILE"  # variable of the environment


def together() -> bool:
    """Whether this process has met the others that it trains with."""
    return distributed.is_available() and distributed.is_initialized()


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    if together():
        return distributed.get_rank() == 0
    # before they meet: variables of Lightning, torchrun and Slurm
    return not (rank_zero_only.rank or int(os.environ.get("NODE_RANK", 0)))


def from_first(value: str | None) -> str | None:
    """The first process's value, for all processes that have met; else `value`."""
    box = [value]
    if together():
        distributed.broadcast_object_list(box)
    return box[0]


def on_ray(train: Callable[..., dict]) -> Callable[..., dict]:
    """A call of `train` with the strategy "ray" becomes one in each process of a Ray cluster."""

    @functools.wraps(train)
    def sent(*values: object, **keywords: object) -> dict:
        call = inspect.signature(train).bind(*values, **keywords)
        call.apply_defaults()
        if call.arguments["strategy"] != "ray" or together():
            return train(**call.arguments)
        from common.cluster import train_on_ray  # Ray is not loaded for nothing

        return train_on_ray(sent, Path(inspect.getfile(train)).parent.name, call.arguments)

    return sent


def is_launched() -> bool:
    """Whether another process (Lightning's first one, torchrun, Slurm) has started this one as one of several."""
    return any(name in os.environ for name in ("LOCAL_RANK", "SLURM_PROCID"))


class DDPOnThisMachine(DDPStrategy):
    """DDP whose processes meet through a file: torch's own meeting place listens on all interfaces of the machine."""

    def setup_distributed(self) -> None:
        if not together():
            self.set_world_ranks()
            backend = distributed.get_default_backend_for_device(self.root_device)
            store = f"file://{os.environ[MEETING]}"
            distributed.init_process_group(backend, store, rank=self.global_rank, world_size=self.world_size)
        super().setup_distributed()


@contextmanager
def deaths_told() -> Iterator[None]:
    """UserError where another process of this run has died."""
    try:
        yield
    except RuntimeError as error:
        if together() and ("gloo" in str(error) or isinstance(error, distributed.DistError)):
            message = "another process of this run died; RESUME = True goes on from the last checkpoint."
            raise UserError(message) from error
        raise


def trainer_settings(settings: dict, *plugins: object) -> dict:
    """Keywords of Lightning's Trainer for DEVICES, NUM_NODES and STRATEGY."""
    keywords = {name: settings[name] for name in ("devices", "num_nodes", "strategy")}
    if settings["devices"] > 1 and settings["num_nodes"] == 1 and settings["strategy"] in ("auto", "ddp"):
        if MEETING not in os.environ and not is_launched():
            os.environ[MEETING] = f"{tempfile.mkdtemp()}/store"  # for the processes that Lightning starts too
        if MEETING in os.environ:
            keywords["strategy"] = DDPOnThisMachine()
    if settings["strategy"] == "ray":  # this is a worker of Ray Train, which has made the processes
        from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment

        plugins = *plugins, RayLightningEnvironment()
        keywords = {"devices": "auto", "strategy": RayDDPStrategy()}
    return keywords | {"accelerator": "auto", "plugins": list(plugins)}
