"""What a program asks of a GPU. Memory, streams and events are torch's; machine code is ours.

`CudaDevice` (cuda_device.py) is the real one. Tests run the same programs on a device that
interprets each kernel's source on CPU tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch

from infopt.runtime.plan import DeviceKernel


class Recorded(Protocol):
    """A run that was recorded: the same launches on the same memory, again."""

    def replay(self) -> None: ...


class Device(Protocol):
    """One GPU.

    where     the device of its tensors
    arch      as the plans' levels are named: "sm90", "gfx942"
    launcher  address of a function with the signature of cuLaunchKernel
    """

    where: torch.device
    arch: str
    launcher: int

    def load(self, kernel: DeviceKernel, code: bytes) -> int:
        """The address that `launcher` takes as the function. Raises LibraryError."""
        ...

    def current(self) -> AbstractContextManager[None]:
        """Makes it the device that launches and allocations go to."""
        ...

    def stream(self) -> int:
        """The stream that torch's own operators would use now."""
        ...

    def explain(self, status: int) -> str:
        """What an error of `launcher` means."""
        ...

    def record(self, run: Callable[[], Any]) -> tuple[Recorded, Any]:
        """Capture what `run` launches, without running it; and what `run` returned. Raises
        CannotRecord where it does something that cannot be captured."""
        ...

    def synchronize(self) -> None:
        """Wait for all that was launched."""
        ...
