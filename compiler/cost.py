"""What a node costs: work, traffic and starts, as expressions over the graph's dims."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from infopt.compiler.alias import is_view
from infopt.compiler.graph import Graph, Node
from infopt.compiler.target import Target
from infopt.compiler.types import Dim, Size, TensorType, dtype_name, hint

Flops = Callable[[Node], "Size"]


@dataclass(frozen=True)
class Cost:
    """flops: floating point operations; bytes: read and written; launches: steps started."""

    flops: Size = 0
    bytes: Size = 0
    launches: Size = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.flops + other.flops, self.bytes + other.bytes, self.launches + other.launches
        )


_FLOPS: dict[str, Flops] = {}


def flops_of(*names: str) -> Callable[[Flops], Flops]:
    """Declare how to count the floating point operations of these ops."""

    def declare(f: Flops) -> Flops:
        for name in names:
            _FLOPS[name] = f
        return f

    return declare


def cost_of(node: Node) -> Cost:
    """The cost of one node alone: what it reads, writes and does. Views and leaves are free."""
    if node.op.name in ("input", "const", "getitem") or is_view(node):
        return Cost()
    traffic: Size = sum((_nbytes(t) for t in _types(node)), 0)
    for source in dict.fromkeys(node.inputs):
        traffic = traffic + sum((_nbytes(t) for t in _types(source)), 0)
    if node.op.name in _LOOKUPS:  # rows not asked for are not read
        traffic = 2 * _nbytes(node.tensor_type) + _nbytes(_arg(node, 1))
    return Cost(_FLOPS.get(node.op.name, _pointwise)(node), traffic - _skipped(node), 1)


def seconds(
    cost: Cost, target: Target, dtype: torch.dtype | str | Node = "f32", dims: Iterable[Dim] = ()
) -> float:
    """Estimated time on a target: the larger of work and traffic, plus the starts.

    dtype: what the work is done in, by name or as the node that does it
    dims: the sizes seen in tracing, for the expressions of a cost
    """
    dims = tuple(dims)
    if isinstance(dtype, Node):
        dtype = compute_dtype(dtype)
    name = dtype if isinstance(dtype, str) else dtype_name(dtype)
    work = hint(cost.flops, dims) / (target.peak_of(name) * 1e9)
    traffic = hint(cost.bytes, dims) / (target.bandwidth * 1e9)
    return max(work, traffic) + hint(cost.launches, dims) * target.launch_cost


def node_seconds(node: Node, target: Target, dims: Iterable[Dim] = ()) -> float:
    """Estimated time of one node, in the dtype of its first floating point input or result."""
    return seconds(cost_of(node), target, node, dims)


def graph_seconds(graph: Graph, target: Target) -> float:
    """Estimated time of a whole graph run node by node, at the sizes seen in tracing."""
    return sum(node_seconds(n, target, graph.dims) for n in graph.nodes())


def compute_dtype(node: Node) -> torch.dtype:
    """The dtype a node calculates in, as far as its types tell."""
    if node.op.name.startswith("narrow_"):
        return torch.bfloat16
    given = dict(node.attrs).get("activations")  # of a quantized linear layer
    if given not in (None, "none"):
        return torch.bfloat16 if given == "bf16" else torch.int8
    for value in (*node.inputs, node):
        for t in _types(value):
            if t.is_float:
                return t.dtype
    return torch.float32


def _types(node: Node) -> tuple[TensorType, ...]:
    if isinstance(node.type, TensorType):
        return (node.type,)
    return tuple(t for t in node.type if t is not None)


def _nbytes(t: TensorType) -> Size:
    # an expanded tensor holds its elements once
    held: Size = t.dtype.itemsize
    for size, stride in zip(t.shape, t.strides, strict=True):
        if stride != 0:
            held = held * size
    return held


# Relative weights: an exp or erf is a polynomial of about this many operations.
_WEIGHT = {"exp": 12, "gelu": 20, "tanh": 15, "sigmoid": 14, "silu": 15, "erf": 15, "log": 12}
_WEIGHT |= {
    "softmax": 16,
    "layer_norm": 8,
    "group_norm": 8,
    "rms_norm": 6,
    "sin": 15,
    "cos": 15,
    "pow": 20,
    "div": 4,
}
_WEIGHT |= {"sqrt": 4, "rsqrt": 4}
_LOOKUPS = ("aten.embedding.default", "aten.index_select.default", "aten.gather.default")
SPARSE_LINEARS = {"sparse_linear": 1, "sparse_gated_linear": 2}  # how many weights
_PANEL = 16  # rows that meet the weights together; the last panel may be part empty
_FEW_ROWS = 8  # up to so many are no panel


def _pointwise(node: Node) -> Size:
    parts = node.op.name.removeprefix("aten.").split(".")[0].removeprefix("_")
    largest = max((*_types(node), *(t for s in node.inputs for t in _types(s))), key=_rough)
    return largest.numel * _WEIGHT.get(parts, 1)


def _rough(t: TensorType) -> float:
    result = 1.0
    for size in t.shape:
        result *= size if isinstance(size, int) else 64
    return result


def _skipped(node: Node) -> int:
    """Bytes of weights that a step of one row does not read, as it keeps a part of its places."""
    weights = node.args[1 : 1 + SPARSE_LINEARS.get(node.op.name, 0)]
    x = node.args[0] if weights else None
    if not isinstance(x, Node) or x.op.name != "keep_largest":
        return 0
    whole, width = sum(int(w.tensor_type.nbytes) for w in weights), int(x.shape[-1])  # type: ignore[union-attr]
    return whole * (width - x.attr("keep")) // width


def _arg(node: Node, index: int) -> TensorType:
    value = node.args[index]
    assert isinstance(value, Node)
    return value.tensor_type


@flops_of(*_LOOKUPS)
def _lookup(node: Node) -> Size:
    return node.tensor_type.numel


@flops_of("quantized_linear", "quantized_gated_linear")
def _quantized(node: Node) -> Size:
    products = 2 if node.op.name == "quantized_gated_linear" else 1
    return 2 * products * node.tensor_type.numel * _arg(node, 0).shape[-1]


@flops_of(
    *("aten.linear.default", "linear_act", "gated_linear", "narrow_linear", "narrow_gated_linear")
)
def _linear(node: Node) -> Size:
    """Every weight takes part in one multiply-add for each row of x, in whole panels of rows."""
    x = _arg(node, 0)
    rows: Size = 1
    for size in x.shape[:-1]:
        rows = rows * size
    if isinstance(rows, int) and rows > _FEW_ROWS:
        rows = -(-rows // _PANEL) * _PANEL
    total: Size = 0
    for source in list(dict.fromkeys(node.inputs))[1:]:
        t = source.tensor_type
        if t.rank == 2 and (node.op.name.endswith("gated_linear") or source is node.args[1]):
            total = total + 2 * rows * t.numel
    return total


@flops_of("aten.mm.default", "aten.bmm.default", "aten.matmul.default", "aten.mv.default")
def _matmul(node: Node) -> Size:
    return 2 * node.tensor_type.numel * _arg(node, 0).shape[-1]


@flops_of("aten.addmm.default", "aten.baddbmm.default")
def _addmm(node: Node) -> Size:
    return (2 * _arg(node, 1).shape[-1] + 2) * node.tensor_type.numel


@flops_of("aten.dot.default")
def _dot(node: Node) -> Size:
    return 2 * _arg(node, 0).numel


@flops_of(
    "aten.conv1d.default",
    "aten.conv2d.default",
    "aten.conv3d.default",
    "aten.conv1d.padding",
    "aten.conv2d.padding",
    "aten.conv3d.padding",
    "aten.convolution.default",
    "conv_act",
    "narrow_conv",
)
def _convolution(node: Node) -> Size:
    weight = _arg(node, 1)
    if node.op.name == "aten.convolution.default" and node.attr("transposed"):
        return 2 * _arg(node, 0).numel * weight.numel // weight.shape[0]
    per_result: Size = 1
    for size in weight.shape[1:]:
        per_result = per_result * size
    return 2 * node.tensor_type.numel * per_result


@flops_of("aten.scaled_dot_product_attention.default", "attention", "attention_sinks")
def _attention(node: Node) -> Size:
    """q [.., H, T, D], k [.., S, D], v [.., S, E]: two products and a softmax of the scores, of
    those in the window where there is one; of open sizes, of all."""
    q, k, v = _arg(node, 0), _arg(node, 1), _arg(node, 2)
    window = dict(node.attrs).get("window", 0)
    scores: Size = k.shape[-2]
    if window and isinstance(scores, int):
        scores = min(scores, window)
    for size in q.shape[:-1]:
        scores = scores * size
    return scores * (2 * q.shape[-1] + 2 * v.shape[-1] + _WEIGHT["softmax"])


@flops_of("low_rank_attention")
def _low_rank_attention(node: Node) -> Size:
    """As the attention, and the three products that its rows are rebuilt by, each once."""
    rebuilt: Size = 0
    for place in range(3):
        x, up = _arg(node, place), _arg(node, 3 + place)
        rebuilt = rebuilt + 2 * x.numel * up.shape[0]
    q, heads = _arg(node, 0), node.attr("heads")
    depth, value_depth = _arg(node, 3).shape[0] // heads, node.shape[-1]
    scores = q.shape[0] * heads * q.shape[1] * _arg(node, 1).shape[1]
    return rebuilt + scores * (2 * depth + 2 * value_depth + _WEIGHT["softmax"])


@flops_of("ragged_attention")
def _ragged_attention(node: Node) -> Size:
    """As if every sequence were the longest there may be."""
    q, v = _arg(node, 0), _arg(node, 2)
    scores = q.shape[0] * q.shape[1] * node.attr("longest")
    return scores * (2 * q.shape[2] + 2 * v.shape[2] + _WEIGHT["softmax"])
