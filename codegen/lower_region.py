"""A group of pointwise nodes as one native step: its accesses, its loops, its text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import torch

from infopt.codegen import fills, pointwise, views
from infopt.codegen.emit_cpp import RegionText
from infopt.codegen.emit_triton import TritonRegion
from infopt.codegen.expression import C_TYPES, Code, Operand
from infopt.codegen.grouping import MADE, VIEW, Grouping, Labels, Unit, operands
from infopt.codegen.plan_writer import GENERATED, PlanWriter, Value
from infopt.codegen.precompiled_header import HEADER
from infopt.codegen.region import Access, find_loops
from infopt.codegen.views import Layout
from infopt.compiler.graph import Node
from infopt.compiler.types import Size

VECTOR_TYPES = {torch.float32, torch.bfloat16, torch.float16, torch.bool}


Text = RegionText | TritonRegion


class Values(Protocol):
    """What a region needs of the lowering around it."""

    writer: PlanWriter
    grouping: Grouping

    def value(self, node: Node) -> Value: ...
    def define(self, node: Node) -> Value: ...


class Regions(Protocol):
    """Makes steps of regions: C++ functions (`Texts`) or GPU kernels (launches.py)."""

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
        """Append the step of one region to the plan; `build` writes its body."""
        ...


class Texts:
    """The functions generated for one graph; structurally equal regions share one.

    They go into as few libraries as compile in about the time of one.
    """

    FUNCTIONS = 32  # of one library

    def __init__(self) -> None:
        self._functions: dict[str, tuple[str, str]] = {}  # name -> library, text
        self._includes: set[str] = set()

    def add(self, name: str, text: str, includes: tuple[str, ...] = ()) -> str:
        """Add a function; returns the library it is in."""
        if name not in self._functions:
            number = len(self._functions) // self.FUNCTIONS
            self._functions[name] = (f"{GENERATED}{number or ''}", text)
            self._includes.update(includes)
        return self._functions[name][0]

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
        loops = find_loops(sizes, accesses, outputs[0], heavy, writer.sizes)
        text = RegionText(loops, accesses, outputs, vector)
        build(text)
        name, function = text.function()
        library = self.add(name, function)
        pointers = [a.value for a in text.pointers]
        writer.native(name, library, pointers, text.numbers, text.tasks)

    def files(self) -> dict[str, str]:
        """The C++ file of each library."""
        lines = [f'#include "{name}"' for name in (HEADER, *sorted(self._includes))]
        head = "\n".join([*lines, "using namespace infopt;\n"])
        files: dict[str, str] = {}
        for library, text in self._functions.values():
            files[library] = files.get(library, head) + text
        return files


class _Pass:
    """One region while it is described."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.accesses: list[Access] = []
        self._seen: dict[Access, int] = {}

    def access(
        self, value: Value | None, layout: Layout, labels: Labels, shape: Sequence[Size]
    ) -> int:
        """The number of an access, from a layout that broadcasts to `shape` with these labels."""
        strides: list[Size] = [0] * self.rank
        new = len(shape) - len(layout.shape)
        for label, n, stride in zip(labels[new:], layout.shape, layout.strides, strict=True):
            if label is not None and n != 1:
                strides[label] = stride
        made = Access(value, layout.dtype, layout.offset, tuple(strides))
        found = self._seen.get(made)
        if found is None:
            found = self._seen[made] = len(self.accesses)
            self.accesses.append(made)
        return found


def lower_region(low: Values, texts: Regions, unit: Unit) -> None:
    """One native step for the nodes of a unit; values read elsewhere get memory."""
    region = _Pass(len(unit.sizes))
    sources: dict[tuple[Node, Node], Source] = {}
    for node in unit.nodes:
        for a in operands(node):
            sources[node, a] = _source(low, unit, region, node, a)
    outputs: list[tuple[int, Node]] = []
    for node in unit.nodes:
        if node in low.grouping.demanded:
            value = low.define(node)
            outputs.append(
                (region.access(value, value.layout, unit.labels[node], node.shape), node)
            )
    if not outputs:  # read for its shape only
        return
    dtypes = {n.dtype for n in unit.nodes} | {a.dtype for a in region.accesses}
    vector = not unit.scalar and dtypes <= VECTOR_TYPES and dtypes != {torch.bool}

    def build(text: Text) -> None:
        known: dict[Node, Operand] = {}
        for node in unit.nodes:
            args = [sources[node, a](text, known) for a in operands(node)]
            entry = pointwise.find(node)
            assert entry is not None
            known[node] = entry.emit(text.code, node, *args)
        for index, node in outputs:
            text.write(index, known[node])

    first = len(low.writer.steps)
    heavy = unit.vector or (unit.scalar and any(pointwise.is_heavy(n) for n in unit.nodes))
    texts.add_pass(
        low.writer,
        unit.sizes,
        region.accesses,
        [i for i, _ in outputs],
        vector,
        heavy,
        build,
    )
    if len(outputs) == 1:  # of several, one might be stored before what another one needs is read
        written = region.accesses[outputs[0][0]]
        for read in region.accesses:
            alike = (read.dtype, read.strides) == (written.dtype, written.strides)
            if read is not written and alike:
                others = [a.value for a in region.accesses if a not in (read, written)]
                low.writer.may_overwrite(read.value, written.value, first, others)


