"""Which machine a program is compiled for, from where its example inputs are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from infopt.compiler.errors import BadOption, TraceDeclined
from infopt.compiler.one_device import CPU, device_of
from infopt.compiler.target import Target
from infopt.runtime.cuda_device import CudaDevice
from infopt.runtime.device import Device


@dataclass(frozen=True)
class Machine:
    """A target, and for a GPU of this machine the device."""

    target: Target
    device: Device | None = None


def machine_for(values: Iterable[Any]) -> Machine:
    """Where these values are. Raises TraceDeclined for several devices, and for a GPU of an
    architecture that infopt has no row for."""
    where = device_of(values)
    if where == CPU:
        return Machine(Target.detect())
    if where.type != "cuda":
        raise TraceDeclined(f"the inputs are on {where}, expected the CPU or a GPU")
    try:
        target = Target.of_gpu(where.index or 0)
    except BadOption as unknown:
        raise TraceDeclined(str(unknown)) from None
    return Machine(target, CudaDevice(where.index or 0))
