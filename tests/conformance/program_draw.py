"""Draws a random program: from a seed, or from hypothesis, which then can shrink it.

Every statement is run in torch as it is drawn, on the inputs of every call, so a program is valid
by construction and its shapes are known. Sizes coincide on purpose.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F

from tests.conformance.program import Input, Program, Statement
from tests.conformance.program_forms import (
    ASSIGNMENTS,
    JOINS,
    PAIR_WRITES,
    PAIRS,
    POINTWISE,
    REDUCTIONS,
    VIEWS,
    WRITES,
    Form,
)

T = TypeVar("T")
Pick = Callable[[Sequence[Any]], Any]
"""Chooses one of a sequence."""

SIZES = (1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 64)
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
LAYOUTS = (
    "transposed",
    "reversed",
    "every second",
    "part of rows",
    "offset",
    "expanded",
    "channels last",
)
MOST_ELEMENTS = 6000
LARGEST = 1e4  # beyond it, rounding differences of sums leave every tolerance


def seeded(seed: int) -> Program:
    """The program of a seed."""
    generator = random.Random(seed)
    return draw(lambda options: options[int(generator.random() * len(options))])


def draw(pick: Pick) -> Program:
    """A program; all freedom is in `pick`."""
    return _Drawing(pick).program()


class _Drawing:
    def __init__(self, pick: Pick) -> None:
        self.pick = pick
        self.dynamic = pick((False, False, True))
        self.calls = 3 if self.dynamic else pick((1, 2))
        self.values = pick(("normal",) * 6 + ("special", "extreme", "whole", "small"))
        self.floats = (pick((torch.float32, torch.float32, *FLOATS)), pick(FLOATS))
        self.sizes = self._sizes()
        self.inputs: list[Input] = []
        self.statements: list[Statement] = []
        self.envs: list[dict[str, Any]] = [{"torch": torch, "F": F} for _ in range(self.calls)]
        self.rounded: set[int] = set()  # storages of the first call

    def chance(self, percent: int) -> bool:
        return bool(self.pick(range(100)) < percent)

    def _sizes(self) -> list[tuple[int, ...]]:
        """Three sizes, each with its value in every call."""
        found = []
        for _ in range(3):
            if found and self.chance(50):
                found.append(self.pick(found))
                continue
            zero = self.chance(4)
            first = 0 if zero else self.pick(SIZES)
            later = tuple(
                self.pick((*SIZES, 0)) if self.dynamic else first for _ in range(self.calls - 1)
            )
            found.append((first, *later))
        return found

    # ---- inputs ----------------------------------------------------------------------------------

    def dtype(self) -> torch.dtype:
        if self.chance(70):
            return self.floats[0]
        return self.pick((*self.floats, *INTEGERS, torch.bool))

    def shape(self) -> tuple[tuple[int, ...], ...]:
        dims: list[tuple[int, ...]] = []
        for _ in range(self.pick((0, 1, 2, 2, 3, 3, 3, 4))):
            dims.append(self.pick(self.sizes) if self.chance(85) else (2,) * self.calls)
        while True:
            shapes = tuple(tuple(d[c] for d in dims) for c in range(self.calls))
            if max(torch.Size(s).numel() for s in shapes) <= MOST_ELEMENTS:
                return shapes
            dims.pop()

    def input(
        self,
        shapes: tuple[tuple[int, ...], ...],
        dtype: torch.dtype,
        values: str | None = None,
        bounds: tuple[int, ...] = (),
    ) -> str:
        """A new argument of the program; its name."""
        layout = self.pick(LAYOUTS) if self.chance(40) and not bounds else "dense"
        seed = self.pick(range(100))
        name = f"x{len(self.inputs)}"
        return self.admit(Input(name, shapes, dtype, layout, values or self.values, seed, bounds))

    def admit(self, made: Input) -> str:
        from tests.conformance.program import make

        for call, env in enumerate(self.envs):
            env[made.name] = eval(made.code(call), {"make": make, "torch": torch, **env})
        self.inputs.append(made)
        return made.name

    def like(self, name: str, dims: Sequence[int] | None = None, **more: Any) -> str:
        """An input whose shape is that of a value, or of some of its dims."""
        shapes = tuple(self.shape_of(name, c) for c in range(self.calls))
        if dims is not None:
            shapes = tuple(tuple(s[d] for d in dims) for s in shapes)
        return self.input(shapes, **more)

    def shape_of(self, name: str, call: int = 0) -> tuple[int, ...]:
        return tuple(self.envs[call][name].shape)

    def overlapping(self) -> None:
        """An input that shares memory with another one."""
        base = self.pick([i.name for i in self.inputs])
        views = ("{0}", "{0}[1:]", "{0}.transpose(0, -1)", "{0}.reshape(-1)[:4]", "{0}[..., ::2]")
        code = self.pick(views).format(base)
        try:
            shapes = tuple(tuple(eval(code, env).shape) for env in self.envs)
        except (RuntimeError, IndexError):
            return
        dtype = self.envs[0][base].dtype
        self.admit(Input(f"x{len(self.inputs)}", shapes, dtype, view_of=code))

    # ---- statements ------------------------------------------------------------------------------

    def names(self) -> list[str]:
        return [i.name for i in self.inputs if not i.bounds] + [
            s.name for s in self.statements if s.name
        ]

    def some(self, on: str = "fib", rank: int = 0) -> str | None:
        fit = [n for n in self.names() if _letter(self.envs[0][n]) in on]
        fit = [n for n in fit if self.envs[0][n].dim() >= rank]
        if not fit:
            return None
        recent = fit[-3:]
        return self.pick(recent if self.chance(60) else fit)

    def fill(self, form: Form, first: str) -> str:
        """The form's text with its blanks filled for `first` as {0}."""
        rank = self.envs[0][first].dim()
        d = self.pick(range(max(rank, 1)))
        e = (d + self.pick(range(1, max(rank, 2)))) % max(rank, 1)
        blanks = {
            "<d>": lambda: d,
            "<e>": lambda: e,
            "<s>": lambda: self.pick((0.5, -1.25, 3.0, 0.1, 2)),
            "<k>": lambda: self.pick((1, 2, 3, 7)),
            "<i>": lambda: self.pick((torch.int64, torch.int32, torch.int16, torch.int8)),
            "<f>": lambda: self.pick(FLOATS),
        }
        code = form.code
        for blank, value in blanks.items():
            if blank in code:
                code = code.replace(blank, str(value()))
        return code

    def drawn(self, table: Sequence[Form]) -> str | None:
        """One statement from a table, or None where it does not fit."""
        form = self.pick(table)
        first = self.some(form.on, form.rank)
        if first is None:
            return None
        args = [first]
        if "{1}" in form.code:
            second = self.partner(first, form)
            if second is None:
                return None
            args.append(second)
        bound = table is not ASSIGNMENTS
        return self.emit(self.fill(form, first), *args, kind=form.kind, bound=bound)

    def partner(self, first: str, form: Form) -> str | None:
        """A value that goes with `first`: any other one that broadcasts, or a new input."""
        on = form.on if form.on != "f" or self.chance(90) else "fib"
        shape = self.shape_of(first)
        fit = [n for n in self.names() if _letter(self.envs[0][n]) in on]
        fit = [n for n in fit if _broadcast(shape, self.shape_of(n)) or table_of_joins(form)]
        if fit and self.chance(75):
            return self.pick(fit)
        rank = len(shape)
        dims = list(range(self.pick(range(rank + 1)), rank))
        dtype = self.envs[0][first].dtype if self.chance(60) else self.dtype()
        if on == "f" and not dtype.is_floating_point:
            dtype = self.floats[0]
        return self.like(first, dims, dtype=dtype)

    def emit(self, code: str, *args: str, kind: str = "free", bound: bool = True) -> str | None:
        """Append a statement if torch can run it in every call; the name of its value, "" for a
        statement without one, None where torch refuses it or its result does not serve.
        """
        inexact = any(self.is_rounded(a) for a in args)
        if (kind == "steep" and inexact) or (kind == "free" and self.values == "extreme"):
            return None
        name = f"v{len(self.statements)}" if bound else ""
        made = Statement(name, code, args, kind == "free")
        versions = [[env[a]._version for a in args] for env in self.envs]
        try:
            for env in self.envs:
                exec(compile(str(made), "<statement>", "exec"), env)
                target = env[name or args[0]]
                if not self.serves(target, kind):
                    raise ValueError("does not serve")
            ranks = {(env[name or args[0]].dim(), env[name or args[0]].dtype) for env in self.envs}
            if len(ranks) > 1:
                raise ValueError("another rank in another call")
        except (RuntimeError, IndexError, ValueError, TypeError, NotImplementedError):
            for env, before in zip(self.envs, versions, strict=True):
                env.pop(name, None)
                if [env[a]._version for a in args] != before:
                    self.replay()
                    break
            return None
        self.statements.append(made)
        env = self.envs[0]
        written = env[name] if bound else env[args[0]]
        if inexact or (kind == "free" and written.is_floating_point()):
            self.rounded.add(written.untyped_storage()._cdata)
        return name

    def is_rounded(self, name: str) -> bool:
        return self.envs[0][name].untyped_storage()._cdata in self.rounded

    def serves(self, value: Any, kind: str) -> bool:
        if not isinstance(value, torch.Tensor) or value.is_complex() or value.dim() > 5:
            return False
        if value.numel() > MOST_ELEMENTS:
            return False
        if not value.is_floating_point() or not value.numel() or self.values == "extreme":
            return True
        finite = value.isfinite()
        if self.values != "special" and not finite.all():
            return False
        return bool(value.double()[finite].abs().amax() < LARGEST) if finite.any() else True

    def replay(self) -> None:
        """Run everything again from fresh inputs, after a write that was taken back."""
        from tests.conformance.program import make

        rounded = {n for n in self.names() if self.is_rounded(n)}
        self.envs = [{"torch": torch, "F": F} for _ in range(self.calls)]
        for call, env in enumerate(self.envs):
            for given in self.inputs:
                env[given.name] = eval(given.code(call), {"make": make, **env})
            for statement in self.statements:
                exec(str(statement), env)
        self.rounded = {self.envs[0][n].untyped_storage()._cdata for n in rounded}

    # ---- the whole -------------------------------------------------------------------------------

    def program(self) -> Program:
        from tests.conformance.program_images import IMAGE_PARTS
        from tests.conformance.program_parts import PARTS

        for _ in range(self.pick((1, 1, 2, 2, 3))):
            self.input(self.shape(), self.dtype())
        if self.chance(8):
            self.overlapping()
        wanted = self.pick(range(2, 9))
        tables = [
            *[POINTWISE] * 5,
            *[PAIRS] * 4,
            *[REDUCTIONS] * 3,
            *[VIEWS] * 6,
            *[JOINS],
            *[WRITES, PAIR_WRITES, ASSIGNMENTS],
            *[None] * 5,
        ]
        for _ in range(4 * wanted):
            if len(self.statements) >= wanted:
                break
            table = self.pick(tables)
            if table is None:
                self.pick((*PARTS, *IMAGE_PARTS))(self)
            else:
                self.drawn(table)
        return self.finished()

    def finished(self) -> Program:
        names = [n for n in self.names() if not n.startswith("x")]
        used = {a for s in self.statements for a in s.args}
        outputs = [n for n in names if n not in used][-4:]  # so that nothing is computed in vain
        while self.chance(25):
            outputs.append(self.pick(self.names()))
        outputs = outputs or [self.inputs[0].name]
        viewed = {i.view_of.partition(".")[0].partition("[")[0] for i in self.inputs}
        read = used | set(outputs) | viewed
        inputs = [i for i in self.inputs if i.name in read] or self.inputs[:1]
        one = len(outputs) == 1 and self.chance(60)
        return Program(
            tuple(inputs),
            tuple(self.statements),
            tuple(outputs),
            self.calls,
            self.dynamic,
            "one" if one else self.pick(("tuple", "tuple", "tuple", "dict")),
            frozenset(n for n in [i.name for i in inputs] + names if self.is_rounded(n)),
        )


def _letter(value: torch.Tensor) -> str:
    if value.is_floating_point():
        return "f"
    return "b" if value.dtype == torch.bool else "i"


def _broadcast(a: Sequence[int], b: Sequence[int]) -> bool:
    return all(m == n or m == 1 or n == 1 for m, n in zip(reversed(a), reversed(b)))


def table_of_joins(form: Form) -> bool:
    """Whether a form joins values, whose shapes need not broadcast."""
    return form in JOINS
