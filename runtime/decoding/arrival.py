"""Chosen tokens on their way to the CPU, while the GPU goes on with them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def arrival(ids: Tensor) -> Callable[[], list[int]]:
    """Starts to bring ids to the CPU. The call that gives them waits for what was launched until
    now, not for what is launched in between."""
    if not ids.is_cuda:
        return ids.flatten().tolist
    there = torch.empty(ids.numel(), dtype=ids.dtype, pin_memory=True)
    there.copy_(ids.flatten(), non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(ids.device))

    def wait() -> list[int]:
        event.synchronize()
        return there.tolist()

    return wait
