"""One op each: what its step gives for the whole signal, or why it has none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from infopt.compiler.errors import CannotStream
from infopt.compiler.graph import Node
from infopt.compiler.infer import Builder
from infopt.passes.streaming import stream
from infopt.passes.streaming_rules import rule_for
from tests.passes.test_streaming import WIDTH, check, graph_of, step_of, weight

Program = Callable[[Any, Node, Callable], Node]
HOP = 4


def times_first(o: Builder, x: Node) -> Node:
    """[time, 2, 2]"""
    return o.reshape(o.permute(x, (2, 0, 1)), (x.shape[2], 2, 2))


def numbers(o: Builder, x: Node, width: int) -> Node:
    """i64[1, time] below width, from the signal's values."""
    return o.to(o.clamp(o.abs(o.select(x, 1, 0)), max=width - 0.5), torch.int64)


def floats(o: Builder, x: Node) -> Node:
    return o.to(x, torch.float64)


def batch_norm(o: Builder, x: Node, const: Any) -> Node:
    running = (const(weight(WIDTH)), const(weight(WIDTH).abs() + 1))
    named = {"training": False, "momentum": 0.1, "eps": 1e-5, "cudnn_enabled": False}
    return o.call("aten.batch_norm.default", x, const(weight(WIDTH)), None, *running, **named)


STREAMED: dict[str, Program] = {
    "glu": lambda o, x, c: o.glu(x, 1),
    "log softmax": lambda o, x, c: o.log_softmax(x, 1),
    "select": lambda o, x, c: o.select(x, 1, 2),
    "stack": lambda o, x, c: o.stack([x, o.neg(x)], 2),
    "sum": lambda o, x, c: o.sum(x, (0, 1)),
    "mean": lambda o, x, c: o.mean(x, (1,), keepdim=True),
    "amax": lambda o, x, c: o.amax(x, (1,)),
    "amin": lambda o, x, c: o.amin(x, (1,)),
    "var": lambda o, x, c: o.call("aten.var.correction", x, (1,), correction=1),
    "norm": lambda o, x, c: o.call("aten.linalg_vector_norm.default", x, 2, (1,)),
    "logsumexp": lambda o, x, c: o.call("aten.logsumexp.default", x, (1,)),
    "argmax": lambda o, x, c: floats(o, o.argmax(x, 1)),
    "argmin": lambda o, x, c: floats(o, o.argmin(x, 1)),
    "rms norm": lambda o, x, c: o.rms_norm(o.permute(x, (0, 2, 1)), (WIDTH,), c(weight(WIDTH))),
    "batch norm": batch_norm,
    "weights on the left": lambda o, x, c: o.matmul(c(weight(3, WIDTH)), x),
    "a product by batches": lambda o, x, c: o.bmm(c(weight(1, 3, WIDTH)), x),
    "a product of a matrix": lambda o, x, c: o.mm(
        o.t(o.reshape(x, (WIDTH, x.shape[2]))), c(weight(WIDTH, 3))
    ),
    "a product with a vector": lambda o, x, c: o.matmul(o.permute(x, (0, 2, 1)), c(weight(WIDTH))),
    "rows of a table": lambda o, x, c: o.embedding(c(weight(3, 5)), numbers(o, x, 3)),
    "axes": lambda o, x, c: o.unsqueeze(o.transpose(x, 1, 2), 1),
    "no axis": lambda o, x, c: o.call("aten.squeeze.dim", x, 0),
    "flat beside time": lambda o, x, c: o.flatten(o.unflatten(x, 1, (2, 2)), 0, 2),
    "pad beside time": lambda o, x, c: o.pad(o.permute(x, (0, 2, 1)), (1, 2), value=7.0),
    "pad of numbers": lambda o, x, c: o.constant_pad_nd(x, (2, 0), 7.0),
    "pad of both": lambda o, x, c: o.constant_pad_nd(x, (3, 0, 1, 2), 7.0),
    "prelu": lambda o, x, c: o.prelu(x, c(weight(WIDTH))),
    "copy": lambda o, x, c: o.clone(o.contiguous(x)),
    "time as the batch of a convolution": lambda o, x, c: o.conv1d(
        times_first(o, x), c(weight(3, 2, 2)), None
    ),
    "time as the batch of a pooling": lambda o, x, c: o.max_pool1d(times_first(o, x), (2,)),
    "time as the batch of what goes back": lambda o, x, c: o.conv_transpose1d(
        times_first(o, x), c(weight(2, 3, 2)), None
    ),
    "time as the batch of copies": lambda o, x, c: o.call(
        "aten.upsample_nearest1d.vec", times_first(o, x), None, scale_factors=(2.0,)
    ),
}


@pytest.mark.parametrize("name", STREAMED)
def test_streams_without_delay(name: str) -> None:
    assert check(STREAMED[name], HOP, 3).output.delay == 0


