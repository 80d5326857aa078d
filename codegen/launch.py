"""One launch of a GPU kernel: what an emitter for kind "gpu" returns, as the CPU's return `Call`.

    Launch(source=TEXT, entry="softmax_rows", grid=(rows,), warps=4,
           arguments=(Pointer("self", x.dtype), Pointer("out", out.dtype), rows, width),
           constants={"BLOCK": 1024})

Everything may be symbolic but the constants. Nothing here needs Triton: `triton_compile.py` makes
machine code of a launch, `gpu/interpret.py` runs it on CPU tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import sympy
import torch

from infopt.compiler.types import Size

# What Triton calls a pointer to these.
ELEMENT_NAMES: Mapping[torch.dtype, str] = {
    torch.float64: "fp64",
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.float8_e5m2: "fp8e5",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "i1",
}
ALIGNMENT = 16  # bytes of an address, or a factor of a size, that widens loads
DESCRIPTOR = 128  # bytes of a tensor descriptor, and what its address is a multiple of


@dataclass(frozen=True)
class Scratch:
    """Device memory for the launches of one emitter; equal names are the same memory.

    bytes   its size. The contents are undefined at first: a launch that reads it comes after one
            that has written all it reads
    """

    name: str
    bytes: Size


@dataclass(frozen=True)
class Pointer:
    """An address: of a tensor, at its first element, or of scratch memory.

    of     a parameter's name ("xs0" for the first of a list "xs"), "out" (or "out0", "out1" for
           several results), or a Scratch
    dtype  of the elements that the kernel sees there
    """

    of: str | Scratch
    dtype: torch.dtype


Argument: TypeAlias = "Pointer | Size | float"


@dataclass(frozen=True)
class Work:
    """What one program of a launch does, as far as its time depends on the schedule; the cost model
    (gpu_tuning/cost_model.py) estimates by it.

    steps   turns of the main loop for one unit, in the mean over all
    flops   of a turn, in units for products of `dtype` (a name of Target.peak)
    vector  further operations of a turn, in f32
    loads   bytes that a turn brings in; as many stages of them as the launch has are held in shared
            memory
    values  registers of 32 bits that a block needs from turn to turn
    stores  bytes written at the end of a unit
    held    bytes of shared memory beside the stages
    units   what programs share out among them; None: one for each
    flat    one unit's loads begin before the unit before it has ended
    """

    steps: Size
    flops: int
    loads: int
    dtype: str
    values: int
    vector: int = 0
    stores: int = 0
    held: int = 0
    units: Size | None = None
    flat: bool = False


@dataclass(frozen=True)
class Launch:
    """One launch of a Triton kernel, in symbolic sizes.

    source     a complete, readable Triton module that runs standalone
    entry      its @triton.jit function
    arguments  addresses, integers and floats (f32) for the function's parameters in their order,
               those left out that are constants
    constants  tl.constexpr parameters, and absent tensors as None, by name
    grid       one to three sizes; a 0 leaves the launch out
    warps      of 32 threads (64 on AMD)
    stages     how deep loops are pipelined that end in tl.dot
    exact      products and sums stay two roundings, as torch's separate kernels have them
    work       what a program does, where schedules are to be compared by it
    descriptors   how many tensor descriptors a program makes in memory of its own; such a function
               has a constant DESCRIPTORS, without which it loads by pointers
    """

    source: str
    entry: str
    arguments: tuple[Argument, ...]
    constants: Mapping[str, int | float | bool | str | None] = field(default_factory=dict)
    grid: tuple[Size, ...] = (1,)
    warps: int = 4
    stages: int = 3
    exact: bool = False
    work: Work | None = None
    descriptors: int = 0

    def __hash__(self) -> int:
        fixed = tuple(sorted((k, repr(v)) for k, v in self.constants.items()))
        return hash((self.source, self.entry, self.arguments, fixed, self.grid, self.warps))

    @property
    def signature(self) -> tuple[str, ...]:
        """Triton's types of the arguments: "*bf16", "i32", "i64", "fp32"."""
        return tuple(type_name(a) for a in self.arguments)

    @property
    def divisible(self) -> tuple[bool, ...]:
        """For each argument: is it a multiple of 16 at every call, whatever the dims are?

        Addresses are: who runs a launch must bring a tensor that starts elsewhere into memory that
        does, or compile with `compile_launch(..., unaligned={index})`.
        """
        return tuple(is_multiple(a) for a in self.arguments)

    @property
    def descriptor_bytes(self) -> Size:
        """Of memory that follows the arguments, for the descriptors of all programs."""
        return DESCRIPTOR * self.descriptors * math.prod(self.grid)

    def by_pointers(self) -> Launch:
        """The same without descriptors, for addresses that are no multiples of 16."""
        if not self.descriptors:
            return self
        constants = {**self.constants, "DESCRIPTORS": False}
        return replace(self, constants=constants, descriptors=0)

    @property
    def scratches(self) -> Iterator[Scratch]:
        for a in self.arguments:
            if isinstance(a, Pointer) and isinstance(a.of, Scratch):
                yield a.of


def type_name(argument: Argument) -> str:
    """Triton's type of an argument. Open sizes travel in 64 bits."""
    if isinstance(argument, Pointer):
        return "*" + ELEMENT_NAMES[argument.dtype]
    if isinstance(argument, float):
        return "fp32"
    small = isinstance(argument, int) and -(2**31) <= argument < 2**31
    return "i32" if small else "i64"


def is_multiple(argument: Argument, of: int = ALIGNMENT) -> bool:
    """True where an argument is a multiple at all values of the dims."""
    if isinstance(argument, Pointer):
        return True
    if isinstance(argument, float):
        return False
    if isinstance(argument, int):
        return argument % of == 0
    return sympy.expand(argument).as_content_primitive()[0] % of == 0
