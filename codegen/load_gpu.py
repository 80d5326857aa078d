"""From a graph lowered for a GPU to a program on one: kernels compiled, or interpreted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.util import find_spec

from infopt.codegen import build
from infopt.codegen.interpreted_device import InterpretedDevice
from infopt.codegen.launches import KernelText, argument_kinds
from infopt.codegen.lower import Lowered, lower
from infopt.codegen.parallel import in_parallel
from infopt.codegen.schedules import Schedules, usual
from infopt.codegen.triton_compile import Compiled, compile_launch
from infopt.compiler.graph import Graph
from infopt.compiler.target import Target
from infopt.runtime.absent_program import AbsentProgram
from infopt.runtime.cuda_device import CudaDevice, find_gpus
from infopt.runtime.device import Device
from infopt.runtime.device_program import DeviceProgram
from infopt.runtime.errors import DeviceMissing
from infopt.runtime.gpu_levels import gpu_for, runs
from infopt.runtime.native import load_executor
from infopt.runtime.plan import AtenStep, DeviceKernel, Plan


@cache
def has_triton() -> bool:
    """Whether kernels can be compiled; without it torch runs every operator."""
    return find_spec("triton") is not None


def lower_for_gpu(graph: Graph, target: Target, schedules: Schedules = usual) -> Lowered:
    """`lower` with what this installation has: kernels and regions where Triton is installed."""
    kernels = has_triton()
    return lower(graph, target, shipped=kernels, generated=kernels, schedules=schedules)


def compiled_kernels(lowered: Lowered) -> tuple[Plan, dict[str, bytes]]:
    """The plan with what its kernels take of the GPU, and their machine code by name.

    Raises CannotCompile.
    """

    def compiled(text: KernelText) -> Compiled:
        return compile_launch(text.launch, lowered.level, text.unaligned)

    return with_code(lowered, list(in_parallel(compiled, lowered.kernels)))


def with_code(lowered: Lowered, made: Sequence[Compiled]) -> tuple[Plan, dict[str, bytes]]:
    """`compiled_kernels` of kernels that were compiled elsewhere, in their order."""
    pairs = zip(lowered.kernels, made, strict=True)
    code = {text.name: of.binary for text, of in pairs}
    described = tuple(_described(text, of) for text, of in zip(lowered.kernels, made, strict=True))
    return replace(lowered.plan, kernels=described), code


def _described(text: KernelText, of: Compiled) -> DeviceKernel:
    return DeviceKernel(
        library=text.name,
        entry=of.symbol,
        arguments=argument_kinds(text.launch),
        threads=of.threads,
        shared=of.shared,
        absent=of.hidden,
        registers=of.resources.registers,
        spills=of.resources.spills,
    )


def gpu_program(
    lowered: Lowered, device: Device | None = None, *, record: bool = False
) -> DeviceProgram | AbsentProgram:
    """The program of a graph lowered for a GPU, on `device`, default the first one here that runs
    its code; where there is none, a program that cannot be called.

    record: capture runs in graphs (runtime/recording.py). Raises CannotCompile, DeviceMissing.
    """
    if device is None:
        gpu = gpu_for(lowered.level, find_gpus())
        if gpu is None:
            return AbsentProgram(lowered.plan, lowered.constants, lowered.level)
        device = CudaDevice(gpu.index)
    if not runs(lowered.level, device.arch):
        raise DeviceMissing(f"the program is for a GPU {lowered.level}, {device.where} is another")
    if isinstance(device, InterpretedDevice):
        plan, code = lowered.plan, device.take(lowered.kernels)
    else:
        plan, code = compiled_kernels(lowered)
    return program_of(plan, lowered, device, code, record)


def program_of(
    plan: Plan, lowered: Lowered, device: Device, code: Mapping[str, bytes], record: bool
) -> DeviceProgram:
    executor = build.executor_library()
    spaces = {s.op.partition(".")[0] for s in plan.steps if isinstance(s, AtenStep)}
    return DeviceProgram(
        plan,
        lowered.constants,
        device,
        code,
        allow_ops=spaces,
        executor=load_executor(executor) if executor is not None else None,
        record=record,
    )
