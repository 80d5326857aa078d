"""Costs of every kind of op, counted by hand: work and bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from infopt.codegen.kernels.attention import attention
from infopt.codegen.kernels.attention_sinks import attention_sinks
from infopt.codegen.kernels.linear import gated_linear, linear_act
from infopt.codegen.kernels.ragged import ragged_attention
from infopt.compiler.cost import Cost, cost_of, node_seconds, seconds
from infopt.compiler.infer import Builder
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType

F32, I64 = torch.float32, torch.int64


def given(o: Builder, *shapes: tuple[int, ...], dtype: torch.dtype = F32) -> list[Any]:
    return [o.input(f"i{dtype}{i}", TensorType.dense(s, dtype)) for i, s in enumerate(shapes)]


def embedding(o: Builder) -> Any:
    (table,), (ids,) = given(o, (1000, 8)), given(o, (2, 3), dtype=I64)
    return o.call("aten.embedding.default", table, ids)


def index_select(o: Builder) -> Any:
    (table,), (ids,) = given(o, (1000, 8)), given(o, (5,), dtype=I64)
    return o.call("aten.index_select.default", table, 0, ids)


def transposed(o: Builder) -> Any:
    x, w = given(o, (1, 4, 5, 5), (4, 3, 2, 2))
    return o.call("aten.convolution.default", x, w, None, [1, 1], [0, 0], [1, 1], True, [0, 0], 1)


def plain(o: Builder) -> Any:
    x, w = given(o, (1, 4, 5, 5), (6, 2, 3, 3))
    return o.call("aten.convolution.default", x, w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 2)


def called(op: Any, *shapes: tuple[int, ...], **attrs: Any) -> Callable[[Builder], Any]:
    return lambda o: o.call(op, *given(o, *shapes), **attrs)


def ragged(o: Builder) -> Any:
    (starts,) = given(o, (3,), dtype=I64)
    return o.call(ragged_attention, *given(o, *[(9, 4, 8)] * 3), starts, longest=6, scale=1.0)


def several(o: Builder) -> Any:
    return o.call("aten.topk.default", *given(o, (4, 9)), 3)


QKV = (2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 6)
SCORES = 2 * 3 * 5 * 7
# what is called: floating point operations, numbers of four bytes read and written
CASES: dict[str, tuple[Callable[[Builder], Any], int, float]] = {
    "mv": (called("aten.mv.default", (5, 7), (7,)), 2 * 5 * 7, 35 + 7 + 5),
    "bmm": (called("aten.bmm.default", (2, 3, 5), (2, 5, 7)), 2 * 2 * 3 * 7 * 5, 30 + 70 + 42),
    "dot": (called("aten.dot.default", (9,), (9,)), 2 * 9, 9 + 9 + 1),
    "addmm": (
        called("aten.addmm.default", (7,), (3, 5), (5, 7)), 3 * 7 * (2 * 5 + 2), 7 + 15 + 35 + 21
    ),
    "baddbmm": (
        called("aten.baddbmm.default", (2, 3, 7), (2, 3, 5), (2, 5, 7)),
        2 * 3 * 7 * (2 * 5 + 2), 42 + 30 + 70 + 42,
    ),
    "attention of torch": (
        called("aten.scaled_dot_product_attention.default", *QKV),
        SCORES * (2 * 8 + 2 * 6 + 16), 240 + 336 + 252 + 180,
    ),
    "attention": (
        called(attention, *QKV, scale=0.5),
        SCORES * (2 * 8 + 2 * 6 + 16), 240 + 336 + 252 + 180,
    ),
    "attention in a window": (
        called(attention, *QKV, scale=0.5, causal=True, window=3),
        2 * 3 * 5 * 3 * (2 * 8 + 2 * 6 + 16), 240 + 336 + 252 + 180,
    ),
    "attention with sinks": (
        called(attention_sinks, *QKV, (3,), scale=0.5),
        SCORES * (2 * 8 + 2 * 6 + 16), 240 + 336 + 252 + 3 + 180,
    ),
    "a linear layer and its sum": (
        called(linear_act, (3, 4), (6, 4), (6,), (3, 6)), 2 * 3 * 24, 12 + 24 + 6 + 18 + 18
    ),
    "rows of several dims": (
        called(linear_act, (3, 5, 4), (6, 4)), 2 * 16 * 24, 60 + 24 + 90
    ),
    "two products": (
        called(gated_linear, (3, 4), (6, 4), (6, 4)), 2 * 3 * 24 * 2, 12 + 24 + 24 + 18
    ),
    "a convolution in groups": (plain, 2 * (6 * 25) * (2 * 9), 100 + 108 + 150),
    "a transposed convolution": (transposed, 2 * 100 * (3 * 4), 100 + 48 + 3 * 36),
    "rows of a table": (embedding, 6 * 8, 2 * 48 + 6 * 2),
    "selected rows": (index_select, 5 * 8, 2 * 40 + 5 * 2),
    "sequences side by side": (ragged, 9 * 4 * 6 * (2 * 8 + 2 * 8 + 16), 4 * 9 * 32 + 3 * 2),
    "several results": (several, 36, 36 + 12 + 12 * 2),
    "broadcast": (called("aten.add.Tensor", (4, 6), (6,)), 24, 24 + 6 + 24),
    "the same twice": (lambda o: o.mul(*given(o, (4, 6)) * 2), 24, 24 + 24),
    "a sum": (lambda o: o.sum(*given(o, (4, 6))), 24, 24 + 1),
    "rms": (lambda o: o.call("rms_norm", *given(o, (4, 6), (6,)), eps=1e-6), 6 * 24, 24 + 6 + 24),
    "log": (lambda o: o.log(*given(o, (4, 6))), 12 * 24, 48),
    "erf": (lambda o: o.erf(*given(o, (4, 6))), 15 * 24, 48),
    "sigmoid": (lambda o: o.sigmoid(*given(o, (4, 6))), 14 * 24, 48),
    "cos": (lambda o: o.cos(*given(o, (4, 6))), 15 * 24, 48),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_counted_by_hand(case: str) -> None:
    build, flops, numbers = CASES[case]
    assert cost_of(build(Builder())) == Cost(flops, 4 * numbers, 1)


def test_a_sum_of_costs() -> None:
    assert Cost(1, 20, 300) + Cost(4, 50, 600) == Cost(5, 70, 900)


def test_seconds_of_a_node_are_of_its_own_dtype() -> None:
    target, o = Target.parse("cpu:avx512_bf16,cores=2"), Builder()
    for dtype, peak in ((F32, "f32"), (torch.bfloat16, "bf16"), (torch.float64, "f64")):
        x, w = given(o, (512, 512), (512, 512), dtype=dtype)
        made = o.linear(x, w)
        work = 2 * 512**3 / (target.peak[peak] * 1e9)
        assert node_seconds(made, target) == pytest.approx(work + target.launch_cost)
        assert node_seconds(made, target) == seconds(cost_of(made), target, dtype)