Source = Callable[[Text, "dict[Node, Operand]"], Operand]


def _source(low: Values, unit: Unit, region: _Pass, node: Node, a: Node) -> Source:
    """How the body gets operand `a` of a node: another node, a constant, a count, or memory."""
    grouping, base = low.grouping, low.grouping.base[a]
    if base in unit.labels:
        return lambda text, known: known[base]
    if grouping.kinds[base] == MADE:
        made = _made(low, region, unit.labels[node], node, a, base)
        if made is not None:
            return made
    value = low.value(a)
    index = region.access(value, value.layout, unit.labels[node], node.shape)
    return lambda text, known: text.read(index)


def _made(
    low: Values, region: _Pass, labels: Labels, node: Node, a: Node, base: Node
) -> Source | None:
    fill = fills.fill_value(base)
    if fill is not None:
        if a.dtype != base.dtype:
            return None
        return lambda text, known: made_constant(text.code, fill, base.dtype)
    layout = _virtual(low, a)
    if layout is None:
        return None
    index = region.access(None, layout, labels, node.shape)
    return lambda text, known: counted(text, index, base)


def made_constant(code: Code, value: object, dtype: torch.dtype) -> Operand:
    """One element of a fill, rounded to its dtype."""
    if dtype in (torch.bfloat16, torch.float16) and isinstance(value, int | float):
        value = float(torch.tensor(value, dtype=dtype))
    if not dtype.is_floating_point and isinstance(value, float):
        value = bool(value) if dtype is torch.bool else int(value)
    return code.constant(value, dtype)


def counted(text: Text, index: int, base: Node) -> Operand:
    """start + step * position, the position from an access without memory."""
    bounds = fills.count_from(base)
    assert bounds is not None
    code, i64 = text.code, torch.int64
    result = text.read(index)
    start, step = bounds
    if step != 1:
        result = code.call("mul", i64, result, code.constant(step, i64))
    if start != 0:
        result = code.call("add", i64, result, code.constant(start, i64))
    return code.cast(result, base.dtype)


def _virtual(low: Values, a: Node) -> Layout | None:
    """The layout of views of a count: positions instead of memory."""
    if low.grouping.kinds[a] == MADE:
        return Layout(0, a.shape, (1,), torch.int64)
    if low.grouping.kinds[a] != VIEW or a.dtype != a.args[0].dtype:  # type: ignore[union-attr]
        return None
    source = _virtual(low, a.args[0])  # type: ignore[arg-type]
    return None if source is None else views.view(a, source, low.writer.sizes)


def make(low: Values, texts: Regions, node: Node, target: Value) -> None:
    """Write a fill or count into memory."""
    value = fills.fill_value(node)
    if value is not None:
        fill(low, texts, value, target)
        return
    layout = target.layout
    region = _Pass(len(layout.shape))
    labels = tuple(range(len(layout.shape)))
    positions = Layout(0, layout.shape, (1,), torch.int64)
    count = region.access(None, positions, labels, layout.shape)
    output = region.access(target, layout, labels, layout.shape)

    def build(text: Text) -> None:
        text.write(output, counted(text, count, node))

    accesses = region.accesses
    texts.add_pass(low.writer, layout.shape, accesses, [output], False, False, build)


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def copy(low: Values, texts: Regions, source: Value, target: Value) -> bool:
    """Copy between two layouts of one shape, converting the dtype; False where that is no code."""
    before, after = source.layout.dtype, target.layout.dtype
    read_layout, write_layout = source.layout, target.layout
    if before == after:  # the bits as they are
        bits = _BITS.get(before.itemsize)
        if bits is None:
            return False
        before = after = bits
        read_layout = replace(read_layout, dtype=bits)
        write_layout = replace(write_layout, dtype=bits)
    elif before not in C_TYPES or after not in C_TYPES:
        return False
    shape = target.layout.shape
    region = _Pass(len(shape))
    labels = tuple(range(len(shape)))
    read = region.access(source, read_layout, labels, shape)
    written = region.access(target, write_layout, labels, shape)
    vector = {before, after} <= VECTOR_TYPES

    def build(text: Text) -> None:
        text.write(written, text.code.cast(text.read(read), after))

    accesses = region.accesses
    texts.add_pass(low.writer, shape, accesses, [written], vector, False, build)
    return True


def fill(low: Values, texts: Regions, value: object, target: Value) -> None:
    """Write one number everywhere."""
    layout = target.layout
    region = _Pass(len(layout.shape))
    labels = tuple(range(len(layout.shape)))
    output = region.access(target, layout, labels, layout.shape)

    def build(text: Text) -> None:
        text.write(output, made_constant(text.code, value, layout.dtype))

    vector = layout.dtype in VECTOR_TYPES and layout.dtype is not torch.bool
    accesses = region.accesses
    texts.add_pass(low.writer, layout.shape, accesses, [output], vector, False, build)
