"""Two convolutions in a row, and the window of the one that computes the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from infopt.codegen.kernels.conv import conv_act
from infopt.compiler.graph import Node
from infopt.compiler.infer import Builder
from infopt.passes.factor_pairs import Pair
from infopt.passes.fold_batch_norm import CONVOLUTIONS


class Axis(NamedTuple):
    """What a convolution sees of one axis: taps, their distance (1 where there is one tap), the
    steps from result to result, and the zeros before and behind."""

    taps: int
    distance: int
    stride: int
    padding: int

    def then(self, second: Axis) -> Axis | str:
        """The axis of one convolution in the place of this and a second one, or why there is none.

        Tap j of the second at result q is the first's result q stride + j distance - padding, which
        sees x from that times the first's stride on.
        """
        if second.padding and self.taps > 1:
            # beyond its own result the first one's window would still see a part of x
            return f"{second.padding} zeros lie between, where one of {self.taps} taps sees x"
        apart = second.distance * self.stride
        if self.taps > 1 and second.taps > 1 and apart != self.distance:
            return f"taps {self.distance} and {apart} apart are not of one window"
        distance = self.distance if second.taps == 1 else apart
        padding = self.padding + second.padding * self.stride
        taps = self.taps + second.taps - 1
        return Axis(taps, distance, self.stride * second.stride, padding)


@dataclass(frozen=True)
class ConvPair(Pair):
    """conv(conv(x, a), b) = conv(x, b * a), with the norm behind the second one as it is"""

    @property
    def bias(self) -> Node | None:
        return self.second.args[3 if self.ends_with_norm else 2]  # type: ignore[return-value]

    @property
    def ends_with_norm(self) -> bool:
        return self.second.op is conv_act

    @property
    def read(self) -> tuple[Node | None, ...]:
        scale = (self._scale,) if self.inner else ()
        return (*super().read, *scale)

    def refusal(self) -> str:
        for node in (self.first, self.second):
            if node.attr("groups") != 1:
                return f"{node!r} has {node.attr('groups')} groups"
        if self.inner is not None and any(a.padding for a in _axes_of(self.second) or ()):
            return "the first has a bias, and what lies between is padded with zeros"
        axes = self.axes()
        return axes if isinstance(axes, str) else ""

    def axes(self) -> tuple[Axis, ...] | str:
        """The window of one convolution, or why there is none."""
        first, second = _axes_of(self.first), _axes_of(self.second)
        if first is None or second is None:
            return "its padding is not the same on both sides"
        found = []
        for one, then in zip(first, second, strict=True):
            axis = one.then(then)
            if isinstance(axis, str):
                return axis
            found.append(axis)
        return tuple(found)

    def weight(self, o: Builder) -> Node:
        # the full convolution of both kernels, for every feature of b and channel of a
        a, b = self.a, self.b
        axes = list(range(2, a.tensor_type.rank))
        turned = o.flip(o.permute(a, [1, 0, *axes]), axes)
        around = [n - 1 for n in a.shape[2:]]  # type: ignore[operator]
        product = _convolved(o, b, turned, None, padding=around)
        return o.clone(product, memory_format=torch.contiguous_format)

    def moved(self, o: Builder) -> Node:
        b = self.b
        sums = o.sum(b, list(range(2, b.tensor_type.rank)))
        moved = o.matmul(sums, self.inner)
        return moved if self._scale is None else o.mul(moved, self._scale)

    def one(self, o: Builder, weight: Node, bias: Node | None) -> Node:
        axes = self.axes()
        assert not isinstance(axes, str)
        window = {
            "stride": [a.stride for a in axes],
            "padding": [a.padding for a in axes],
            "dilation": [a.distance for a in axes],
        }
        if not self.ends_with_norm:
            return _convolved(o, self.x, weight, bias, **window)
        attrs: dict[str, Any] = dict(self.second.attrs)
        attrs |= {name: tuple(sizes) for name, sizes in window.items()}
        args = (self.x, weight, self._scale, bias, self.second.args[4])
        return o.call(conv_act, *args, **attrs)

    def is_beside(self, base: Node) -> bool:
        if base.op.name not in CONVOLUTIONS or self.ends_with_norm:
            return False
        if base.args[0] is not self.x or base.attr("groups") != 1:
            return False
        return _axes_of(base) == self.axes()

    @property
    def _scale(self) -> Node | None:
        return self.second.args[2] if self.ends_with_norm else None  # type: ignore[return-value]


def conv_pair(node: Node) -> ConvPair | None:
    """The pair that ends with this node."""
    if node.op.name not in CONVOLUTIONS and node.op is not conv_act:
        return None
    first: Node = node.args[0]  # type: ignore[assignment]
    return ConvPair(first, node) if first.op.name in CONVOLUTIONS else None


def _axes_of(node: Node) -> tuple[Axis, ...] | None:
    """The window of a convolution; None where it is padded more behind than before."""
    kernel: Any = node.args[1].shape[2:]  # type: ignore[union-attr]
    rank = len(kernel)
    dilation = _each(node.attr("dilation"), rank)
    padding = node.attr("padding")
    if padding == "same":
        around = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if any(n % 2 for n in around):
            return None
        padding = [n // 2 for n in around]
    elif padding == "valid":
        padding = (0,)
    elif len(padding) == 2 * rank:
        return None
    sizes = (kernel, dilation, _each(node.attr("stride"), rank), _each(padding, rank))
    return tuple(Axis(k, d if k > 1 else 1, s, p) for k, d, s, p in zip(*sizes, strict=True))


def _each(sizes: Any, rank: int) -> tuple[int, ...]:
    return tuple(sizes) * (rank if len(sizes) == 1 else 1)


def _convolved(o: Builder, x: Node, weight: Node, bias: Node | None, **window: Any) -> Node:
    return o.call(f"aten.conv{weight.tensor_type.rank - 2}d.default", x, weight, bias, **window)
