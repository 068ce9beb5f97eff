"""Which of the processes that train together this one is, and what Lightning is told of them."""

import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path

from pytorch_lightning.utilities import rank_zero_only
from torch import distributed


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


def trainer_settings(settings: dict, *plugins: object) -> dict:
    """Keywords of Lightning's Trainer for DEVICES, NUM_NODES and STRATEGY."""
    keywords = {name: settings[name] for name in ("devices", "num_nodes", "strategy")}
    if settings["strategy"] == "ray":  # this is a worker of Ray Train, which has made the processes
        from ray.train.lightning import RayDDPStrategy, RayLightningEnvironment

        plugins = *plugins, RayLightningEnvironment()
        keywords = {"devices": "auto", "strategy": RayDDPStrategy()}
    return keywords | {"accelerator": "auto", "plugins": list(plugins)}
