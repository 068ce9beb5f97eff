"""The choice of precision by layer width and batch size, if the processor has bf16; the memory that a step frees."""

import platform
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from torch import nn

from common.paths import REPO
from common.training import processor
from common.training.processor import resolve_precision


@pytest.mark.parametrize(
    ("asked", "widths", "batch_size", "chosen"),
    [
        ("auto", (300, 128), 256, "bf16-mixed"),
        ("auto", (300, 128), 255, "32-true"),
        ("auto", (300, 127, 500), 256, "32-true"),  # no layer is wide on both sides
        ("32-true", (300, 128), 256, "32-true"),
        ("bf16-mixed", (1, 1), 1, "bf16-mixed"),
    ],
)
def test_bf16_needs_a_wide_layer_and_large_batches(monkeypatch, asked, widths, batch_size, chosen):
    monkeypatch.setattr(processor, "has_bf16", lambda: True)
    layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
    assert resolve_precision(asked, nn.Sequential(nn.Embedding(999, 999), *layers), batch_size) == chosen


def test_a_processor_without_bf16_computes_in_float32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert resolve_precision("auto", nn.Linear(999, 999), 9999) == "32-true"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": True})
    assert resolve_precision("auto", nn.Linear(999, 999), 9999) == "bf16-mixed"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
def test_freed_memory_is_kept():
    """In a new process, because the first block raises glibc's threshold, which never falls again."""
    code = """import resource
import torch
from common.training.processor import keep_freed_memory

def faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        blocks = [torch.ones(4 * 2**20) for _ in range(2)]  # 16 MiB each
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = faults()
keep_freed_memory()
faults()
print(first, faults())"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    freed, kept = map(int, done.stdout.split())
    assert kept < 100 < 10_000 < freed
