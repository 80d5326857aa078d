"""Steps against whole signals, through the references: drawn stacks, and what is declined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from infopt.compiler.errors import CannotStream
from infopt.compiler.graph import Graph, Node
from infopt.compiler.infer import Builder, builder_for
from infopt.compiler.interpret import interpret
from infopt.compiler.types import TensorType
from infopt.compiler.verify import verify
from infopt.passes.streaming import Step, stream
from infopt.passes.streaming_rules import rule_for

WIDTH = 4
Program = Callable[[Any, Node, Callable[[Tensor], Node]], Node]


def graph_of(program: Program, length: int, beside: tuple[int, ...] = ()) -> Graph:
    """The graph of a program over x f64[1, WIDTH, length]; it makes constants with its third."""
    o, consts = builder_for(()), {}
    x = o.input("x", TensorType.dense((1, WIDTH, length, *beside), torch.float64))

    def const(value: Tensor) -> Node:
        name = f"c{len(consts)}"
        consts[name] = value
        return o.const(name, TensorType.of(value))

    return Graph((x,), (program(o, x, const),), consts)


def step_of(program: Program, hop: int, length: int, most: int | None = None) -> Step:
    step = stream(graph_of(program, length), graph_of(program, length + hop), rule_for, most)
    verify(step.graph)
    return step


def streamed(step: Step, x: Tensor, axis: int = -1) -> Tensor:
    """What the steps and the end give for the places 0, 1, ... of the result."""
    hop = step.graph.inputs[0].shape[axis]
    stores = [torch.full(s.node.shape, s.fill, dtype=s.node.dtype) for s in step.stores]
    parts = [step.run(part, stores) for part in x.split(hop, axis)]
    out, delay = step.output, step.output.delay
    length = len(parts) * out.hop + out.end
    whole = torch.cat([*parts, *step.finish(stores)], out.axis)
    return whole.narrow(out.axis, delay, length)


def check(program: Program, hop: int, hops: int = 12, most: int | None = None) -> Step:
    """The stream gives the result of the whole signal, also where the model was traced with another
    length."""
    step = step_of(program, hop, hop * hops, most)
    for length in (hops, hops + 3) if most is None else (hops,):
        x = torch.randn(1, WIDTH, hop * length, dtype=torch.float64)
        (expected,) = interpret(graph_of(program, x.shape[-1]), [x])
        torch.testing.assert_close(streamed(step, x), expected, rtol=1e-9, atol=1e-9)
    return step


def weight(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


# One layer each: (o, x, const) -> y, with biases, so that padding inside is not what zeros give


def conv(kernel: int, dilation: int, stride: int, before: int, after: int, groups: int) -> Program:
    def layer(o: Builder, x: Node, const: Any) -> Node:
        x = o.pad(x, (before, after))
        w, b = const(weight(WIDTH, WIDTH // groups, kernel)), const(weight(WIDTH))
        return o.conv1d(x, w, b, stride=(stride,), dilation=(dilation,), groups=groups)

    return layer


def padded_conv(kernel: int, dilation: int, stride: int) -> Program:
    def layer(o: Builder, x: Node, const: Any) -> Node:
        w, b = const(weight(WIDTH, WIDTH, kernel)), const(weight(WIDTH))
        padding = (dilation * (kernel // 2),)
        return o.conv1d(x, w, b, stride=(stride,), padding=padding, dilation=(dilation,))

    return layer


def residual(kernel: int, dilation: int, before: int, shift: int) -> Program:
    """x and a convolution of it, both cut to the same length; the cut of x begins anywhere."""

    def layer(o: Builder, x: Node, const: Any) -> Node:
        w, b = const(weight(WIDTH, WIDTH, kernel)), const(weight(WIDTH))
        y = o.conv1d(o.pad(x, (before, 0)), w, b, dilation=(dilation,))
        length = min(y.shape[2], x.shape[2] - shift)
        cut = o.slice(x, dim=2, start=shift, end=shift + length)
        return o.add(cut, o.sigmoid(o.slice(y, dim=2, start=0, end=length)))

    return layer


def transposed(kernel: int, dilation: int, stride: int, cropped: int) -> Program:
    def layer(o: Builder, x: Node, const: Any) -> Node:
        w, b = const(weight(WIDTH, WIDTH, kernel)), const(weight(WIDTH))
        cut = min(cropped, dilation * (kernel - 1))
        named = {"stride": (stride,), "padding": (cut,), "dilation": (dilation,)}
        return o.conv_transpose1d(x, w, b, **named)

    return layer


def pool(kind: str, kernel: int, stride: int, pad: int) -> Program:
    def layer(o: Builder, x: Node, const: Any) -> Node:
        named = {"kernel_size": (kernel,), "stride": (stride,), "padding": (min(pad, kernel // 2),)}
        return getattr(o, f"{kind}_pool1d")(x, **named)

    return layer


def repeated(scale: int) -> Program:
    return lambda o, x, const: o.call(
        "aten.upsample_nearest1d.vec", x, None, scale_factors=(float(scale),)
    )


def every(start: int, step: int) -> Program:
    return lambda o, x, const: o.slice(x, dim=2, start=start, step=step)


small, few = st.integers(1, 4), st.integers(1, 3)
stride = st.integers(1, 2)
LAYERS = st.one_of(
    st.builds(
        conv, small, few, stride, st.integers(0, 9), st.integers(0, 4), st.sampled_from((1, 4))
    ),
    st.builds(padded_conv, small, few, stride),
    st.builds(residual, small, few, st.integers(0, 9), st.integers(0, 3)),
    st.builds(transposed, small, few, few, st.integers(0, 4)),
    st.builds(pool, st.sampled_from(("avg", "max")), small, stride, st.integers(0, 2)),
    st.builds(repeated, few),
    st.builds(every, st.integers(0, 3), stride),
)


def stack(*layers: Program) -> Program:
    def program(o: Builder, x: Node, const: Any) -> Node:
        for layer in layers:
            x = layer(o, x, const)
        return x

    return program


STACKS = st.lists(LAYERS, min_size=1, max_size=5).map(lambda layers: stack(*layers))


@pytest.mark.slow
@settings(max_examples=15)
@given(program=STACKS, hop=st.sampled_from((32, 64, 96)))
@example(program=stack(padded_conv(4, 1, 2), transposed(4, 1, 2, 1), padded_conv(3, 1, 1)), hop=32)
def test_drawn_stacks_stream(program: Program, hop: int) -> None:
    check(program, hop, 4)


@pytest.mark.slow
@settings(max_examples=400)
@given(program=STACKS, hop=st.sampled_from((32, 64, 96)))
def test_many_drawn_stacks_stream(program: Program, hop: int) -> None:
    check(program, hop, 4)


@pytest.mark.parametrize("hop", [1, 2, 3, 7])
def test_any_hop_will_do_without_strides(hop: int) -> None:
    program = stack(residual(3, 1, 2, 0), residual(3, 2, 4, 0), padded_conv(3, 2, 1))
    assert check(program, hop, 20).output.delay == 2


def test_a_causal_stack_has_no_delay_and_counts_nothing() -> None:
    step = check(stack(residual(3, 1, 2, 0), residual(3, 2, 4, 0)), 5)
    assert step.output.delay == 0
    # the last (k - 1) dilation inputs of each convolution, and no counter
    assert [s.node.shape for s in step.stores] == [(1, WIDTH, 2), (1, WIDTH, 4)]


def test_zeros_inside_are_not_what_zeros_in_front_give() -> None:
    """The second of two padded convolutions sees zeros where the first one would give its bias."""
    step = check(stack(padded_conv(3, 1, 1), padded_conv(3, 1, 1)), 4)
    assert step.output.delay == 2
    assert any(n.op.name == "aten.where.ScalarOther" for n in step.graph.nodes())


def test_time_may_be_any_axis() -> None:
    def program(o: Builder, x: Node, const: Any) -> Node:  # [1, 4, T] -> [T, 2, 6]
        y = o.permute(o.reshape(x, (2, 2, x.shape[2])), (2, 0, 1))
        y = o.layer_norm(o.linear(y, const(weight(6, 2))), (6,))
        y = o.expand(o.reshape(o.softmax(y, dim=-1), (x.shape[2], 1, 2, 6)), (-1, 3, -1, -1))
        return o.sum(y, dim=(1,))

    assert check(program, 3).output.axis == 0


def test_two_dimensional_convolutions_slide_over_time_or_beside_it() -> None:
    def program(o: Builder, x: Node, const: Any) -> Node:  # [1, 4, T, 5]
        y = o.conv2d(x, const(weight(2, 4, 3, 3)), None, padding=(1, 1))
        y = o.max_pool2d(o.relu(y), (1, 3), stride=(1, 3), padding=(0, 1))
        return o.conv2d(y, const(weight(2, 2, 3, 2)), None, padding=(1, 0), stride=(2, 1))

    whole = graph_of(program, 24, (5,))
    step = stream(whole, graph_of(program, 28, (5,)), rule_for)
    x = torch.randn(1, WIDTH, 24, 5, dtype=torch.float64)
    found, (expected,) = streamed(step, x, 2), interpret(whole, [x])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


DECLINED: dict[str, tuple[Program, str]] = {
    "mean": (lambda o, x, c: o.add(x, o.mean(x, dim=(2,), keepdim=True)), "mixes all of time"),
    "softmax": (lambda o, x, c: o.softmax(x, dim=-1), "looks along time"),
    "group norm": (lambda o, x, c: o.group_norm(x, 2), "statistics are taken over all of time"),
    "batch statistics": (
        lambda o, x, c: o.call(
            "aten.batch_norm.default",
            *(x, None, None, None, None),
            **{"training": True, "momentum": 0.1, "eps": 1e-5, "cudnn_enabled": False},
        ),
        "statistics of the batch",
    ),
    "attention": (
        lambda o, x, c: o.scaled_dot_product_attention(*[o.permute(x, (0, 2, 1))] * 3),
        "every position attends to all of time",
    ),
    "reflection": (lambda o, x, c: o.pad(x, (2, 2), mode="reflect"), "shows the signal's ends"),
    "from the end": (lambda o, x, c: o.slice(x, dim=2, start=-20), "mixes all of time"),
    "flip": (lambda o, x, c: o.flip(x, (2,)), "begins at the signal's end"),
    "length": (lambda o, x, c: o.mul(x, x.shape[2]), "attributes depend on the signal's length"),
    "reshape": (lambda o, x, c: o.reshape(x, (1, -1)), "joins time with another axis"),
    "gram": (lambda o, x, c: o.matmul(x, o.permute(x, (0, 2, 1))), "mixes all of time"),
    "border": (
        lambda o, x, c: o.avg_pool1d(x, (3,), (1,), (1,), count_include_pad=False),
        "another divisor",
    ),
    "pairs of times": (
        lambda o, x, c: o.mul(o.reshape(x, (4, -1, 1)), o.reshape(x, (4, 1, -1))),
        "several of its axes grow",
    ),
    "unknown": (lambda o, x, c: o.roll(x, (1,), (2,)), "no rule says how this op streams"),
}


@pytest.mark.parametrize("name", DECLINED)
def test_what_mixes_time_is_declined(name: str) -> None:
    program, reason = DECLINED[name]
    with pytest.raises(CannotStream, match=reason) as refused:
        step_of(program, 4, 24)
    assert str(refused.value).startswith("%")  # the place in the printed graph


def attending(o: Builder, x: Node, const: Any) -> Node:
    """A convolution, learned and counted places, then causal attention."""
    length = x.shape[2]
    y = o.permute(padded_conv(3, 1, 1)(o, x, const), (0, 2, 1))
    table = o.slice(const(weight(200, WIDTH)), dim=0, start=1, end=length + 1)
    counted = o.sin(o.to(o.arange(2, length + 2), torch.float64))
    y = o.add(o.add(y, table), o.reshape(counted, (length, 1)))
    q = o.reshape(y, (1, length, 2, 2))
    heads = o.permute(q, (0, 2, 1, 3))
    seen = o.scaled_dot_product_attention(heads, o.neg(heads), heads, is_causal=True)
    return o.reshape(o.permute(seen, (0, 2, 1, 3)), (1, length, WIDTH))


@pytest.mark.parametrize(("hop", "delay"), [(1, 1), (2, 2), (5, 5)])
def test_causal_attention_keeps_keys_and_values(hop: int, delay: int) -> None:
    """Its delay is rounded up to whole hops, and what is before place 0 is no key."""
    step = check(attending, hop, hops=8, most=20)
    assert (step.output.delay, step.limit) == (delay, 20)


def test_attention_needs_to_know_its_room_and_tables_end() -> None:
    with pytest.raises(CannotStream, match="grows with the signal: compile_stream"):
        step_of(attending, 4, 24)
    table = lambda o, x, c: o.add(x, o.slice(c(weight(1, 99)), dim=1, end=x.shape[2]))  # noqa: E731
    assert check(table, 4, hops=8).limit == 24


def test_strides_divide_the_hop() -> None:
    with pytest.raises(CannotStream, match="a hop is 3 samples here, which its stride of 2 does"):
        step_of(padded_conv(3, 1, 2), 3, 24)


def test_branches_of_unequal_rates_do_not_meet() -> None:
    def program(o: Builder, x: Node, const: Any) -> Node:
        return o.add(x, o.slice(every(0, 2)(o, x, const), dim=2, end=1))

    with pytest.raises(CannotStream, match="mixes all of time"):
        step_of(program, 2, 24)
