"""What a program asks of a GPU. Memory, streams and events are torch's; machine code is ours.

`CudaDevice` (cuda_device.py) is the real one. Tests run the same programs on a device that
interprets each kernel's source on CPU tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
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

    def pool(self) -> Any:
        """Memory for recordings of which never two are replayed at once."""
        ...

    def record(self, run: Callable[[], Any], pool: Any) -> tuple[Recorded, Any]:
        """Capture what `run` launches, without running it, with memory of the pool; and what `run`
        returned. Raises CannotRecord where it does something that cannot be captured."""
        ...

    def mark(self, old: Any = None) -> Any:
        """The end of what has been launched on the current stream; a mark that is not needed any
        more may be given to be set anew."""
        ...

    def wait(self, mark: Any) -> None:
        """What is launched on the current stream from now on comes after the mark."""
        ...

    def lend(self, tensors: Iterable[torch.Tensor]) -> None:
        """Tensors made on another stream are used on the current one: their memory is not used
        again before that has ended."""
        ...

    def synchronize(self) -> None:
        """Wait for all that was launched."""
        ...
