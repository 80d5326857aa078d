"""How each op streams along time: the table of rules, and of reasons why some cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from infopt.codegen import pointwise
from infopt.compiler.errors import CannotStream
from infopt.compiler.graph import Node, attr_key
from infopt.passes.streaming import Flow, Rule, Streaming
from infopt.passes.streaming_attention import attention, numbered, table_rows
from infopt.passes.streaming_windows import convolution, pooling, repeated, transposed


def rule_for(node: Node) -> Rule | str:
    """How a node streams, or the reason why it cannot."""
    name = node.op.name
    if name in RULES:
        return RULES[name]
    if name in MIXES:
        return MIXES[name]
    if pointwise.find(node) is not None:
        return apart
    return "no rule says how this op streams"


def apart(s: Streaming, node: Node, twin: Node) -> Flow:
    """Positions are treated alike and apart from each other: branches meet with equal delays."""
    moving = [a for a in node.inputs if a in s.flows]
    flows = s.aligned([s.flows[a] for a in moving])
    rank = node.tensor_type.rank
    axes = {f.axis - f.node.tensor_type.rank for f in flows}
    if len(axes) > 1:
        raise CannotStream("its operands have time on different axes")
    if attr_key(node.attrs) != attr_key(twin.attrs):
        raise CannotStream("its attributes depend on the signal's length")
    return replace(flows[0], node=s.like(node, flows), axis=axes.pop() + rank)


def along(s: Streaming, node: Node, twin: Node) -> Flow:
    """An op along one axis: apart, if that is not time."""
    flows = s.aligned([s.flows[a] for a in node.inputs if a in s.flows])
    rank = max(node.tensor_type.rank, flows[0].node.tensor_type.rank)
    if node.attr("dim") % rank == flows[0].axis:
        raise CannotStream(f"it looks along time (dim={node.attr('dim')})")
    return _moved(s, node, twin, flows)


def joined(s: Streaming, node: Node, twin: Node) -> Flow:
    """cat: of channels that all flow, not of times."""
    if any(a not in s.flows for a in node.inputs):
        raise CannotStream("it joins the signal with what is not one")
    return along(s, node, twin)


def reduced(s: Streaming, node: Node, twin: Node) -> Flow:
    """A reduction over other axes than time."""
    flow = s.flow(node.args[0])
    rank, dims = flow.node.tensor_type.rank, node.attr("dim")
    dims = dims if isinstance(dims, tuple) else () if dims is None else (dims,)
    if not dims or any(d % rank == flow.axis for d in dims):
        raise CannotStream(f"it reduces over time (dim={node.attr('dim')})")
    return _moved(s, node, twin, [flow])


def normalized(s: Streaming, node: Node, twin: Node) -> Flow:
    """A norm over the last axes, of which time is none."""
    flow = s.flow(node.args[0])
    if flow.axis >= flow.node.tensor_type.rank - len(node.attr("normalized_shape")):
        raise CannotStream("it takes its statistics over time")
    return _moved(s, node, twin, [flow])


def batch_norm(s: Streaming, node: Node, twin: Node) -> Flow:
    """A batch norm with running statistics of channels."""
    flow = s.flow(node.args[0])
    if node.attr("training"):
        raise CannotStream("it takes the statistics of the batch, which are over all of time")
    if flow.axis == 1:
        raise CannotStream("time is its axis of channels")
    return _moved(s, node, twin, [flow])


def product(s: Streaming, node: Node, twin: Node) -> Flow:
    """A product with weights that sums over another axis than time."""
    moving = [a for a in node.inputs if a in s.flows]
    if len(moving) > 1:
        raise CannotStream("a product of two values over time")
    flow = s.flow(moving[0])
    rank = flow.node.tensor_type.rank
    summed = rank - 1 if moving[0] is node.args[0] else max(rank - 2, 0)
    if flow.axis == summed:
        raise CannotStream("it sums over time")
    return _moved(s, node, twin, [flow])


def stacked(s: Streaming, node: Node, twin: Node) -> Flow:
    """Signals side by side on a new axis."""
    if any(a not in s.flows for a in node.inputs):
        raise CannotStream("it joins the signal with what is not one")
    return _moved(s, node, twin, s.aligned([s.flows[a] for a in node.inputs]))


def looked_up(s: Streaming, node: Node, twin: Node) -> Flow:
    """Rows of a table."""
    if node.args[0] in s.flows:
        raise CannotStream("its table depends on the signal")
    return _moved(s, node, twin, [s.flow(node.args[1])])


def rearranged(s: Streaming, node: Node, twin: Node) -> Flow:
    """Axes in another order."""
    return _moved(s, node, twin, [s.flow(node.args[0])])


def reshaped(s: Streaming, node: Node, twin: Node) -> Flow:
    """Other axes may be split and joined, time is kept."""
    source = node.args[0]
    flow, axis = s.flow(source), _grown(node, twin)
    same = _numel(source.shape[: flow.axis]) == _numel(node.shape[:axis])
    if not same or source.shape[flow.axis] != node.shape[axis]:
        raise CannotStream("it joins time with another axis, or splits it")
    shape = list(node.shape)
    shape[axis] = flow.hop
    return replace(flow, node=s.o.reshape(flow.node, shape), axis=axis)


def expanded(s: Streaming, node: Node, twin: Node) -> Flow:
    """Other axes are repeated, time is kept."""
    flow, axis = s.flow(node.args[0]), _grown(node, twin)
    shape = list(node.shape)
    shape[axis] = flow.hop
    return replace(flow, node=s.o.call(node.op, flow.node, shape), axis=axis)


def sliced(s: Streaming, node: Node, twin: Node) -> Flow:
    """x[a::b]: positions before a are left out, so it is late by them; an end moves along."""
    if node.args[0] not in s.flows:
        return table_rows(s, node, twin)
    flow = s.flow(node.args[0])
    rank = flow.node.tensor_type.rank
    if node.attr("dim") % rank != flow.axis:
        return _moved(s, node, twin, [flow])
    start, step = node.attr("start") or 0, node.attr("step")
    if start < 0 or (node.attr("start") or 0) != (twin.attr("start") or 0):
        raise CannotStream("it begins at a place counted from the signal's end")
    if flow.hop % step:
        raise CannotStream(f"a hop is {flow.hop} samples here, every {step}th is taken")
    delay, rest = divmod(flow.delay + start, step)
    part = s.part(flow.node, flow.axis, rest, flow.hop, step)
    return Flow(part, flow.axis, delay)


def padded(s: Streaming, node: Node, twin: Node) -> Flow:
    """What stands before the signal delays nothing: it is what the state begins with."""
    flow, rank = s.moving(node.args[0]), node.tensor_type.rank
    fill, pad = 0.0, list(node.attr("pad"))
    mode = "constant"
    if node.op.name == "aten.pad.default":
        mode, fill = node.attr("mode"), float(node.attr("value") or 0.0)
    else:
        fill = float(node.attr("value"))
    at = 2 * (rank - 1 - flow.axis)
    if at >= len(pad):
        return _moved(s, node, twin, [s.ready(flow)])
    (before, after), pad[at : at + 2] = pad[at : at + 2], [0, 0]
    if mode != "constant" and (before or after):
        raise CannotStream(f"padding {mode!r} shows the signal's ends again")
    if any(pad):
        flow = s.ready(flow)
        flow = replace(flow, node=s.like(node, [flow], pad=tuple(pad)))
    if after > 0:
        flow = s.ended(flow, fill)
    return s.padded(flow, before, fill)


def _moved(s: Streaming, node: Node, twin: Node, flows: Sequence[Flow]) -> Flow:
    if attr_key(node.attrs) != attr_key(twin.attrs):
        raise CannotStream("its attributes depend on the signal's length")
    return replace(flows[0], node=s.like(node, flows), axis=_grown(node, twin))


def _grown(node: Node, twin: Node) -> int:
    return next(i for i, (a, b) in enumerate(zip(node.shape, twin.shape)) if a != b)


def _numel(shape: Sequence[object]) -> int:
    result = 1
    for size in shape:
        assert isinstance(size, int)
        result *= size
    return result


def _named(rule: Rule, *names: str) -> dict[str, Rule]:
    return {f"aten.{name}": rule for name in names}


RULES: dict[str, Rule] = {
    **_named(
        convolution, *(f"conv{n}d.{form}" for n in (1, 2, 3) for form in ("default", "padding"))
    ),
    **_named(transposed, "conv_transpose1d.default", "conv_transpose2d.input"),
    **_named(pooling, *(f"{kind}_pool{n}d.default" for kind in ("avg", "max") for n in (1, 2))),
    **_named(repeated, "upsample_nearest1d.vec"),
    **_named(padded, "pad.default", "constant_pad_nd.default"),
    **_named(sliced, "slice.Tensor"),
    **_named(joined, "cat.default"),
    **_named(stacked, "stack.default"),
    **_named(
        along,
        *("softmax.int", "_softmax.default", "log_softmax.int", "_log_softmax.default"),
        *("glu.default", "select.int"),
    ),
    **_named(
        reduced,
        *("sum.dim_IntList", "mean.dim", "amax.default", "amin.default", "var.correction"),
        *("linalg_vector_norm.default", "argmax.default", "argmin.default", "logsumexp.default"),
    ),
    **_named(normalized, "layer_norm.default", "rms_norm.default"),
    **_named(batch_norm, "batch_norm.default"),
    **_named(product, "linear.default", "matmul.default", "mm.default", "bmm.default"),
    **_named(looked_up, "embedding.default"),
    **_named(rearranged, "permute.default", "transpose.int", "t.default", "unsqueeze.default"),
    **_named(
        reshaped,
        *("reshape.default", "view.default", "_unsafe_view.default", "flatten.using_ints"),
        *("unflatten.int", "squeeze.dim", "squeeze.dims", "squeeze.default"),
    ),
    **_named(attention, "scaled_dot_product_attention.default"),
    **_named(numbered, "arange.default", "arange.start", "arange.start_step"),
    **_named(expanded, "expand.default"),
    **_named(
        apart,
        "clone.default",
        "contiguous.default",
        "to.dtype",
        "_to_copy.default",
        "prelu.default",
    ),
}
MIXES = {
    "aten.group_norm.default": "its statistics are taken over all of time",
    "aten.instance_norm.default": "its statistics are taken over all of time",
    "aten.adaptive_avg_pool1d.default": "its windows depend on the signal's length",
    "aten.adaptive_avg_pool2d.default": "its windows depend on the signal's length",
    "aten.adaptive_max_pool1d.default": "its windows depend on the signal's length",
    "aten.cumsum.default": "a sum without bound over the past",
    "aten.flip.default": "it begins at the signal's end",
    "aten.upsample_linear1d.vec": "a line between two samples, and a constant at the end",
}
