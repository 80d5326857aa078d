"""Programs for every built-in pass, from the examples of its own tests, with sizes that vary."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from infopt.compiler.integer_weight import integer_weight
from infopt.compiler.pipeline import Pass
from infopt.compiler.testing import Program
from infopt.compiler.types import TensorType
from infopt.passes.canonicalize import Canonicalize
from infopt.passes.drop_padding import DropPadding
from infopt.passes.factor_low_rank import FactorLowRank
from infopt.passes.fold_batch_norm import FoldBatchNorm
from infopt.passes.fold_constants import FoldConstants
from infopt.passes.fuse_activation import FuseActivation
from infopt.passes.fuse_add_norm import FuseAddNorm
from infopt.passes.fuse_attention import FuseAttention
from infopt.passes.fuse_conv_epilogue import FuseConvEpilogue
from infopt.passes.fuse_conv_padding import FuseConvPadding
from infopt.passes.fuse_embedding_norm import FuseEmbeddingNorm
from infopt.passes.fuse_gated_mlp import FuseGatedMlp
from infopt.passes.fuse_linear_epilogue import FuseLinearEpilogue
from infopt.passes.fuse_low_rank import FuseLowRank
from infopt.passes.fuse_low_rank_attention import FuseLowRankAttention
from infopt.passes.fuse_norm import FuseNorm
from infopt.passes.fuse_rotary import FuseRotary
from infopt.passes.keep_needed_rows import KeepNeededRows
from infopt.passes.keep_quantized import KeepQuantized
from infopt.passes.merge_factors import MergeFactors
from infopt.passes.merge_linears import MergeLinears
from infopt.passes.narrow_compute import NarrowCompute
from infopt.passes.quantize_weights import QuantizeWeights
from infopt.passes.recognize_quantized import RecognizeQuantized
from infopt.passes.simplify_masks import SimplifyMasks
from infopt.passes.slice_runs import SliceRuns
from infopt.passes.split_transposed import SplitTransposed
from infopt.passes.unfold_patches import UnfoldPatches
from tests.passes import (
    test_canonicalize,
    test_fold_batch_norm,
    test_fuse_activation,
    test_fuse_add_norm,
    test_fuse_attention,
    test_fuse_conv_epilogue,
    test_fuse_conv_padding,
    test_fuse_embedding_norm,
    test_fuse_gated_mlp,
    test_fuse_linear_epilogue,
    test_fuse_low_rank,
    test_fuse_low_rank_attention,
    test_fuse_norm,
    test_fuse_rotary,
    test_keep_needed_rows,
    test_simplify_masks,
)

Example = tuple[str, Callable[..., Any], list[torch.Tensor]]
NARROW = (torch.float32, torch.bfloat16)
X, W, B = torch.randn(3, 6), torch.randn(6, 6) / 2, torch.randn(6)
WIDE = torch.randn(8, 48, 64), torch.randn(64, 64), torch.randn(64)
MASK = torch.rand(8, 48) > 0.5  # also when drawn: half of the tokens are real
CONSTS = {"w0": W, "w1": W + 1, "b0": B, "b1": B - 1}
CONSTS |= {"wide": torch.randn(96, 64) / 8, "deep": torch.randn(64, 96) / 8}
CONSTS |= {"thin": torch.randn(256, 32) @ torch.randn(32, 256) / 64}
CONSTS |= {"integers": torch.randint(-127, 128, (96, 64), dtype=torch.int8)}
CONSTS |= {"steps": torch.rand(96, 1) / 500 + 1e-3}
CONSTS |= {"nibbles": torch.randint(-8, 8, (96, 128), dtype=torch.int8)}
CONSTS |= {"steps_of_groups": (torch.rand(96, 2) / 20 + 1e-2).bfloat16()}


CONSTS |= {"line": torch.randn(4, 6, 5), "image": torch.randn(4, 3, 4, 3)}
CONSTS |= {"points": torch.randn(5, 4, 1, 1)}


def const(o: Any, name: str) -> Any:
    return o.const(name, TensorType.of(CONSTS[name]))


def folds(o: Any, x: Any) -> Any:
    return o.linear(x, o.matmul(const(o, "w0"), const(o, "w1")), o.mul(const(o, "b0"), 2.0))


def merges(o: Any, x: Any) -> Any:
    first = o.linear(x, const(o, "w0"), const(o, "b0"))
    return o.mul(first, 2.0), o.linear(x, const(o, "w1"), const(o, "b1"))


def quantizes(o: Any, x: Any) -> Any:
    return o.linear(o.relu(o.linear(x, const(o, "wide"))), const(o, "deep"))


def on_integers(o: Any, x: Any, *parts: str) -> Any:
    held = [const(o, name) for name in parts or ("integers", "steps")]
    return o.linear(x, o.call(integer_weight, *held, out=torch.float32))


def on_groups_of_nibbles(o: Any, x: Any) -> Any:
    return on_integers(o, x, "nibbles", "steps_of_groups")


def unpacks(o: Any, x: Any) -> Any:
    return o.linear(x, o.mul(o.to(const(o, "integers"), torch.float32), const(o, "steps")))


def factors(o: Any, x: Any) -> Any:
    return o.linear(o.relu(o.linear(x, const(o, "thin"))), const(o, "thin"))


def products(o: Any, x: Any, w: Any) -> Any:
    return o.linear(o.relu(o.linear(x, w)), w)


def adapter(o: Any, x: Any) -> Any:
    side = o.linear(o.linear(x, const(o, "w0")), const(o, "w1"))
    return o.add(o.linear(x, const(o, "w1"), const(o, "b0")), o.mul(side, 0.5))


def convolved_twice(o: Any, x: Any) -> Any:
    return o.conv2d(o.conv2d(x, const(o, "image")), const(o, "points"))


def mlp(o: Any, x: Any, w: Any, v: Any, b: Any) -> Any:
    y = o.linear(o.gelu(o.linear(x, w)), v, b)
    return o.layer_norm(o.add(x, y), [x.shape[-1]], b, b)


def mlp_of_batches(o: Any, x: Any, w: Any, v: Any, b: Any) -> Any:
    return o.permute(mlp(o, x, w, v, b), [0, 2, 1])


def patches(o: Any, x: Any, w: Any, b: Any) -> Any:
    return o.conv2d(x, w, b, [2, 2])


def upsampled(o: Any, x: Any) -> Any:
    named = {"stride": (2,), "padding": (1,), "output_padding": (0,), "groups": 1, "dilation": (1,)}
    return o.call("aten.conv_transpose1d.default", x, const(o, "line"), const(o, "b0"), **named)


def upsampled_image(o: Any, x: Any) -> Any:
    named = {"stride": (2, 3), "padding": (1, 0), "output_padding": (1, 1), "groups": 2}
    named |= {"dilation": (1, 1)}
    return o.call("aten.conv_transpose2d.input", x, const(o, "image"), const(o, "b0"), **named)


def last_row(o: Any, *given: Any) -> Any:
    return o.slice(test_keep_needed_rows.block(o, *given), 1, -2, 2**63 - 1)


def last_row_of_matrix(o: Any, x: Any, w: Any) -> Any:
    return o.call("aten.select.int", o.gelu(o.linear(x, w)), 0, -1)


def padded(o: Any, x: Any, w: Any, b: Any, mask: Any) -> Any:
    """One attention over the real tokens with a residual, summed over them."""
    batch, tokens, width = x.shape

    def heads(y: Any) -> Any:
        return o.permute(o.reshape(y, [batch, tokens, 2, width // 2]), [0, 2, 1, 3])

    seen = o.reshape(mask, [batch, 1, 1, tokens])
    q, k = heads(o.linear(x, w, b)), heads(x)
    y = o.permute(o.call("attention", q, k, k, seen, scale=0.3), [0, 2, 1, 3])
    y = o.layer_norm(o.add(x, o.reshape(y, [batch, tokens, width])), [width], b, b)
    weight = o.call("aten.to.dtype", o.reshape(mask, [batch, tokens, 1]), y.dtype)
    return o.call("aten.sum.dim_IntList", o.mul(y, weight), [1])


def epilogues(module: Any, product: Callable[..., Any]) -> Iterator[Example]:
    for name, act in module.ACTIVATIONS.items():

        def build(o: Any, x: Any, w: Any, b: Any, r: Any, act: Any = act) -> Any:
            return o.add(act(o, product(o, x, w, b)), r)

        yield name, build, module.INPUTS


def pairs(cases: dict[str, Any], inputs: list[torch.Tensor]) -> Iterator[Example]:
    for name, (build, _) in cases.items():
        yield name, build, inputs


def triples(cases: dict[str, Any]) -> Iterator[Example]:
    for name, (build, _, inputs) in cases.items():
        yield name, build, inputs


def gates() -> Iterator[Example]:
    w, v = torch.randn(8, 6), torch.randn(8, 6)
    yield "two products", test_fuse_gated_mlp.gated, [X, w, v]
    halves = [torch.randn(2, 3, 6), torch.randn(96, 6), torch.randn(96)]
    yield "two halves", test_fuse_gated_mlp.chunked, halves


def linear(o: Any, x: Any, w: Any, b: Any) -> Any:
    return o.linear(x, w, b)


EXAMPLES: dict[type[Pass], list[Example]] = {
    Canonicalize: list(triples(test_canonicalize.REWRITES)),
    DropPadding: [
        ("one layer", padded, [*WIDE, MASK]),
    ],
    FactorLowRank: [("two layers", factors, [torch.randn(5, 256)])],
    FoldBatchNorm: [
        (
            "behind a convolution",
            test_fold_batch_norm.before,
            [
                test_fold_batch_norm.X,
                test_fold_batch_norm.W,
                test_fold_batch_norm.B,
                *test_fold_batch_norm.NORM,
            ],
        ),
        (
            "alone",
            test_fold_batch_norm.normed,
            [torch.randn(2, 5, 4, 4), *test_fold_batch_norm.NORM],
        ),
    ],
    FoldConstants: [("a product", folds, [X])],
    FuseActivation: list(pairs(test_fuse_activation.CASES, [test_fuse_activation.X])),
    FuseAddNorm: list(pairs(test_fuse_add_norm.CASES, test_fuse_add_norm.INPUTS)),
    FuseAttention: list(triples(test_fuse_attention.CASES)),
    FuseConvPadding: [("sides", test_fuse_conv_padding.before, test_fuse_conv_padding.INPUTS)],
    FuseConvEpilogue: list(epilogues(test_fuse_conv_epilogue, test_fuse_conv_epilogue.conv)),
    FuseEmbeddingNorm: [
        ("three tables", test_fuse_embedding_norm.bert, test_fuse_embedding_norm.INPUTS)
    ],
    FuseGatedMlp: list(gates()),
    FuseLinearEpilogue: list(epilogues(test_fuse_linear_epilogue, linear)),
    FuseLowRankAttention: [
        (
            "one layer",
            test_fuse_low_rank_attention.factored,
            test_fuse_low_rank_attention.INPUTS,
        )
    ],
    FuseLowRank: [
        (name, build, test_fuse_low_rank.INPUTS)
        for name, (build, _) in test_fuse_low_rank.CASES.items()
    ],
    FuseNorm: list(triples(test_fuse_norm.CASES)),
    FuseRotary: [
        ("halves", test_fuse_rotary.both, test_fuse_rotary.INPUTS),
        ("part", test_fuse_rotary.partial, test_fuse_rotary.PARTIAL),
        ("neighbours", test_fuse_rotary.neighbours, test_fuse_rotary.INPUTS),
    ],
    KeepNeededRows: [
        ("the last rows", last_row, test_keep_needed_rows.INPUTS),
        ("of a matrix", last_row_of_matrix, [torch.randn(64, 32), torch.randn(32, 32)]),
    ],
    MergeFactors: [
        ("an adapter", adapter, [X]),
        ("convolutions", convolved_twice, [torch.randn(2, 3, 8, 7)]),
    ],
    KeepQuantized: [
        ("a layer", on_integers, [torch.randn(5, 64)]),
        ("four bits", on_groups_of_nibbles, [torch.randn(5, 128)]),
    ],
    MergeLinears: [("two", merges, [X])],
    NarrowCompute: [("two in a row", products, [X.repeat(6, 1), W])],
    QuantizeWeights: [("two layers", quantizes, [torch.randn(5, 64)])],
    RecognizeQuantized: [("a layer", unpacks, [torch.randn(5, 64)])],
    SimplifyMasks: [
        (name, build, [test_simplify_masks.M])
        for name, (build, *_) in test_simplify_masks.CASES.items()
    ],
    SliceRuns: [
        ("rows", mlp, [torch.randn(48, 6), torch.randn(24, 6), torch.randn(6, 24), B]),
        (
            "batch",
            mlp_of_batches,
            [torch.randn(4, 48, 6), torch.randn(24, 6), torch.randn(6, 24), B],
        ),
    ],
    SplitTransposed: [
        ("a line", upsampled, [torch.randn(2, 4, 9)]),
        ("an image", upsampled_image, [torch.randn(2, 4, 5, 7)]),
    ],
    UnfoldPatches: [
        ("halves", patches, [torch.randn(2, 3, 6, 4), torch.randn(5, 3, 2, 2), torch.randn(5)])
    ],
}
# Values for the attributes that the patterns of rules leave open.
ATTRS: dict[type[Pass], dict[str, list[Any]]] = {
    FuseActivation: {
        "half": [0.5], "one": [1.0, 1], "power": [3.0, 3], "coefficient": [0.044715],
        "inner": [math.sqrt(2), math.sqrt(0.5), math.sqrt(2 / math.pi)],
    },
    UnfoldPatches: {
        "stride": [(2, 2), (3, 3)], "padding": [(0, 0)], "dilation": [(1, 1)], "groups": [1],
    },
}  # fmt: skip

WITH_CONSTANTS = (
    *(FactorLowRank, FoldConstants, KeepQuantized, MergeFactors, MergeLinears),
    *(QuantizeWeights, RecognizeQuantized, SplitTransposed),
)


def programs(cls: type[Pass], drawn: tuple[torch.dtype, ...] = NARROW) -> list[Program]:
    """The examples of a pass as families."""
    found = []
    for name, build, inputs in EXAMPLES[cls]:
        has_constants = cls in WITH_CONSTANTS
        given = (torch.float32,) if has_constants else drawn
        kept = CONSTS if has_constants else {}
        halves = {t.dtype for t in inputs} & {torch.bfloat16, torch.float16}
        found.append(Program.like(build, inputs, tuple(halves) or given, name, kept))
    return found
