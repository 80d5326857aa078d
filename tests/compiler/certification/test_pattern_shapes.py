"""Shapes found for patterns: what torch accepts, each a few times, with the attributes allowed."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch

import infopt
from infopt.compiler.certification.pattern_shapes import PatternSearch, _needless
from infopt.compiler.ops import Op, Parameter
from infopt.compiler.rewrite import compiled_patterns


def found(pattern: Any, attrs: Mapping[str, Sequence[Any]] | None = None) -> list[tuple]:
    """(operation, shapes, dtypes) of the only alternative of a pattern."""
    cls = type("Searched", (infopt.Rule,), {"name": "searched", "pattern": pattern})
    ((call, _),) = compiled_patterns(cls, cls())
    search = PatternSearch(call, attrs or {}, [], random.Random(3))
    return [(made, shapes, search.accepted(made, shapes, d)) for made, shapes, d in search.shapes()]


def test_equal_sizes_have_one_name() -> None:
    shapes = [s for _, s, _ in found(lambda self, o, x, w: o.linear(x, w))]
    assert 1 <= len(shapes) <= 3 and len(set(shapes)) == len(shapes)
    for x, w in shapes:
        assert x[-1] == w[-1] and isinstance(x[-1], str)
        assert w[0] not in x  # the width of the result is free
    assert len({len(x) for x, _ in shapes}) > 1


def test_no_more_than_three_are_kept() -> None:
    shapes = [s for _, s, _ in found(lambda self, o, x: o.relu(x))]
    assert len(shapes) == 3 == len({len(x) for (x,) in shapes})


def test_dtypes_that_torch_takes() -> None:
    dtypes = {d for _, _, taken in found(lambda self, o, x: o.relu(x)) for d in taken}
    assert {torch.float32, torch.bfloat16, torch.int64} <= dtypes and torch.bool not in dtypes
    ((made, _, _), *_) = found(lambda self, o, x: o.bitwise_not(x))
    assert made.run(torch.ones(2, dtype=torch.int64)).tolist() == [-2, -2]


def test_attributes_are_those_allowed() -> None:
    def pattern(self: Any, o: Any, x: Any) -> Any:
        return o.gelu(x, approximate=o.any("how"))

    value = torch.randn(5)
    for made, _, _ in found(pattern, {"how": ("tanh",)}):
        assert torch.equal(made.run(value), torch.nn.functional.gelu(value, approximate="tanh"))
    assert found(pattern, {"how": ("no such form",)}) == []


def test_lists_of_tensors() -> None:
    made, shapes, _ = found(lambda self, o, x, y: o.cat([x, y], 0))[0]
    a, b = torch.ones(2, 3), torch.zeros(1, 3)
    assert torch.equal(made.run(a, b), torch.cat([a, b]))
    assert shapes[0][1:] == shapes[1][1:]


def test_overloads_that_programs_do_not_call_are_not_tried() -> None:
    def form(kind: str) -> tuple:
        return Op("f", torch.sum, (Parameter("x", True), Parameter("a", False, kind=kind))), (), ()

    kinds = ("int[]?", "Dimname[1]", "Scalar", "complex", "")
    assert [kind for kind in kinds if _needless(form(kind))] == ["Dimname[1]", "complex"]
