"""conv2d(x, w, b, stride=kernel) -> linear(patches(x), flat(w), b)"""

from __future__ import annotations

from typing import Any

from infopt.compiler.graph import Node, Stage
from infopt.compiler.pipeline import PassContext
from infopt.compiler.rewrite import Match, Rule


class UnfoldPatches(Rule):
    """conv2d(x, w, b, stride=kernel) -> linear(patches(x), flat(w), b)

    Where patches do not overlap (the patch embedding of vision transformers) the convolution is one
    matrix product, and the weight's rows are already contiguous: no copy of it is made.
    Declines 1x1 kernels (images stay images), padding, dilation, groups, overlapping patches and
    sizes that do not divide.
    """

    name = "unfold-patches"
    stage = Stage.NORMALIZE
    after = ("canonicalize",)
    always = True

    def pattern(self, o: Any, x: Any, weight: Any, bias: Any) -> Any:
        attrs = {k: o.any(k) for k in ("stride", "padding", "dilation", "groups")}
        return [o.conv2d(x, weight, bias, **attrs), o.conv2d(x, weight, **attrs)]

    def legal(self, m: Match, ctx: PassContext) -> str | None:
        if m.x.tensor_type.rank != 4:
            return f"x is {m.x.type}, expected [batch, channels, height, width]"
        kernel = m.weight.shape[2:]
        if kernel == (1, 1):
            return "the kernel is 1x1: every pixel is a patch, and lies well as it is"
        if tuple(m.stride) not in (kernel, kernel[:1]):
            return f"patches overlap or leave gaps: kernel {kernel}, stride {tuple(m.stride)}"
        if m.groups != 1 or set(m.dilation) != {1} or m.padding == "same":
            return f"groups {m.groups}, dilation {tuple(m.dilation)}"
        if not isinstance(m.padding, str) and set(m.padding) != {0}:
            return f"padding {m.padding}"
        for size, step in zip(m.x.shape[2:], kernel, strict=True):
            if not isinstance(size, int) or size % step:
                return f"height or width {size} is not a known multiple of the patch size {step}"
        return None

    def rewrite(self, o: Any, x: Node, weight: Node, bias: Node | None) -> Node:
        batch, channels, height, width = x.shape
        features, _, high, wide = weight.shape
        rows, columns = height // high, width // wide
        pieces = o.reshape(x, [batch, channels, rows, high, columns, wide])
        pieces = o.permute(pieces, [0, 2, 4, 1, 3, 5])
        patches = o.reshape(pieces, [batch, rows * columns, channels * high * wide])
        flat = o.reshape(weight, [features, channels * high * wide])
        y = o.permute(o.linear(patches, flat, bias), [0, 2, 1])
        return o.reshape(y, [batch, features, rows, columns])
