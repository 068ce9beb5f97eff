"""Threads for work on whole arrays, during which NumPy releases the interpreter lock."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

THREADS = max(1, min(8, os.cpu_count() or 1))


def ordered_map(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Like `map`, in threads. Reads only as many items ahead as keep the threads busy, so memory stays bounded."""
    with ThreadPoolExecutor(THREADS) as pool:
        running: deque = deque()
        for item in items:
            running.append(pool.submit(function, item))
            if len(running) > THREADS:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
