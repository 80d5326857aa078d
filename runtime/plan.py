"""The plan: all a program does, as plain data; the executor runs it, the artifact stores it.

Every number of a plan (size, stride, byte offset, task count, kernel number) is a *slot*: an index
into `Plan.expressions`. An expression is a postfix tuple of tokens:

    int              a constant (a double travels as its 64-bit pattern, signed)
    "d<i>"           the value of dim i;       "s<j>"  the value of an earlier slot j
    + - * // % max min           integers, // and % floor as in Python
    == != < <= > >=              1 or 0

so `(d0 + 15) // 16` is ("d0", 15, "+", 16, "//"). Slots are evaluated natively, once per change
of the dim values.
"""

from __future__ import annotations

from dataclasses import dataclass

from infopt.runtime.plan_check import check_plan
from infopt.runtime.plan_parts import (
    BUFFER_KINDS,
    INPUT_KINDS,
    AtenStep,
    Buffer,
    DeviceKernel,
    Dim,
    Expression,
    Guard,
    InputSpec,
    LaunchStep,
    Mutation,
    NativeStep,
    Output,
    OutputConst,
    OutputInput,
    OutputInt,
    OutputNone,
    OutputTensor,
    Slot,
    Step,
    View,
)
from infopt.runtime.records import read_json, write_json

__all__ = [
    "BUFFER_KINDS",
    "FORMAT",
    "INPUT_KINDS",
    "AtenStep",
    "Buffer",
    "DeviceKernel",
    "Dim",
    "Expression",
    "Guard",
    "InputSpec",
    "LaunchStep",
    "Mutation",
    "NativeStep",
    "Output",
    "OutputConst",
    "OutputInput",
    "OutputInt",
    "OutputNone",
    "OutputTensor",
    "Plan",
    "Slot",
    "Step",
    "View",
]

FORMAT = 1


@dataclass(frozen=True)
class Plan:
    """A whole program. Raises PlanError when a part refers to something that is not there.

    kernels: what launch steps run, of a program for a GPU. A plan has native steps or launches.
    """

    expressions: tuple[Expression, ...]
    dims: tuple[Dim, ...]
    inputs: tuple[InputSpec, ...]
    buffers: tuple[Buffer, ...]
    views: tuple[View, ...]
    steps: tuple[Step, ...]
    outputs: tuple[Output, ...]
    mutations: tuple[Mutation, ...] = ()
    guards: tuple[Guard, ...] = ()
    kernels: tuple[DeviceKernel, ...] = ()

    def __post_init__(self) -> None:
        check_plan(self)

    def to_json(self) -> str:
        """One JSON object, stable for equal plans."""
        return write_json(self, FORMAT)

    @staticmethod
    def from_json(text: str) -> Plan:
        """The plan `to_json` wrote. Raises PlanError for anything else."""
        return read_json(text, Plan, FORMAT)

    @property
    def constants(self) -> int:
        """How many constant tensors the plan needs."""
        return 1 + max((b.index for b in self.buffers if b.kind == "const"), default=-1)

    @property
    def libraries(self) -> tuple[str, ...]:
        """Names of the kernel libraries the plan needs, sorted."""
        native = {s.library for s in self.steps if isinstance(s, NativeStep)}
        return tuple(sorted(native | {k.library for k in self.kernels}))
