"""Programs that cannot be a step of one hop, and what they are told; forms that can."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from infopt.compiler.errors import CannotStream
from infopt.compiler.graph import Graph, Node
from infopt.compiler.infer import Builder, builder_for
from infopt.compiler.interpret import interpret
from infopt.compiler.types import TensorType
from infopt.passes.streaming import stream
from infopt.passes.streaming_rules import rule_for
from tests.passes.test_streaming import WIDTH, check, graph_of, step_of, weight

Program = Callable[[Any, Node, Callable], Node]


def heads(o: Builder, x: Node, axis: int = 2) -> Node:
    """[1, heads, time, width], or with time elsewhere."""
    length = x.shape[2]
    made = o.reshape(o.permute(x, (0, 2, 1)), (1, length, 2, 2))
    return o.permute(made, {2: (0, 2, 1, 3), 1: (0, 1, 2, 3)}[axis])


def attend(o: Builder, x: Node, **options: Any) -> Node:
    q = heads(o, x, options.pop("axis", 2))
    return o.scaled_dot_product_attention(q, q, q, **options)


REFUSED: dict[str, tuple[Program, str]] = {
    "no signal": (lambda o, x, c: c(torch.ones(3)), "the result does not depend on the signal"),
    "a constant of the signal's length": (
        lambda o, x, c: o.add(x, c(torch.ones(x.shape[2], dtype=torch.float64))),
        "a constant that is as long as the signal",
    ),
    "a constant of the signal's length in its values": (
        lambda o, x, c: o.mul(x, o.neg(c(torch.full((1,), float(x.shape[2]))))),
        "a constant that depends on the signal's length",
    ),
    "numbers of the signal's length": (
        lambda o, x, c: o.mul(x, o.call("aten.full.default", [1], x.shape[2])),
        "its attributes depend on the signal's length",
    ),
    "attention to all": (lambda o, x, c: attend(o, x), "every position attends to all of time"),
    "attention with dropout": (
        lambda o, x, c: attend(o, x, is_causal=True, dropout_p=0.5),
        "causal attention with a further mask, or with dropout",
    ),
    "attention over another axis": (
        lambda o, x, c: attend(o, x, is_causal=True, axis=1),
        "its time is not the axis before the last",
    ),
    "attention without heads": (
        lambda o, x, c: o.scaled_dot_product_attention(
            *[o.permute(x, (0, 2, 1))] * 3, is_causal=True
        ),
        r"expected queries, keys and values \[batch, heads, time, width\]",
    ),
    "attention to constants": (
        lambda o, x, c: o.scaled_dot_product_attention(
            heads(o, x), c(weight(1, 2, 9, 2)), c(weight(1, 2, 9, 2)), is_causal=True
        ),
        r"expected queries, keys and values \[batch, heads, time, width\]",
    ),
    "numbers that are not whole": (
        lambda o, x, c: o.add(x, o.to(o.arange(0.5, x.shape[2] + 0.5), torch.float64)),
        "numbers that are not whole",
    ),
    "numbers that end at 0": (
        lambda o, x, c: o.add(x, o.to(o.arange(-x.shape[2], 0), torch.float64)),
        "numbers that begin elsewhere in a longer signal",
    ),
    "every second row of a table": (
        lambda o, x, c: o.add(
            o.permute(x, (0, 2, 1)), o.slice(c(weight(200, WIDTH)), 0, 0, 2 * x.shape[2], 2)
        ),
        "rows that are counted from the table's end, or not one after another",
    ),
    "the last rows of a table": (
        lambda o, x, c: o.add(
            o.permute(x, (0, 2, 1)),
            o.slice(c(weight(200, WIDTH)), 0, 200 - x.shape[2], 200),
        ),
        "rows that are counted from the table's end, or not one after another",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    program, reason = REFUSED[name]
    with pytest.raises(CannotStream, match=reason):
        step_of(program, 4, 24, most=50)


def test_another_program_for_a_longer_signal() -> None:
    for longer in (lambda o, x, c: o.neg(o.neg(x)), lambda o, x, c: o.abs(x)):
        with pytest.raises(CannotStream, match="the program is another one for a signal that is"):
            stream(graph_of(lambda o, x, c: o.neg(x), 24), graph_of(longer, 28), rule_for)


def test_an_input_beside_the_signal() -> None:
    def two(length: int) -> Graph:
        o = builder_for(())
        x, y = (
            o.input(n, TensorType.dense(shape, torch.float64))
            for n, shape in (("x", (1, 4, length)), ("y", (4, 1)))
        )
        return Graph((x, y), (o.add(x, y),), {})

    with pytest.raises(CannotStream, match="an input without the time axis"):
        stream(two(24), two(28), rule_for)


@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize("step", [1, 2])
def test_counted_places(start: int, step: int) -> None:
    def program(o: Builder, x: Node, const: Any) -> Node:
        numbers = o.arange(start, start + step * x.shape[2], step)
        return o.mul(x, o.sin(o.to(numbers, torch.float64)))

    check(program, 4)


@pytest.mark.parametrize("rank", [1, 2])
def test_same_padding(rank: int) -> None:
    """Over time on both sides; beside time as it is, where it is the same on both."""

    def program(o: Builder, x: Node, const: Any) -> Node:
        if rank == 1:
            return o.call("aten.conv1d.padding", x, const(weight(4, 4, 5)), None, padding="same")
        return o.call("aten.conv2d.padding", x, const(weight(2, 4, 5, 3)), None, padding="same")

    if rank == 1:
        assert check(program, 4).output.delay == 2
        return
    graphs = [graph_of(program, length, (5,)) for length in (24, 28)]
    step = stream(*graphs, rule_for)
    x = torch.randn(1, WIDTH, 24, 5, dtype=torch.float64)
    stores = [torch.full(s.node.shape, s.fill, dtype=s.node.dtype) for s in step.stores]
    found = torch.cat([step.run(part, stores) for part in x.split(4, 2)], 2)[:, :, 2:]
    (expected,) = interpret(graphs[0], [x])
    torch.testing.assert_close(found, expected[:, :, :22], rtol=1e-9, atol=1e-9)


def test_same_padding_that_is_unequal_beside_time() -> None:
    def program(o: Builder, x: Node, const: Any) -> Node:
        return o.call("aten.conv2d.padding", x, const(weight(2, 4, 3, 2)), None, padding="same")

    with pytest.raises(CannotStream, match="unequal padding of another axis than time"):
        stream(graph_of(program, 24, (5,)), graph_of(program, 28, (5,)), rule_for)


@pytest.mark.parametrize(("axis", "scale"), [(2, None), (2, 0.7)])
def test_attention_late_by_no_hop_and_by_some(axis: int, scale: float | None) -> None:
    """Without a layer in front there is no delay: all of a hop's places are keys at once."""

    def program(o: Builder, x: Node, const: Any) -> Node:
        return attend(o, x, is_causal=True, scale=scale)

    assert check(program, 4, hops=6, most=10).output.delay == 0
