"""Shapes, dtypes and attributes that torch accepts for a pattern, found by trying."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from infopt.compiler.certification.programs import FLOATS
from infopt.compiler.infer import Builder
from infopt.compiler.ops import Op, Parameter
from infopt.compiler.rewrite import Any_, Call, Var

_BASE, _OTHER = 6, 4  # two even sizes: what differs is told from what must be equal
# What parameters of these names mostly are, by what the op's name contains.
_RANKS = {
    "conv1d": {"input": 3, "weight": 3, "bias": 1},
    "conv2d": {"input": 4, "weight": 4, "bias": 1},
    "": {"weight": 2, "bias": 1, "indices": 1},
}
_TRIES = 160  # of ranks and attributes per alternative of a pattern
_KEPT = 3  # shapes kept per alternative
_COLOURINGS = 256
_INTEGERS = (torch.int64, torch.int32, torch.bool)


@dataclass
class PatternCall:
    """A pattern with its forms and attributes chosen: it can be run, and built as nodes."""

    call: Call
    variables: list[str]
    forms: dict[int, tuple[Op, tuple, tuple]]
    values: dict[int, Any]  # of the attributes left open

    def build(self, o: Builder, *inputs: Any, inner: list[Any] | None = None) -> Any:
        def apply(op: Op, args: tuple, attributes: tuple) -> Any:
            made = o.node(op, args, attributes)
            if inner is not None:
                inner.append(made)
            return made

        return self._value(self.call, dict(zip(self.variables, inputs, strict=True)), apply)

    def run(self, *inputs: torch.Tensor) -> torch.Tensor:
        def apply(op: Op, args: tuple, attributes: tuple) -> Any:
            positional, keyword = op.call_arguments(args, dict(attributes))
            return op.reference(*positional, **keyword)

        return self._value(self.call, dict(zip(self.variables, inputs, strict=True)), apply)

    def _value(self, part: Any, bound: dict[str, Any], apply: Callable[..., Any]) -> Any:
        if isinstance(part, Var):
            return bound[part.name]
        if isinstance(part, tuple):
            return tuple(self._value(p, bound, apply) for p in part)
        if not isinstance(part, Call):
            return part
        op, tensors, attributes = self.forms[id(part)]
        args = tuple(self._value(t, bound, apply) for t in tensors)
        chosen = tuple((n, self.values.get(id(v), v)) for n, v in attributes)
        return apply(op, args, chosen)


class PatternSearch:
    """Tries on real tensors, which cost microseconds, what fits a pattern."""

    def __init__(
        self, call: Call, attrs: Mapping[str, Sequence[Any]], mined: list[float], chance: Any
    ) -> None:
        self.call, self.attrs, self.mined, self.chance = call, attrs, mined, chance
        self.variables: dict[str, int] = {}  # name -> the rank its parameters' names suggest
        self.calls: list[Call] = []
        self._read(call, 0)

    def _read(self, part: Any, rank: int) -> None:
        if isinstance(part, Var):
            self.variables.setdefault(part.name, rank)
        elif isinstance(part, tuple):
            for item in part:
                self._read(item, rank)
        elif isinstance(part, Call) and part not in self.calls:
            self.calls.append(part)
            op, tensors, _ = part.forms[0]
            ranks = next(r for kind, r in _RANKS.items() if kind in op.name)
            names = [p.name for p in op.parameters if p.is_tensor]
            for name, tensor in zip(names, tensors):
                self._read(tensor, ranks.get(name, 0))

    def shapes(self) -> Iterator[tuple[PatternCall, tuple[tuple[str | int, ...], ...], tuple]]:
        """(operation, shapes, dtypes that are not the drawn one) that torch accepts."""
        kept: set[Any] = set()
        for attempt in range(_TRIES):
            made, ranks = self._attempt(attempt)
            found = [d for d in self._dtypes(attempt) if self._runs(made, ranks, {}, d)]
            if not found:
                continue
            shapes = self._classes(made, ranks, found[0])
            if (shapes, found[0]) in kept:
                continue
            kept.add((shapes, found[0]))
            yield made, shapes, found[0]
            if len(kept) == _KEPT:
                return

    def accepted(self, made: PatternCall, shapes: tuple, dtypes: tuple) -> tuple[torch.dtype, ...]:
        """The dtypes that the operation takes for the inputs whose dtype is drawn."""
        ranks = tuple(map(len, shapes))
        sizes = {
            (i, a): d for i, s in enumerate(shapes) for a, d in enumerate(s) if isinstance(d, int)
        }
        every = (*FLOATS, *_INTEGERS)
        taken = [d for d in every if self._runs(made, ranks, sizes, tuple(t or d for t in dtypes))]
        return tuple(taken) or FLOATS[:1]

    def _attempt(self, attempt: int) -> tuple[PatternCall, tuple[int, ...]]:
        forms, values = {}, {}
        for call in self.calls:
            fitting = [f for f in call.forms if not _needless(f)] or list(call.forms)
            form = fitting[0] if attempt % 2 == 0 else self.chance.choice(fitting)
            op, _, attributes = forms[id(call)] = form
            kinds = {p.name: p for p in op.parameters}
            for name, value in attributes:
                if isinstance(value, Any_):
                    values[id(value)] = self._attribute(value, kinds[name], attempt == 0)
        if attempt < 3:  # plain: every matrix like the others
            ranks = tuple(hint or (2, 3, 4)[attempt] for hint in self.variables.values())
        else:
            ranks = tuple(
                hint if hint and self.chance.random() < 0.8 else self.chance.choice((1, 2, 3, 4, 0))
                for hint in self.variables.values()
            )
        return PatternCall(self.call, list(self.variables), forms, values), ranks

    def _attribute(self, value: Any_, parameter: Parameter, plain: bool) -> Any:
        if value.name in self.attrs:
            return self.chance.choice(list(self.attrs[value.name]))
        kind, default = parameter.kind, parameter.default
        if plain and default is not inspect.Parameter.empty:
            return default
        if kind == "bool" or isinstance(default, bool):
            return self.chance.random() < 0.5
        if "List[int]" in kind or isinstance(default, list | tuple):
            choices: list[Any] = [(-1,), (0,), (1,), (2,), (0, 0), (1, 1), (2, 2), (_BASE,)]
        elif kind in ("float", "number", "Optional[float]") or isinstance(default, float):
            choices = [0.5, 2.0, 1.0, 3.0, -0.25, *self.mined]
        elif "int" in kind or isinstance(default, int):
            choices = [-1, 0, 1, 2, 3]
        else:
            choices = [default]
        if default is not inspect.Parameter.empty:
            choices.append(default)
        return self.chance.choice(choices)

    def _dtypes(self, attempt: int) -> Iterator[tuple]:
        """All inputs of one dtype; else one of them an index or a mask."""
        count = len(self.variables)
        yield (None,) * count
        if attempt < 40:
            for index, dtype in itertools.product(range(count), (torch.int64, torch.bool)):
                yield tuple(dtype if i == index else None for i in range(count))

    def _runs(
        self, made: PatternCall, ranks: tuple, sizes: Mapping[tuple, int], dtypes: tuple
    ) -> bool:
        inputs = []
        for index, (rank, dtype) in enumerate(zip(ranks, dtypes, strict=True)):
            shape = [sizes.get((index, axis), _BASE) for axis in range(rank)]
            inputs.append(torch.zeros(shape, dtype=dtype or torch.float32))
        try:
            with torch.no_grad():
                return isinstance(made.run(*inputs), torch.Tensor)
        except Exception:  # whatever a reference raises, these are not its shapes
            return False

    def _classes(self, made: PatternCall, ranks: tuple, dtypes: tuple) -> tuple:
        """The shapes with a name for every set of axes that must be equal.

        Axes are given one of two sizes in all ways (or many); those that agree in every way that
        runs belong together, and those that never change are fixed.
        """
        axes = [(i, a) for i, rank in enumerate(ranks) for a in range(rank)]
        if 2 ** len(axes) <= _COLOURINGS:
            ways: Any = itertools.product((_BASE, _OTHER), repeat=len(axes))
        else:
            ways = (
                tuple(self.chance.choice((_BASE, _OTHER)) for _ in axes)
                for _ in range(2 * _COLOURINGS)
            )
        taken = [w for w in ways if self._runs(made, ranks, dict(zip(axes, w)), dtypes)]
        taken.append((_BASE,) * len(axes))
        names: dict[tuple, str | int] = {}
        for index, _ in enumerate(axes):
            pattern = tuple(w[index] for w in taken)
            fixed = len(set(pattern)) == 1
            names.setdefault(pattern, _BASE if fixed else "abcdefghijklmnop"[len(names) % 16])
        held = iter(names[tuple(w[i] for w in taken)] for i in range(len(axes)))
        return tuple(tuple(next(held) for _ in range(rank)) for rank in ranks)


def _needless(form: tuple[Op, tuple, tuple]) -> bool:
    """Overloads for other callers than programs: complex scalars, names of dims."""
    return any("Dimname" in p.kind or "complex" in p.kind for p in form[0].parameters)
