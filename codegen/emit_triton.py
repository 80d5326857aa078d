"""Triton text of a region: the loops and accesses of region.py as tiles of one kernel.

A region of one loop is cut into blocks. With outer loops a program takes a tile of [rows, BLOCK]:
the coordinates of its rows are found by division once for each row, the innermost loop runs along
the tile. Sizes and strides are arguments, so that equal regions of any sizes are one kernel.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from infopt.codegen.expression import HALVES, Operand
from infopt.codegen.expression_triton import MEMORY_TYPES, TritonCode
from infopt.codegen.launch import Launch, Pointer
from infopt.codegen.region import Access, Loops, ceil_div
from infopt.codegen.sizes import Sizes, product
from infopt.compiler.types import Size

TILE = 1024  # elements of one program
LEAST = 128  # of one program where there are few in all
PER_WARP = 256  # elements of a tile that one warp takes

_HEADER = """\
import triton
import triton.language as tl
from triton.language.extra import libdevice
"""


class TritonRegion:
    """Writes one region; what `RegionText` is for C++."""

    def __init__(self, loops: Loops, accesses: Sequence[Access], outputs: Sequence[int]) -> None:
        self.loops, self.accesses = loops, accesses
        self._written = {id(accesses[i]) for i in outputs}
        self.pointers = [a for a in accesses if a.value is not None]
        self._place = {id(a): i for i, a in enumerate(self.pointers)}
        self.numbers: list[tuple[str, Size]] = []
        self._known: dict[Size, str] = {}
        self._inner = self._number("n", loops.inner)
        self._outer = [self._number(f"n{d}", s) for d, s in enumerate(loops.outer)]
        self._setup: list[str] = []
        self._bases = [self._base(i, a) for i, a in enumerate(accesses)]
        self.code = TritonCode(size_text=self._size_text)

    def _number(self, name: str, value: Size) -> str:
        self.numbers.append((name, value))
        return name

    def _size_text(self, value: Size) -> str:
        """A size in the body; a number of the graph is no part of the kernel's text."""
        if value not in self._known:
            self._known[value] = self._number(f"size{len(self._known)}", value)
        return self._known[value]

    def _base(self, index: int, access: Access) -> str:
        """Where an access begins in each row of the tile."""
        *outer, _ = self.loops.strides[index]
        moves = []
        for d, stride in enumerate(outer):
            if stride != 0:
                moves.append(f"j{d} * {self._number(f's{index}_{d}', stride)}")
        begin = f"p{self._place[id(access)]}" if access.value is not None else ""
        if access.value is None:
            begin = self._number(f"first{index}", access.offset)
        if not moves:
            return begin
        self._setup.append(f"b{index} = {' + '.join([begin, *moves])}")
        return f"b{index}"

    def _at(self, index: int) -> str:
        """The elements of an access that a tile reads or writes."""
        stride = self.loops.strides[index][-1]
        if stride == 0:
            return self._bases[index]
        step = "" if stride == 1 else f" * {self._stride(index, stride)}"
        return f"{self._bases[index]} + i{step}"

    def _stride(self, index: int, stride: Size) -> str:
        name = f"s{index}"
        if all(name != known for known, _ in self.numbers):
            self._number(name, stride)
        return name

    def _mask(self, index: int) -> str:
        inner = self.loops.strides[index][-1] != 0
        rows = bool(self.loops.outer) and any(s != 0 for s in self.loops.strides[index][:-1])
        return " & ".join(n for n, used in (("rows", rows), ("inside", inner)) if used)

    def read(self, index: int) -> Operand:
        """The value of an access, as an operand of the body."""
        access, stride = self.accesses[index], self.loops.strides[index][-1]
        moves = stride != 0
        if access.value is None:
            return self.code.define(f"({self._at(index)}).to(tl.int64)", torch.int64, moves)
        mask = self._mask(index)
        masked = f", mask={mask}, other=0" if mask else ""
        text = f"tl.load({self._at(index)}{masked})"
        if access.dtype in HALVES:
            text += ".to(tl.float32)"
        return self.code.define(text, access.dtype, moves)

    def write(self, index: int, operand: Operand) -> None:
        access = self.accesses[index]
        value, at = operand.text, self._at(index)
        if access.dtype in HALVES:
            value = f"{value}.to({MEMORY_TYPES[access.dtype]})"
        whole = "rows & inside" if self.loops.outer else "inside"
        everywhere = f"{at} + i * 0" if self.loops.strides[index][-1] == 0 else at
        if self.loops.outer and all(s == 0 for s in self.loops.strides[index][:-1]):
            everywhere += " + row * 0"
        self.code.body.append(f"tl.store({everywhere}, {value}, mask={whole})")

    def launch(self, sizes: Sizes, cores: int) -> Launch:
        """The region as a launch; its pointers are named p0, p1, ..."""
        names = [f"p{i}" for i in range(len(self.pointers))]
        numbers = [name for name, _ in self.numbers]
        constants = ["BLOCK", "ROWS"] if self.loops.outer else ["BLOCK"]
        lines = self._rows() if self.loops.outer else self._flat()
        lines += [*self._setup, *self.code.body]
        parameters = ", ".join([*names, *numbers, *(f"{c}: tl.constexpr" for c in constants)])
        body = "\n".join(f"    {line}" for line in lines)
        functions = "".join(f"\n{text}" for text in self.code.functions.values())
        digest = hashlib.sha256(f"{parameters}{body}{functions}".encode()).hexdigest()[:16]
        entry = f"region_{digest}"
        source = f"{_HEADER}{functions}\n\n@triton.jit\ndef {entry}({parameters}):\n{body}\n"
        block, rows = self._tile(sizes, cores)
        outer = product(self.loops.outer)
        if self.loops.outer:
            grid = product((ceil_div(outer, rows), ceil_div(self.loops.inner, block)))
        else:
            grid = ceil_div(self.loops.inner, block)
        arguments = [
            *(Pointer(n, a.dtype) for n, a in zip(names, self.pointers, strict=True)),
            *(value for _, value in self.numbers),
        ]
        chosen = {"BLOCK": block, "ROWS": rows} if self.loops.outer else {"BLOCK": block}
        warps = max(1, min(4, block * rows // PER_WARP))
        return Launch(source, entry, tuple(arguments), chosen, (grid,), warps, exact=True)

    def _tile(self, sizes: Sizes, cores: int) -> tuple[int, int]:
        """(elements along the innermost loop, rows) of one program."""
        inner = max(1, sizes.hint(self.loops.inner))
        outer = max(1, sizes.hint(product(self.loops.outer)))
        elements = TILE
        while elements > LEAST and inner * outer < elements * 2 * cores:
            elements //= 2
        if not self.loops.outer:
            return elements, 1
        block = min(elements, _power_of_two(inner))
        return block, max(1, min(elements // block, _power_of_two(outer)))

    def _flat(self) -> list[str]:
        return [
            "i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)",
            f"inside = i < {self._inner}",
        ]

    def _rows(self) -> list[str]:
        lines = [
            f"across = tl.cdiv({self._inner}, BLOCK)",
            "row = (tl.program_id(0) // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]",
            "i = (tl.program_id(0) % across).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[None, :]",
            f"rows = row < {' * '.join(f'{n}.to(tl.int64)' for n in self._outer)}",
            f"inside = i < {self._inner}",
            "rest = row",
        ]
        for d in range(len(self._outer) - 1, 0, -1):
            lines += [f"j{d} = rest % {self._outer[d]}", f"rest = rest // {self._outer[d]}"]
        return [*lines, "j0 = rest"]


def _power_of_two(value: int) -> int:
    """The least power of two that is not below."""
    return 1 << max(0, value - 1).bit_length()
