"""Programs to certify a pass with, and the cases drawn for each: sizes, dtypes, strides, values."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch

from infopt.compiler.certification.property_test import LAYOUTS, VALUES, tensor
from infopt.compiler.errors import CannotInfer
from infopt.compiler.graph import Graph, Node, Stage
from infopt.compiler.infer import builder_for
from infopt.compiler.types import Dim, TensorType

FLOATS = (torch.float32, torch.bfloat16, torch.float64, torch.float16)
_COINCIDING = (1, 2, 3, 4)
_DISTINCT = (2, 3, 5, 4, 7, 6)
_SPECIAL = (float("inf"), -float("inf"), float("nan"), -0.0, 1e-40)


@dataclass(frozen=True)
class Program:
    """A family of graphs.

    build   build(o, *inputs) gives the result, or a tuple of results
    shapes  of the inputs: equal names are equal sizes, numbers stay
    dtypes  of the inputs; None, or no entry: one of `drawn` for all such inputs
    example sizes to begin with; empty: those of cases_of
    consts  tensors of the constants that `build` reads with o.const
    """

    build: Callable[..., Any]
    shapes: tuple[tuple[str | int, ...], ...]
    dtypes: tuple[torch.dtype | None, ...] = ()
    drawn: tuple[torch.dtype, ...] = FLOATS
    name: str = ""
    example: Mapping[str, int] = field(default_factory=dict)
    consts: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def like(
        cls,
        build: Callable[..., Any],
        inputs: Sequence[torch.Tensor],
        drawn: tuple[torch.dtype, ...] = FLOATS,
        name: str = "",
        consts: Mapping[str, torch.Tensor] | None = None,
    ) -> Program:
        """The family of an example: equal sizes stay equal, and vary where `build` allows it."""
        sizes = {f"n{s}": s for t in inputs for s in t.shape if s > 1}
        dtypes = tuple(None if t.is_floating_point() else t.dtype for t in inputs)
        varies: dict[str, int] = {}

        def family(names: Mapping[str, int]) -> Program:
            shapes = tuple(
                tuple(f"n{s}" if f"n{s}" in names else s for s in t.shape) for t in inputs
            )
            return cls(build, shapes, dtypes, drawn, name, dict(names), dict(consts or {}))

        first = next((t.dtype for t in inputs if t.is_floating_point()), drawn[0])
        for size_name, size in sizes.items():
            tried = family({**varies, size_name: size})
            if any(tried._exists({**varies, size_name: s}, first) for s in (size + 1, 2 * size)):
                varies[size_name] = size
        return family(varies)

    def _exists(self, sizes: Mapping[str, int], dtype: torch.dtype) -> bool:
        try:
            case = Case(sizes, dtype, ("dense",) * len(self.shapes), "normal", 0)
            graph_for(self, case, Stage.NORMALIZE)
        except CannotInfer:
            return False
        return True

    @property
    def names(self) -> list[str]:
        """The names of its sizes, in order of appearance."""
        return list(dict.fromkeys(d for s in self.shapes for d in s if isinstance(d, str)))

    def dtype_of(self, index: int, drawn: torch.dtype) -> torch.dtype:
        given = self.dtypes[index] if index < len(self.dtypes) else None
        return given or drawn


@dataclass(frozen=True)
class Case:
    """One graph of a program with its inputs. dynamic: the names of the sizes that stay open."""

    sizes: Mapping[str, int]
    dtype: torch.dtype
    layouts: tuple[str, ...]
    values: str
    seed: int
    dynamic: tuple[str, ...] = ()


def cases_of(
    program: Program, draws: int, seed: int, sizes: Sequence[int] = (), special: bool = False
) -> Iterator[Case]:
    """The fixed cases (each dtype; sizes of the example, all different, all equal, all 1; open
    sizes; with `special` infinities and NaN), then `draws` random ones.

    sizes: further ones to draw, such as those a pass compares with."""
    names = program.names
    chance = random.Random(zlib.crc32(f"{seed} {program.name}".encode()))
    dense = ("dense",) * len(program.shapes)
    distinct = {n: _DISTINCT[i % len(_DISTINCT)] for i, n in enumerate(names)}
    first = program.drawn[0]
    for number, dtype in enumerate(program.drawn):
        yield Case(program.example or distinct, dtype, dense, "normal", seed + number)
    if program.example:
        yield Case(distinct, first, dense, "normal", seed + 7)
    for size in (3, 1):
        yield Case(dict.fromkeys(names, size), first, dense, "normal", seed + size)
    for size in sizes:
        yield Case(dict.fromkeys(names, size), first, dense, "normal", seed + size)
    if names:
        yield Case(program.example or distinct, first, dense, "normal", seed + 5, tuple(names))
    if special:
        wide = {n: 8 + s for n, s in distinct.items()}
        yield Case(wide, first, dense, "special", seed + 6)
    for number in range(draws):
        yield Case(
            {n: chance.choice((*_COINCIDING, *_DISTINCT, *sizes)) for n in names},
            chance.choice(program.drawn),
            tuple(chance.choice(LAYOUTS) for _ in program.shapes),
            chance.choice((*VALUES, "special") if special else VALUES),
            seed + 100 + number,
            tuple(n for n in names if chance.random() < 0.5) if number % 4 == 3 else (),
        )


def graph_for(program: Program, case: Case, stage: Stage) -> Graph:
    """The graph of a case. Raises CannotInfer where there is none of these sizes and dtypes."""
    symbols = {n: sympy.Symbol(n, integer=True, positive=True) for n in case.dynamic}
    dims = tuple(Dim(s, 2, None, max(case.sizes[n], 2)) for n, s in symbols.items())
    builder = builder_for(dims)
    nodes = []
    for index, given in enumerate(inputs_for(program, case)):
        held = TensorType.of(given)
        if dims:
            shape = [symbols.get(d, d) if isinstance(d, str) else d for d in program.shapes[index]]
            sizes = [case.sizes[d] if isinstance(d, str) else d for d in shape]
            held = TensorType.dense(sizes, held.dtype)
        nodes.append(builder.input(f"x{index}", held))
    made = program.build(builder, *nodes)
    outputs: tuple[Node, ...] = made if isinstance(made, tuple) else (made,)
    return Graph(tuple(nodes), outputs, program.consts, dims, stage=stage)


def inputs_for(program: Program, case: Case) -> list[torch.Tensor]:
    """The inputs of a case: the same ones every time."""
    made = []
    for index, shape in enumerate(program.shapes):
        held = [d if isinstance(d, int) else case.sizes[d] for d in shape]
        dtype = program.dtype_of(index, case.dtype)
        layout = "dense" if case.dynamic else case.layouts[index]
        values = "normal" if case.values == "special" else case.values
        value = tensor(held, dtype, layout, values, case.seed + index)
        if case.values == "special" and dtype.is_floating_point and value.numel():
            value = _with_specials(value, case.seed + index)
        made.append(value.abs() if not dtype.is_floating_point and dtype != torch.bool else value)
    return made


def _with_specials(value: torch.Tensor, seed: int) -> torch.Tensor:
    """Every fifth element or so is infinite, NaN, a negative zero or denormal."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(0, 5 * len(_SPECIAL), value.shape, generator=generator)
    held = torch.tensor(_SPECIAL)[chosen % len(_SPECIAL)].to(value.dtype)
    return torch.where(chosen < len(_SPECIAL), held, value)
