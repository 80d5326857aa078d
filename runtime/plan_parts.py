"""The records a plan is made of. Use them through `infopt.runtime.plan`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from infopt.runtime.records import freeze

Expression = tuple[int | str, ...]
Slot = int

INPUT_KINDS = ("tensor", "weight", "int", "float", "bool", "other")
BUFFER_KINDS = ("input", "const", "arena", "output", "torch")
ARGUMENT_KINDS = ("pointer", "i32", "i64", "fp32")


@dataclass(frozen=True)
class Dim:
    """A size known at the call: `inputs[input].shape[axis]`, or the scalar input itself (no axis).

    A float input gives its 64-bit pattern, a bool 0 or 1. lo <= value <= hi is checked (not for
    floats); hi None means no upper limit. counted: the number of nonzero elements of a tensor
    input instead, and lo where they are fewer.
    """

    name: str
    lo: int
    hi: int | None
    input: int
    axis: int | None = None
    counted: bool = False


@dataclass(frozen=True)
class InputSpec:
    """What a call must pass at one position.

    "tensor": dtype ("torch.float32"), shape; with `strides` (in elements) other strides are copied
    to those, with None any strides are taken, which only aten steps can read.
    "weight": a tensor with constant sizes that is nearly always the same object; cheap to check.
    "int", "float", "bool": Python scalars. "other": not looked at, may only be returned.
    """

    name: str
    kind: str
    dtype: str | None = None
    shape: tuple[Slot, ...] = ()
    strides: tuple[Slot, ...] | None = None


@dataclass(frozen=True)
class Buffer:
    """Memory of `bytes` bytes. index: which input ("input") or constant ("const"), else 0.

    "arena": placed by liveness in the call's scratch memory. "output": fresh torch storage, handed
    to the caller, or of the call's own where an arena's alignment does not do. "torch": the storage
    of an aten step's result.
    """

    kind: str
    index: int
    bytes: Slot


@dataclass(frozen=True)
class View:
    """A tensor over a buffer: offset in bytes, shape and strides in elements."""

    buffer: int
    offset: Slot
    shape: tuple[Slot, ...]
    strides: tuple[Slot, ...]
    dtype: str


@dataclass(frozen=True)
class NativeStep:
    """One kernel over `tasks` independent tasks. pointers: (buffer, byte-offset slot) each;
    buffer -1 is a null pointer, for an optional tensor that is absent.

    With `error` the kernel gets one pointer more, the last: an int32 it sets non-zero to fail; the
    message may start with "IndexError: " or "ValueError: " to choose the exception.
    scratch: slot of the bytes each thread needs, or None.
    """

    kernel: str
    library: str
    pointers: tuple[tuple[int, Slot], ...]
    numbers: tuple[Slot, ...]
    tasks: Slot
    scratch: Slot | None = None
    error: str | None = None


@dataclass(frozen=True)
class AtenStep:
    """One torch op, e.g. "aten.cumsum.default". outputs: the view each result is, None if unused.

    args and kwargs are JSON values in which {"tensor": view}, {"size": slot}, {"input": position},
    {"dtype": "torch.float32"}, {"device": "cpu"} (where the program runs), {"memory_format": ..},
    {"layout": ..},
    {"float": "inf" | "-inf" | "nan"} and {"complex": [re, im]} stand for run-time values.
    An op that writes in place (copy_) names the view among its args and has no outputs.
    """

    op: str
    args: tuple[Any, ...]
    outputs: tuple[int | None, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "args", freeze(self.args))
        object.__setattr__(self, "kwargs", freeze(self.kwargs))


@dataclass(frozen=True)
class DeviceKernel:
    """The machine code of one GPU kernel.

    library     name of the file that holds it; entry: its symbol there
    arguments   what it takes, in order: "pointer", "i32", "i64" or "fp32"
    absent      so many null pointers come after those: memory that such code may ask for. Code
                that makes tensor descriptors has a pointer for theirs as its last argument
    threads     of one block; shared: bytes of dynamic shared memory
    registers, spills  of one thread, spills in bytes; for people
    """

    library: str
    entry: str
    arguments: tuple[str, ...]
    threads: int
    shared: int = 0
    absent: int = 0
    registers: int = 0
    spills: int = 0


@dataclass(frozen=True)
class LaunchStep:
    """One launch of `Plan.kernels[device_kernel]`. arguments: (buffer, byte-offset slot) for a
    pointer, (-1, slot) for a number; a float travels as the bit pattern of a double. A grid with
    a 0 in it leaves the launch out.
    """

    device_kernel: int
    arguments: tuple[tuple[int, Slot], ...]
    grid: tuple[Slot, Slot, Slot]


@dataclass(frozen=True)
class OutputTensor:
    """A tensor over `view`; two outputs over one buffer share its storage."""

    view: int


@dataclass(frozen=True)
class OutputInput:
    """The very object that was passed at `input`."""

    input: int


@dataclass(frozen=True)
class OutputInt:
    """A Python int."""

    slot: Slot


@dataclass(frozen=True)
class OutputConst:
    """A Python scalar: int, float, bool or str."""

    value: int | float | bool | str


@dataclass(frozen=True)
class OutputNone:
    """None."""


@dataclass(frozen=True)
class Mutation:
    """After the run, `view` is copied into the input."""

    input: int
    view: int


@dataclass(frozen=True)
class Guard:
    """`slot` must be non-zero, or the call is refused with an InputMismatch saying `message`."""

    slot: Slot
    message: str


Step = NativeStep | AtenStep | LaunchStep
Output = OutputTensor | OutputInput | OutputInt | OutputConst | OutputNone