def test_numbers_may_be_floats() -> None:
    def program(o: Builder, x: Node, const: Any) -> Node:
        counted = o.call("aten.arange.start", 2, x.shape[2] + 2, dtype=torch.float64)
        return o.mul(x, o.sin(counted))

    check(program, HOP, 3)


def running_over_time(o: Builder, x: Node, c: Any) -> Node:
    """A batch norm with time as its channels, and statistics of every place."""
    table = c(weight(200).abs() + 1)
    rows = o.slice(table, 0, 0, x.shape[2])
    named = {"training": False, "momentum": 0.1, "eps": 1e-5, "cudnn_enabled": False}
    moved = o.permute(x, (0, 2, 1))
    return o.call("aten.batch_norm.default", moved, None, None, rows, rows, **named)


def slopes_over_time(o: Builder, x: Node, c: Any) -> Node:
    slopes = o.reshape(o.select(x, 1, 0), (x.shape[2],))
    return o.prelu(o.permute(x, (0, 2, 1)), slopes)


def weights_of_the_signal(o: Builder, x: Node, c: Any) -> Node:
    """A convolution with a channel for every place."""
    length = x.shape[2]
    y = o.permute(x, (0, 2, 1))
    return o.conv1d(y, o.reshape(y, (length, 1, WIDTH)), None, groups=length)


def attend_over(o: Builder, x: Node, many: int) -> Node:
    """Causal attention to keys that come in another number per hop."""
    q = o.reshape(o.permute(x, (0, 2, 1)), (1, x.shape[2], 1, WIDTH))
    k = o.call("aten.upsample_nearest1d.vec", x, None, scale_factors=(float(many),))
    k = o.reshape(o.permute(k, (0, 2, 1)), (1, many * x.shape[2], 1, WIDTH))
    q, k = (o.permute(a, (0, 2, 1, 3)) for a in (q, k))
    return o.scaled_dot_product_attention(q, k, k, is_causal=True)


