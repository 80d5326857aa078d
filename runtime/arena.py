"""The memory of a call's intermediates: aligned, and in huge pages where it is large."""

from __future__ import annotations

import mmap
from contextlib import suppress

import torch

ALIGNMENT = 64  # bytes
HUGE_PAGE = 1 << 21  # bytes
# Kernels walk many rows at once; in pages of 4 KiB each row needs a translation of its own.
_ADVICE = getattr(mmap, "MADV_HUGEPAGE", None)  # Linux only


def allocate(size: int, device: torch.device) -> torch.Tensor:
    """uint8 [size] that begins at a multiple of ALIGNMENT; its contents are arbitrary."""
    if device.type == "cpu" and size >= HUGE_PAGE and _ADVICE is not None:
        region = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory = torch.frombuffer(region, dtype=torch.uint8)
        shift = -memory.data_ptr() % HUGE_PAGE
        with suppress(OSError):  # a kernel without huge pages; the memory is as good as any
            region.madvise(_ADVICE, shift, size)
    else:
        memory = torch.empty(size + ALIGNMENT, dtype=torch.uint8, device=device)
        shift = -memory.data_ptr() % ALIGNMENT
    return memory[shift : shift + size]
