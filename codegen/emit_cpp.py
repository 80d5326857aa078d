"""C++ text of a region: one function over tasks, for every instruction-set level."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from infopt.codegen.expression import HALVES, MEMORY_TYPES, Code, Operand
from infopt.codegen.region import Access, Loops
from infopt.compiler.types import Size


class RegionText:
    """Writes one region.

    Its numbers are the inner size, task size, outer sizes, then strides as they are met.
    """

    def __init__(
        self, loops: Loops, accesses: Sequence[Access], outputs: Sequence[int], vector: bool
    ) -> None:
        self.loops, self.accesses, self.vector = loops, accesses, vector
        self._written = {id(accesses[i]) for i in outputs}
        per_task, self.tasks = loops.tasks()
        self.numbers: list[Size] = [loops.inner, per_task, *loops.outer]
        self._number_of: dict[object, int] = {}
        self.pointers = [a for a in accesses if a.value is not None]
        self._place = {id(a): i for i, a in enumerate(self.pointers)}
        self._setup: list[str] = []
        self._bases = [self._base(i, a) for i, a in enumerate(accesses)]
        self.code = Code(vector, self._size_text)

    def _number(self, value: Size) -> str:
        """How the text reads a number given at run time."""
        self.numbers.append(value)
        return f"n[{len(self.numbers) - 1}]"

    def _size_text(self, value: Size) -> str:
        if value not in self._number_of:
            self._number_of[value] = len(self.numbers)
            self.numbers.append(value)
        return f"n[{self._number_of[value]}]"

    def _memory_type(self, dtype: torch.dtype) -> str:
        return "uint8_t" if self.vector and dtype is torch.bool else MEMORY_TYPES[dtype]

    def _base(self, index: int, access: Access) -> str:
        """Where an access begins in the current row: a pointer, or a count."""
        *outer, _ = self.loops.strides[index]
        moves = [f"j{d} * {self._number(s)}" for d, s in enumerate(outer) if s != 0]
        if access.value is None:
            offset = self._number(access.offset)
            self._setup.append(f"const int64_t b{index} = {' + '.join([offset, *moves])};")
            return f"b{index}"
        place = self._place[id(access)]
        if not moves:
            return f"p{place}"
        kind = "" if self._is_output(access) else "const "
        target = f"{kind}{self._memory_type(access.dtype)} *__restrict b{index}"
        text = f"{target} = p{place} + {' + '.join(moves)};"
        self._setup.append(text)
        return f"b{index}"

    def _is_output(self, access: Access) -> bool:
        return id(access) in self._written

    def read(self, index: int) -> Operand:
        """The value of an access, as an operand of the body."""
        access, stride = self.accesses[index], self.loops.strides[index][-1]
        moves = stride != 0
        if access.value is None:
            step = (
                ""
                if stride == 0
                else " + i"
                if stride == 1
                else f" + i * {self._stride(index, stride)}"
            )
            return self.code.define(f"int64_t({self._bases[index]}{step})", torch.int64, moves)
        text = self._read_text(index, access, stride)
        return self.code.define(text, access.dtype, moves)

    def _read_text(self, index: int, access: Access, stride: Size) -> str:
        base = self._bases[index]
        if not self.vector:
            at = (
                ""
                if stride == 0
                else " + i"
                if stride == 1
                else f" + i * {self._stride(index, stride)}"
            )
            return f"pw::get({base}{at})"
        is_bool = access.dtype is torch.bool
        if stride == 0:
            return f"pw::splat_mask(*{base} != 0)" if is_bool else f"broadcast(pw::get({base}))"
        if stride == 1:
            return f"pw::{'mask16' if is_bool else 'load16'}({base} + i, lanes)"
        step = self._stride(index, stride)
        return (
            f"pw::{'gather_mask16' if is_bool else 'gather16'}({base} + i * {step}, {step}, lanes)"
        )

    def _stride(self, index: int, stride: Size) -> str:
        key = ("stride", index)
        if key not in self._number_of:
            self._number_of[key] = len(self.numbers)
            self.numbers.append(stride)
        return f"n[{self._number_of[key]}]"

    def write(self, index: int, operand: Operand) -> None:
        access, stride = self.accesses[index], self.loops.strides[index][-1]
        base, text = self._bases[index], operand.text
        if not self.vector:
            at = (
                ""
                if stride == 0
                else " + i"
                if stride == 1
                else f" + i * {self._stride(index, stride)}"
            )
            cast = "" if access.dtype in HALVES else f"({MEMORY_TYPES[access.dtype]})"
            self.code.body.append(f"pw::put({base}{at}, {cast}{text});")
            return
        is_bool = access.dtype is torch.bool
        if stride == 1 and not is_bool:
            self.code.body.append(f"pw::store16({base} + i, {text}, lanes);")
            return
        step = "1" if stride in (0, 1) else self._stride(index, stride)
        function = "scatter_mask16" if is_bool else "scatter16"
        self.code.body.append(f"pw::{function}({base} + i * {step}, {step}, {text}, lanes);")

    def function(self) -> tuple[str, str]:
        """(name, text); the name is a hash of the content."""
        declarations = []
        for i, access in enumerate(self.pointers):
            kind = self._memory_type(access.dtype)
            const = "" if self._is_output(access) else "const "
            declarations.append(
                f"{const}{kind} *__restrict p{i} = pointer<{const}{kind}>(call, {i});"
            )
        lines = ["const int64_t *n = call->numbers;", *declarations]
        lines += self._rows() if self.loops.outer else self._flat()
        body = "\n".join("  " + line for line in lines)
        name = "r_" + hashlib.sha256(body.encode()).hexdigest()[:24]
        signature = (
            f"INFOPT_EXPORT void {name}(const infopt_call *call, int64_t first, int64_t last)"
        )
        return name, f"{signature} {{\n{body}\n}}\n"

    def _flat(self) -> list[str]:
        begin = "const int64_t begin = first * n[1], end = least(last * n[1], n[0]);"
        return [begin, *self._setup, *self.code.head, *self._inner("begin", "end")]

    def _rows(self) -> list[str]:
        depth = len(self.loops.outer)
        sizes = [f"n[{2 + d}]" for d in range(depth)]
        lines = [f"const int64_t rows = {' * '.join(sizes)};"]
        lines.append("const int64_t begin = first * n[1], end = least(last * n[1], rows);")
        lines.append("int64_t rest = begin;")
        for d in range(depth - 1, -1, -1):
            lines.append(f"int64_t j{d} = rest % {sizes[d]}; rest /= {sizes[d]};")
        lines.append("for (int64_t row = begin; row < end; ++row) {")
        lines += ["  " + s for s in (*self._setup, *self.code.head, *self._inner("0", "n[0]"))]
        step = f"  ++j{depth - 1};"
        for d in range(depth - 1, 0, -1):
            step += f" if (j{d} == {sizes[d]}) {{ j{d} = 0; ++j{d - 1}; }}"
        return [*lines, step, "}"]

    def _inner(self, begin: str, end: str) -> list[str]:
        body = self.code.body
        if not self.vector:
            return [f"for (int64_t i = {begin}; i < {end}; ++i) {{", *("  " + s for s in body), "}"]
        return [
            "const auto run = [&](int64_t i, auto lanes) __attribute__((always_inline)) {",
            *("  " + s for s in body),
            "};",
            f"int64_t i = {begin};",
            f"for (; i + 16 <= {end}; i += 16) run(i, pw::Full());",
            f"if (i < {end}) run(i, pw::Tail{{{end} - i}});",
        ]