REFUSED: dict[str, tuple[Program, str]] = {
    "a norm over time": (
        lambda o, x, c: o.layer_norm(x, (x.shape[2],)),
        "it takes its statistics over time",
    ),
    "a norm whose number is the length": (
        lambda o, x, c: o.layer_norm(o.permute(x, (0, 2, 1)), (WIDTH,), eps=float(x.shape[2])),
        "its attributes depend on the signal's length",
    ),
    "statistics of places": (running_over_time, "time is its axis of channels"),
    "slopes of places": (slopes_over_time, "its operands have time on different axes"),
    "a product of two signals": (
        lambda o, x, c: o.bmm(times_first(o, x), times_first(o, x)),
        "a product of two values over time",
    ),
    "a table of the signal": (
        lambda o, x, c: o.embedding(o.permute(o.squeeze(x, 0), (1, 0)), numbers(o, x, 4)),
        "its table depends on the signal",
    ),
    "channels joined with numbers": (
        lambda o, x, c: o.cat([x, c(weight(1, WIDTH, 5))], 2),
        "it joins the signal with what is not one",
    ),
    "a constant as long as the signal": (
        lambda o, x, c: o.add(x, o.expand(c(weight(1, WIDTH, 1)), (1, WIDTH, x.shape[2]))),
        "it grows with the signal, what it is made of does not",
    ),
    "a constant padded to its length": (
        lambda o, x, c: o.add(x, o.pad(c(weight(1, WIDTH, 1)), (0, x.shape[2] - 1))),
        "it grows with the signal, what it is made of does not",
    ),
    "times joined": (lambda o, x, c: o.cat([x, x], 2), r"it looks along time \(dim=2\)"),
    "times of two rates joined": (
        lambda o, x, c: o.cat([x, o.slice(x, 2, step=2)], 2),
        r"it joins hops of \[2, 4\] samples",
    ),
    "attention over two rates": (
        lambda o, x, c: attend_over(o, x, 2),
        r"it joins hops of \[4, 8\] samples",
    ),
    "a place from the end": (
        lambda o, x, c: o.slice(x, 2, 3 - x.shape[2]),
        "it begins at a place counted from the signal's end",
    ),
    "the latter half": (
        lambda o, x, c: o.slice(x, 2, x.shape[2] // 2),
        "it begins at a place counted from the signal's end",
    ),
    "the first half": (
        lambda o, x, c: o.slice(x, 2, 0, x.shape[2] // 2),
        r"a hop of it would be f64\[1, 4, 4\], expected \[1, 4, 2\]",
    ),
    "every third": (
        lambda o, x, c: o.slice(x, 2, step=3),
        "a hop is 4 samples here, every 3th is taken",
    ),
    "time split": (
        lambda o, x, c: o.reshape(x, (1, WIDTH, -1, 2)),
        "it joins time with another axis, or splits it",
    ),
    "weights of the signal": (weights_of_the_signal, "its weights depend on the signal"),
    "a window over channels": (
        lambda o, x, c: o.max_pool1d(o.permute(x, (0, 2, 1)), (2,)),
        "time is its axis of channels",
    ),
    "a window over nothing but channels": (
        lambda o, x, c: o.max_pool1d(o.permute(o.squeeze(x, 0), (1, 0)), (2,)),
        "time is its axis of channels",
    ),
    "several results": (
        lambda o, x, c: o.getitem(o.call("aten.max.dim", x, 1), 0),
        "an op with several results over time",
    ),
    "a size that is data": (
        lambda o, x, c: o.call("aten.nonzero.default", x),
        "a size that depends on data",
    ),
    "another type": (
        lambda o, x, c: o.to(x, torch.float64 if x.shape[2] == 24 else torch.float32),
        "its type depends on the signal's length",
    ),
    "another rank": (
        lambda o, x, c: o.reshape(x, (1, WIDTH, -1) if x.shape[2] == 24 else (WIDTH, -1)),
        "its type depends on the signal's length",
    ),
    "windows to the end": (
        lambda o, x, c: (
            o.avg_pool1d(x, (2,), (2,), (0,), ceil_mode=True)
            if x.shape[2] % 2
            else o.avg_pool1d(o.slice(x, 2, 1), (2,), (2,), (0,), ceil_mode=True)
        ),
        "ceil_mode: the last window has another divisor",
    ),
    "copies to a size": (
        lambda o, x, c: o.call("aten.upsample_nearest1d.vec", x, (2 * x.shape[2] + 3,), None),
        "the scale is no whole number",
    ),
    "instance norm": (
        lambda o, x, c: o.call(
            "aten.instance_norm.default", x, None, None, None, None, True, 0.1, 1e-5, False
        ),
        "its statistics are taken over all of time",
    ),
    "a sum over the past": (lambda o, x, c: o.cumsum(x, 2), "a sum without bound over the past"),
    "a line between samples": (
        lambda o, x, c: o.call("aten.upsample_linear1d.vec", x, None, False, (2.0,)),
        "a line between two samples",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name: str) -> None:
    program, reason = REFUSED[name]
    with pytest.raises(CannotStream, match=reason):
        step_of(program, HOP, 24, most=50)


def test_a_signal_is_whole_hops() -> None:
    with pytest.raises(CannotStream, match="25 samples are not whole hops of 4"):
        step_of(lambda o, x, c: o.neg(x), HOP, 25)


@pytest.mark.parametrize(("rows", "limit"), [(27, 6), (30, 6), (31, 7)])
def test_a_table_lasts_for_whole_hops(rows: int, limit: int) -> None:
    """From row 3 on: what is left of it, in hops."""

    def program(o: Builder, x: Node, const: Any) -> Node:
        return o.add(x, o.slice(const(weight(1, rows)), 1, 3, 3 + x.shape[2]))

    step = stream(graph_of(program, 20), graph_of(program, 24), rule_for)
    assert step.limit == limit


def test_the_least_room_counts() -> None:
    """Of a table and of what compile_stream was told."""

    def program(o: Builder, x: Node, const: Any) -> Node:
        q = o.permute(o.reshape(o.permute(x, (0, 2, 1)), (1, x.shape[2], 2, 2)), (0, 2, 1, 3))
        y = o.scaled_dot_product_attention(q, q, q, is_causal=True)
        return o.add(y, o.slice(const(weight(1, 1, 40, 1)), 2, 0, x.shape[2]))

    assert step_of(program, HOP, 24, most=30).limit == 10
    assert step_of(program, HOP, 24, most=7).limit == 7


def test_one_past_for_all_who_look_back() -> None:
    """Who needs less reads a part of what is kept for who needs most."""

    def program(o: Builder, x: Node, const: Any) -> Node:
        far = o.conv1d(o.pad(x, (6, 0)), const(weight(WIDTH, WIDTH, 7)), None)
        near = o.conv1d(o.pad(x, (2, 0)), const(weight(WIDTH, WIDTH, 3)), None)
        return o.add(far, near)

    step = check(program, HOP, 4)
    assert [s.node.shape for s in step.stores] == [(1, WIDTH, 6)]


def test_pads_of_two_numbers_are_two_pasts() -> None:
    def program(o: Builder, x: Node, const: Any) -> Node:
        made = const(weight(WIDTH, WIDTH, 3))
        zeros, ones = (o.pad(x, (2, 0), value=v) for v in (0.0, 1.0))
        return o.add(o.conv1d(zeros, made, None), o.conv1d(ones, made, None))

    step = check(program, HOP, 4)
    assert sorted(s.fill for s in step.stores) == [0.0, 1.0]
