"""Launches of one plan: regions and kernels for a GPU as launch steps, equal code shared."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import sympy
import torch

from infopt.codegen.emit_triton import TritonRegion
from infopt.codegen.launch import Launch, Pointer, Scratch, is_multiple
from infopt.codegen.lower_region import Text
from infopt.codegen.plan_writer import PlanWriter, Value
from infopt.codegen.region import Access, find_loops
from infopt.codegen.views import Layout
from infopt.compiler.target import Target
from infopt.compiler.types import Size
from infopt.runtime.plan import DeviceKernel

ALIGNMENT = 16  # bytes, at which all memory of a program begins


@dataclass(frozen=True)
class KernelText:
    """A kernel that a plan launches, to be compiled: the first launch that needs it stands for all.

    unaligned: indices of arguments whose address may be no multiple of 16.
    """

    launch: Launch
    unaligned: frozenset[int]
    name: str


class LaunchTexts:
    """The kernels of one plan."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.kernels: dict[tuple, KernelText] = {}
        self._numbers: dict[tuple, int] = {}
        self._described: int | None = None  # the buffer of tensor descriptors
        self._most: sympy.Expr = sympy.Integer(0)  # its bytes

    def add_pass(
        self,
        writer: PlanWriter,
        sizes: Sequence[Size],
        accesses: Sequence[Access],
        outputs: Sequence[int],
        vector: bool,
        heavy: bool,
        build: Callable[[Text], None],
    ) -> None:
        """A region as one launch."""
        loops = find_loops(sizes, accesses, outputs[0], heavy, writer.sizes)
        text = TritonRegion(loops, accesses, outputs)
        build(text)
        launch = text.launch(writer.sizes, self.target.cores)
        values = {f"p{i}": a.value for i, a in enumerate(text.pointers)}
        self.append(writer, [launch], values)

    def append(
        self,
        writer: PlanWriter,
        launches: Sequence[Launch],
        values: Mapping[str, Value | None],
    ) -> None:
        """Append launches whose pointers name `values`; scratch of one name is one buffer."""
        scratch: dict[str, Value] = {}
        for launch in launches:
            arguments: list[Value | Size | float] = []
            for argument in launch.arguments:
                if not isinstance(argument, Pointer):
                    arguments.append(argument)
                elif isinstance(argument.of, Scratch):
                    arguments.append(self._scratch(writer, argument.of, scratch))
                else:
                    arguments.append(_given(values, argument.of, launch))
            if launch.grid and any(g == 0 for g in launch.grid):
                continue
            if any(not _is_aligned(a) for a in arguments):
                launch = launch.by_pointers()
            if launch.descriptors:
                arguments.append(self._descriptors(writer, launch))
            grid = (*launch.grid, 1, 1)[:3]
            writer.launch(self._kernel(launch, arguments), arguments, grid)

    def _scratch(self, writer: PlanWriter, wanted: Scratch, known: dict[str, Value]) -> Value:
        if wanted.name not in known:
            buffer = writer.buffer("arena", wanted.bytes)
            known[wanted.name] = Value(buffer, Layout(0, (), (), torch.uint8))
        return known[wanted.name]

    def _descriptors(self, writer: PlanWriter, launch: Launch) -> Value:
        """Memory for a launch's descriptors; launches follow each other, so all use the same. It is
        torch's own, whose addresses are multiples of more than the arena's."""
        if self._described is None:
            self._described = writer.buffer("output", 0)
        self._most = sympy.Max(self._most, launch.descriptor_bytes)
        known = writer.buffers[self._described]
        bytes = writer.sizes.slot(int(self._most) if self._most.is_Integer else self._most)
        writer.buffers[self._described] = replace(known, bytes=bytes)
        return Value(self._described, Layout(0, (), (), torch.uint8))

    def _kernel(self, launch: Launch, arguments: Sequence[Value | Size | float]) -> int:
        """The number of the kernel in the plan."""
        unaligned = frozenset(i for i, a in enumerate(arguments) if not _is_aligned(a))
        divisible = tuple(d and i not in unaligned for i, d in enumerate(launch.divisible))
        constants = tuple(sorted((k, repr(v)) for k, v in launch.constants.items()))
        text = (launch.source, launch.entry, launch.signature, divisible, constants)
        key = (*text, launch.warps, launch.stages, launch.exact)
        if key not in self._numbers:
            self._numbers[key] = len(self._numbers)
            digest = hashlib.sha256(repr(key).encode()).hexdigest()[:12]
            self.kernels[key] = KernelText(launch, unaligned, f"{launch.entry}_{digest}")
        return self._numbers[key]

    def described(self) -> tuple[DeviceKernel, ...]:
        """The plan's kernels before they are compiled: their code says the rest."""
        return tuple(
            DeviceKernel(
                library=text.name,
                entry=text.launch.entry,
                arguments=argument_kinds(text.launch),
                threads=text.launch.warps * self.target.vector_bits // 32,
            )
            for text in self.kernels.values()
        )


def argument_kinds(launch: Launch) -> tuple[str, ...]:
    """What the machine code of a launch takes, as a plan says it."""
    kinds = ["pointer" if type.startswith("*") else type for type in launch.signature]
    return (*kinds, *["pointer"] * (launch.descriptors > 0))


def _is_aligned(argument: Value | Size | float) -> bool:
    """False for an address that may be no multiple of what kernels are compiled for."""
    if not isinstance(argument, Value):
        return True
    return is_multiple(argument.layout.offset * argument.layout.dtype.itemsize, ALIGNMENT)


def _given(values: Mapping[str, Value | None], name: str, launch: Launch) -> Value:
    value = values.get(name)
    if value is None:
        known = ", ".join(k for k, v in values.items() if v is not None)
        raise TypeError(f"{launch.entry}: expected a pointer to one of {known}; found {name!r}")
    return value
