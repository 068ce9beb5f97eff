"""Sends a train() of this repo to a Ray cluster; Ray itself is imported only then."""

import functools
from collections.abc import Callable
from typing import Any

from common.process_group import is_distributed


def on_ray(script: str, training: dict[str, Any]) -> Callable[[Callable], Callable[..., dict[str, Any]]]:
    """Decorator: with strategy "ray", a call of train() becomes one call in each worker of a Ray cluster."""

    def decorate(train: Callable) -> Callable[..., dict[str, Any]]:
        @functools.wraps(train)
        def launch(*arguments: Any, **changes: Any) -> dict[str, Any]:
            if (training | changes)["strategy"] != "ray" or is_distributed():
                return train(*arguments, **changes)
            from common.cluster.ray_cluster import train_on_ray

            return train_on_ray(launch, script, training | changes)

        return launch

    return decorate
