"""linear(x, unpack(qweight, scales, zeros)) -> linear(x, integer_weight(integers, scales))."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from infopt.compiler.graph import Graph, Node, Stage
from infopt.compiler.inline import inlined
from infopt.compiler.integer_weight import integer_weight
from infopt.compiler.interpret import evaluate
from infopt.compiler.ops import CONST
from infopt.compiler.pipeline import Pass, PassContext
from infopt.compiler.tracing.packed_weight import FLOATS, PackedWeight, packed_weights
from infopt.compiler.types import TensorType

_LEAST_GROUP = 32


@dataclass(frozen=True)
class RecognizeQuantized(Pass):
    """linear(x, unpack(constants)) -> linear(x, integer_weight(integers, scales))

    Recognised by value: the matrix is computed once, and each constant or intermediate value that
    may be its factors is tried; whole multiples of these factors are what the model stores, in
    whatever layout and order of bits it does. In f16 and bf16 the integers must give the model's
    matrix to the bit; in f32 but for a few last bits of a step, the rounding of a zero point that
    was taken off after the product. Floats of 8 bits likewise, in f32 but for a few last bits of
    each; they may also have one factor for all, or none.
    """

    name: ClassVar[str] = "recognize-quantized"
    stage: ClassVar[Stage] = Stage.NORMALIZE
    after: ClassVar[tuple[str, ...]] = ("canonicalize",)

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        o, changes = ctx.builder, {}
        tensors: dict[str, torch.Tensor] = {}
        for packed in packed_weights(graph):
            name = str(max(packed.leaves, key=_integer_bytes).attr("name"))
            if any(leaf.op is not CONST for leaf in packed.leaves):
                ctx.site(name, False, "its integers are inputs of the program")
                continue
            with torch.no_grad():
                found = _recognized(graph, packed)
            if isinstance(found, str):
                ctx.site(name, False, found)
                continue
            integers, scales, (split, given) = found
            parts = []
            for kind, tensor, recipe in zip(
                ("integers", "scales"), (integers, scales), inlined(split, given, o), strict=True
            ):
                const = f"{name}_{kind}"
                while const in graph.consts:
                    const += "_"
                tensors[const] = tensor
                ctx.derive(const, recipe, held=True)
                parts.append(o.const(const, TensorType.of(tensor)))
            matrix = o.call(integer_weight, *parts, out=packed.matrix.dtype)
            bias = packed.layer.args[2:]
            changes[packed.layer] = o.call(
                "aten.linear.default", packed.layer.args[0], matrix, *bias
            )
            group = integers.shape[1] // scales.shape[1]
            ctx.site(name, True, f"{_described(integers)}, a factor for {group}")
        return ctx.exchange(graph, changes).with_consts(tensors) if changes else graph


def _recognized(graph: Graph, packed: PackedWeight) -> tuple[Any, Any, Any] | str:
    """(integers, scales, (function, (matrix, factors)) that gives both), or why there are none."""
    values: dict[Node, torch.Tensor] = {}
    for node in packed.parts():
        if node.op is CONST:
            values[node] = graph.consts[str(node.attr("name"))].detach()
        else:
            values[node] = evaluate(graph, node, values, {})
    whole = values[packed.matrix]
    is_linear, stored = packed.is_linear, packed.stored
    n, k = whole.shape if is_linear else whole.T.shape
    for node, transposed in _factors(values, n, k, stored):
        split = _splitting(n, k, is_linear, transposed, stored)
        integers, scales = split(whole, values[node])
        rows = whole if is_linear else whole.T
        if _is_made_of(rows, integers, scales):
            return integers, scales, (split, (packed.matrix, node))
    if stored in FLOATS:
        split = _unscaled(is_linear, stored)
        integers, scales = split(whole)
        if _is_made_of(whole if is_linear else whole.T, integers, scales):
            return integers, scales, (split, (packed.matrix,))
    return "its matrix is not whole multiples of any factors it is made with"


def _is_made_of(rows: torch.Tensor, integers: torch.Tensor, scales: torch.Tensor) -> bool:
    """Whether integer_weight(integers, scales) is the matrix that layers multiply by."""
    spread = scales.float().repeat_interleave(rows.shape[1] // scales.shape[1], 1)
    made = integers.float() * spread
    if rows.dtype in (torch.float16, torch.bfloat16):  # a last bit would be a part of a step
        return torch.equal(made.to(rows.dtype), rows)
    rounding = 16 * torch.finfo(rows.dtype).eps * spread.abs()
    if integers.dtype in FLOATS:  # a step of theirs is a part of each
        rounding = rounding / spread.abs() * made.abs()
    return bool(((made - rows).abs() <= rounding).all())


def _splitting(
    n: int, k: int, is_linear: bool, transposed: bool, stored: torch.dtype = torch.int8
) -> Any:
    """(matrix, factors) -> (integers [n, k] in dtype `stored`, factors [n, groups])."""

    def split(matrix: torch.Tensor, factors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        factors = factors.expand(n) if factors.numel() == 1 else factors
        scales = (factors.reshape(-1, n).T if transposed else factors.reshape(n, -1)).contiguous()
        spread = scales.float().repeat_interleave(k // scales.shape[1], 1)
        divisor = torch.where(spread == 0, torch.ones_like(spread), spread)
        places = (matrix if is_linear else matrix.T).float() / divisor
        if stored in FLOATS:
            return places.to(stored), scales
        return torch.round(places).clamp(-128, 127).to(torch.int8), scales

    return split


def _unscaled(is_linear: bool, stored: torch.dtype) -> Any:
    """matrix -> (the same in dtype `stored`, factors of 1)."""

    def split(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = matrix if is_linear else matrix.T
        return rows.to(stored).contiguous(), torch.ones(rows.shape[0], 1)

    return split


def _described(integers: torch.Tensor) -> str:
    if integers.dtype in FLOATS:
        return str(integers.dtype).removeprefix("torch.")
    return f"integers from {int(integers.min())} to {int(integers.max())}"


def _factors(
    values: dict[Node, torch.Tensor], n: int, k: int, stored: torch.dtype
) -> Iterator[tuple[Node, bool]]:
    """What may be the factors of a matrix [n, k], a row's or a group's; True: [groups, n]."""
    for node, value in values.items():
        if value.dtype in FLOATS:
            continue
        if stored in FLOATS and value.is_floating_point() and value.numel() == 1:
            yield node, False
        if not value.is_floating_point() or value.numel() % n or not value.numel():
            continue
        groups = value.numel() // n
        if k % groups or (groups > 1 and k // groups < _LEAST_GROUP):
            continue
        shape = [s for s in value.shape if s != 1]
        if shape in ([n, groups], [n]):
            yield node, False
        if shape in ([groups, n], [n]) and shape != [n]:
            yield node, True


def _integer_bytes(leaf: Node) -> int:
    floats = leaf.tensor_type.is_float and leaf.dtype not in FLOATS
    return 0 if floats else int(leaf.tensor_type.nbytes)
