"""Programs that a rule's pattern fits, alone and in other surroundings."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from infopt.compiler.certification.mined_numbers import numbers_in
from infopt.compiler.certification.pattern_shapes import PatternCall, PatternSearch
from infopt.compiler.certification.programs import Program
from infopt.compiler.infer import Builder
from infopt.compiler.rewrite import Rule, compiled_patterns


def programs_of(rule: Rule, attrs: Mapping[str, Sequence[Any]], seed: int) -> list[Program]:
    """Programs for every alternative of a rule's pattern, alone and in other surroundings."""
    mined = [n for n in numbers_in(type(rule)) if isinstance(n, float)]
    found: list[Program] = []
    for number, (call, _) in enumerate(compiled_patterns(type(rule), rule)):
        search = PatternSearch(call, attrs, mined, random.Random(1000 * seed + number))
        label = f"alternative {number}" if number else "pattern"
        for shape, (made, shapes, dtypes) in enumerate(search.shapes()):
            name = f"{label} {shape}"
            drawn = search.accepted(made, shapes, dtypes)
            found.append(Program(made.build, shapes, dtypes, drawn, name))
            if shape == 0:
                found += _surroundings(made, found[-1])
    return found


def _surroundings(made: PatternCall, plain: Program) -> Iterator[Program]:
    """The same operation where it is not alone."""

    def with_inner_results(o: Builder, *inputs: Any) -> tuple:
        inner: list[Any] = []
        root = made.build(o, *inputs, inner=inner)
        return (root, *(n for n in inner if n is not root))

    def read_on(o: Builder, *inputs: Any) -> tuple:
        inner: list[Any] = []
        root = made.build(o, *inputs, inner=inner)
        return tuple(_read(o, n) for n in dict.fromkeys((root, *inner)))

    def twice(o: Builder, *inputs: Any) -> Any:
        root = made.build(o, *inputs)
        changed = [_read(o, inputs[0]), *inputs[1:]]
        return root, made.build(o, *changed)

    yield Program(with_inner_results, *_rest(plain, "inner values are results"))
    yield Program(read_on, *_rest(plain, "inner values are read"))
    yield Program(twice, *_rest(plain, "twice"))
    if len(set(plain.shapes)) < len(plain.shapes):
        yield Program(_coinciding(made, plain), *_rest(plain, "the same value twice"))


def _rest(plain: Program, name: str) -> tuple:
    return plain.shapes, plain.dtypes, plain.drawn, f"{plain.name}, {name}"


def _read(o: Builder, node: Any) -> Any:
    return o.bitwise_not(node) if not node.tensor_type.is_float else o.neg(node)


def _coinciding(made: PatternCall, plain: Program) -> Callable[..., Any]:
    def build(o: Builder, *inputs: Any) -> Any:
        first: dict[Any, Any] = {}
        held = [first.setdefault((s, n.dtype), n) for s, n in zip(plain.shapes, inputs)]
        return made.build(o, *held)

    return build
