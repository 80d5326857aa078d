"""Where a loaded artifact runs: the processor, or a GPU that has a program in it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeAlias

import torch

from infopt.runtime.cuda_device import CudaDevice, Gpu, find_gpus
from infopt.runtime.device import Device
from infopt.runtime.device_program import DeviceProgram
from infopt.runtime.errors import LibraryError
from infopt.runtime.executor import Program
from infopt.runtime.manifest import Manifest, VariantEntry
from infopt.runtime.native import load_executor
from infopt.runtime.plan import Plan
from infopt.runtime.verdict import Verdict, choose

Place: TypeAlias = "str | torch.device | Device | None"


def choose_for(manifest: Manifest, place: Place) -> Verdict:
    """The best program for the place asked for, of all places where it is None. Raises
    ArtifactIncompatible."""
    if place is None:
        return choose(manifest)
    if not isinstance(place, str | torch.device):
        gpu = Gpu("given", 0, place.arch, type(place).__name__)
        return choose(manifest, (gpu,), "gpu")
    where = torch.device(place)
    if where.type == "cpu":
        return choose(manifest, (), "cpu")
    found = tuple(g for g in find_gpus() if where.index in (None, g.index))
    return choose(manifest, found, "gpu")


def device_of(verdict: Verdict, entry: VariantEntry, place: Place) -> Device | None:
    """The GPU that the program `entry` runs on, None for one of the processor's."""
    if entry is not verdict.entry or verdict.gpu is None:
        return None
    if place is not None and not isinstance(place, str | torch.device):
        return place
    return CudaDevice(verdict.gpu.index)


def maker_on(
    device: Device,
    plan: Plan,
    code: Mapping[str, bytes],
    allow_ops: Collection[str],
    record: bool,
) -> Callable[[Sequence[torch.Tensor]], Program]:
    """Makes the program on a GPU from its constants."""

    def make(constants: Sequence[torch.Tensor]) -> Program:
        return DeviceProgram(
            plan,
            constants,
            device,
            code,
            allow_ops=allow_ops,
            executor=_executor_if_installed(),
            record=record,
        )

    return make


def _executor_if_installed() -> ctypes.CDLL | None:
    try:
        return load_executor()
    except LibraryError:
        return None
