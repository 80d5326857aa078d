"""How windows over time stream: convolutions, poolings, transposed convolutions, upsampling."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from infopt.compiler.errors import CannotStream
from infopt.compiler.graph import Node
from infopt.passes.streaming import Flow, Streaming


def window(
    s: Streaming, flow: Flow, reach: int, stride: int, before: int, fill: float, end: int
) -> Flow:
    """The samples to slide over, without padding: output i reads i stride ... i stride + reach of
    the flow with `before` positions of `fill` in front, and as many behind it as it reads. Its
    delay is that of the output, `end` is the output's.

    With delay d of the padded flow, output i is due once position i stride + reach has come:
    its delay is (d + reach) // stride, and the rest r of this division says at which sample of
    every hop the last window ends.
    """
    if flow.hop % stride:
        raise CannotStream(
            f"a hop is {flow.hop} samples here, which its stride of {stride} does not divide"
        )
    if (end - 1) * stride + reach - before >= flow.end:
        flow = s.ended(flow, fill)
    flow = s.padded(flow, before, fill)
    if flow.delay + reach < 0:  # windows over nothing but padding come first
        flow = s.delayed(flow, -reach)
    delay, rest = divmod(flow.delay + reach, stride)
    past = reach - rest
    if past > 0:
        node = s.history(flow, past)
    else:
        node = s.part(flow.node, flow.axis, -past, flow.hop)
    return Flow(node, flow.axis, delay)


def convolution(s: Streaming, node: Node, twin: Node) -> Flow:
    """y[i] = sum over j of w[j] x[i stride + j dilation - padding]"""
    x, weight, _ = node.args
    axes = weight.tensor_type.rank - 2
    flow, at = _spatial(s, node, x, axes)
    if flow is None:
        return s.batched(node)
    kernel = int(weight.shape[2 + at])
    stride, dilation = (_each(node.attr(n), axes) for n in ("stride", "dilation"))
    reach = dilation[at] * (kernel - 1)
    padding = node.attr("padding")
    if padding == "same":
        total = [d * (int(k) - 1) for d, k in zip(dilation, weight.shape[2:])]
        if any(t % 2 for i, t in enumerate(total) if i != at):
            raise CannotStream("unequal padding of another axis than time")
        padding = [t // 2 for t in total]
    padding = [0] * axes if padding == "valid" else _each(padding, axes)
    seen = window(s, flow, reach, stride[at], padding[at], 0.0, s.end(node, twin))
    padding[at] = 0
    name = f"aten.conv{axes}d.default"
    made = s.o.call(
        name,
        *(seen.node, *node.args[1:]),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=node.attr("groups"),
    )
    return replace(seen, node=made)


def pooling(s: Streaming, node: Node, twin: Node) -> Flow:
    """y[i] = the mean or largest of x[i stride + j dilation - padding]"""
    attrs = dict(node.attrs)
    axes = int(node.op.name.partition("_pool")[2][0])
    flow, at = _spatial(s, node, node.args[0], axes)
    if flow is None:
        return s.batched(node)
    kernel, padding = _each(attrs["kernel_size"], axes), _each(attrs["padding"], axes)
    stride = _each(attrs["stride"] or attrs["kernel_size"], axes)
    dilation = _each(attrs.get("dilation", 1), axes)
    largest = "max" in node.op.name
    if padding[at] and not largest and not attrs["count_include_pad"]:
        raise CannotStream("count_include_pad=False: windows at the border have another divisor")
    fill, end = float("-inf") if largest else 0.0, s.end(node, twin)
    reach = dilation[at] * (kernel[at] - 1)
    if not largest and (end - 1) * stride[at] + reach >= flow.end + 2 * padding[at]:
        raise CannotStream("ceil_mode: the last window has another divisor")
    seen = window(s, flow, reach, stride[at], padding[at], fill, end)
    padding[at] = 0
    changed = {**attrs, "stride": tuple(stride), "padding": tuple(padding), "ceil_mode": False}
    return replace(seen, node=s.o.node(node.op, (seen.node,), tuple(changed.items())))


def transposed(s: Streaming, node: Node, twin: Node) -> Flow:
    """y[o] = sum of w[j] x[i] over i stride + j dilation = o + padding

    In the hop's own samples of it, counted from the first sample remembered, sums over what came
    before are complete, so all others are cropped; `padding` crops what comes first: it delays.
    """
    x, weight, _ = node.args
    attrs = dict(node.attrs)
    axes = weight.tensor_type.rank - 2
    flow, at = _spatial(s, node, x, axes)
    if flow is None:
        return s.batched(node)
    names = ("stride", "padding", "output_padding", "dilation")
    each = {n: _each(attrs[n], axes) for n in names}
    stride, cropped = each["stride"][at], each["padding"][at]
    reach = each["dilation"][at] * (int(weight.shape[2 + at]) - 1)
    past, flow = reach // stride, s.ended(s.ready(flow), 0.0)
    if past and flow.delay:
        flow = replace(flow, node=s.started(flow, 0.0))
    both = s.history(flow, past) if past else flow.node
    each["padding"][at], each["output_padding"][at] = past * stride, (past + 1) * stride - reach - 1
    changed = {**attrs, **{n: tuple(v) for n, v in each.items()}}
    made = s.o.node(node.op, (both, *node.args[1:]), tuple((k, changed[k]) for k, _ in node.attrs))
    return Flow(made, flow.axis, flow.delay * stride + cropped)


def repeated(s: Streaming, node: Node, twin: Node) -> Flow:
    """y[i] = x[i // scale]"""
    flow, _ = _spatial(s, node, node.args[0], 1)
    if flow is None:
        return s.batched(node)
    axis = flow.axis
    scale = (twin.shape[axis] - node.shape[axis]) // flow.hop  # type: ignore[operator]
    if scale < 1 or node.shape[axis] != scale * node.args[0].shape[axis]:  # type: ignore[union-attr]
        raise CannotStream("the scale is no whole number")
    made = s.o.call(node.op, flow.node, None, scale_factors=(float(scale),))
    return Flow(made, axis, flow.delay * scale)


def _spatial(s: Streaming, node: Node, x: Any, axes: int) -> tuple[Flow | None, int]:
    """The signal and which of the op's axes time is; None where it is the batch's axis."""
    if len([a for a in node.inputs if a in s.flows]) > 1:
        raise CannotStream("its weights depend on the signal")
    flow, rank = s.moving(x), x.tensor_type.rank
    at = flow.axis - (rank - axes)
    if at >= 0:
        return flow, at
    if rank == axes + 2 and flow.axis == 0:
        return None, 0
    raise CannotStream("it sums over time: time is its axis of channels")


def _each(value: Any, axes: int) -> list[int]:
    """An attribute that is one number for all axes, or one for each."""
    values = list(value) if isinstance(value, tuple | list) else [value]
    return values * axes if len(values) == 1 else values
