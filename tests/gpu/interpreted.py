"""Small torch functions as programs for a GPU that the interpreter stands for."""

from collections.abc import Callable, Sequence

import torch

from infopt.codegen.interpreted_device import InterpretedDevice
from infopt.codegen.load_gpu import gpu_program, lower_for_gpu
from infopt.codegen.lower import Lowered
from infopt.compiler.target import Target
from infopt.runtime.device_program import DeviceProgram
from tests.codegen.traced import compare, graph_of

TARGET = Target.parse("cuda:sm90")


def lowered_of(f: Callable, args: Sequence[torch.Tensor], dynamic: bool = False) -> Lowered:
    return lower_for_gpu(graph_of(f, args, dynamic), TARGET)


def program_of(
    f: Callable, args: Sequence[torch.Tensor], dynamic: bool = False, record: bool = False
) -> DeviceProgram:
    return gpu_program(lowered_of(f, args, dynamic), InterpretedDevice(), record=record)


def check(
    f: Callable,
    *args: torch.Tensor,
    dynamic: bool = False,
    most_ulps: float = 0,
    close: tuple[float, float] | None = None,
) -> DeviceProgram:
    """f compiled equals f in torch: values, strides, and what it writes to its arguments."""
    made = program_of(f, [a.clone() if a.is_contiguous() else a for a in args], dynamic)
    compare(made, f, args, most_ulps, close)
    return made
