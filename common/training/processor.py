"""How a training run uses the processor: the number format of matrix products, and the memory that a step frees."""

import ctypes
import platform
from typing import Literal

import torch
from torch import nn

Precision = Literal["32-true", "bf16-mixed"]
WIDE, ROWS = 128, 256  # from this layer width (inputs and outputs) and batch size on, bf16 makes products faster
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
LARGEST_KEPT = 64 * 2**20  # bytes of a block; larger ones, such as tables, still go back to the system


def has_bf16() -> bool:
    """Whether the processor, or the GPU if there is one, supports bf16 natively."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    processor = torch.cpu.get_capabilities()
    native = processor.get("avx512_bf16") or processor.get("amx_bf16") or processor.get("bf16")
    return bool(native) and not torch.mps.is_available()


def resolve_precision(precision: Precision | Literal["auto"], model: nn.Module, batch_size: int) -> Precision:
    """ "auto" becomes the faster one: bf16 if it is native, the model has a wide layer and the batches are not small.

    In others the casts cost about what the products gain (docs/speed.md). A fixed rule, not a timing, so that a
    run on the same machine gives the same result."""
    if precision != "auto":
        return precision
    linear = (layer for layer in model.modules() if isinstance(layer, nn.Linear))
    wide = any(min(layer.in_features, layer.out_features) >= WIDE for layer in linear)
    return "bf16-mixed" if has_bf16() and wide and batch_size >= ROWS else "32-true"


def keep_freed_memory() -> None:
    """Tell glibc not to return freed blocks: handed out again page by page, they took a sixth of a DeepFM step."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(MMAP_THRESHOLD, LARGEST_KEPT)
        libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)
