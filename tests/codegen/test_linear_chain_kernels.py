"""Chains of linear layers against torch in float64, on every level this machine runs."""

from itertools import pairwise

import pytest
import torch

from infopt.codegen.kernels.chain_calls import panels_of_task, widest_panels
from infopt.compiler.types import TensorType
from tests.codegen.product_kernels import (
    ACTIVATIONS,
    BF16,
    F16,
    F32,
    NAME,
    ROW,
    assert_close,
    ceil_div,
    guarded,
    linear_scratch,
    random,
)

COMBINATIONS = [(F32, F32), (F32, F16), (BF16, BF16), (BF16, F32)]
combinations = pytest.mark.parametrize(
    "held,weight", COMBINATIONS, ids=[f"{NAME[h]}_{NAME[w]}" for h, w in COMBINATIONS]
)


def run(kernels, m, widths, held, weight, *, x=F32, out=F32, bias=None, residual=None, panels=2,
        activations=(), gated=""):  # fmt: skip
    """One chain through these widths with dtypes of its optional operands, and what is expected.

    gated: whether the second product is a gate, of what reads the same factor or one of its "own"
    """
    count = len(widths) - 1
    activations = [*activations, *[0] * (count - len(activations))]
    rows = random(m, widths[0] + 3, dtype=x, offset=1)[:, : widths[0]]
    weights = [factor(n, k, weight) for k, n in pairwise(widths)]
    up0 = factor(widths[1], widths[0] + 3, weight)[:, : widths[0]] if gated == "own" else None
    up1 = factor(widths[2], widths[1], weight) if gated else None
    up_bias = random(widths[2], dtype=bias, offset=1) if gated and bias else None
    biases = [random(n, dtype=bias, offset=1) if bias else None for n in widths[1:]]
    n = widths[-1]
    added = random(m, n + 1, dtype=residual, offset=1)[:, :n] if residual else None
    wide, check = guarded(m, n + 5, dtype=out, offset=1)
    types = [TensorType.of(w) for w in weights]
    even, odd = (size * panels for size in widest_panels(widths[0], types, held.itemsize))
    beside = widest_panels(widths[0], types[:2], held.itemsize)[1] * panels if gated == "own" else 0
    numbers = [m, widths[0], count, panels, ROW[x], rows.stride(0), ROW[out], n + 5]
    numbers += [ROW.get(residual, 0), n + 1, ROW.get(bias, 0), even, even + odd + beside]
    numbers += [up0.stride(0) if gated == "own" else 0, even + odd]
    for w, activation in zip(weights, activations, strict=True):
        numbers += [w.shape[0], w.stride(0), activation]
    operands = [t for pair in zip(weights, biases, strict=True) for t in pair]
    kernels.run(
        f"linear_chain_{NAME[held]}_{NAME[weight]}",
        [rows, added, wide[:, :n], up0, up1, up_bias, *operands],
        numbers,
        ceil_div(ceil_div(m, 16), panels),
        even + odd + beside + linear_scratch(max(widths[:-1]), panels, bool(gated)),
    )
    check()
    assert wide[:, n:].isnan().all(), "wrote into the gap between rows"
    dots = held is BF16 and kernels.level.startswith(("avx512_bf16", "amx"))
    first = y = rows.to(held).double()

    def product(x, w, b):
        y = x.to(held).double() @ (w.to(BF16) if dots else w).double().T
        return y if b is None else y + b.double()

    for i, (w, b, activation) in enumerate(zip(weights, biases, activations, strict=True)):
        multiplied = 1.0
        if gated and i == 1:
            read = y if up0 is None else product(first, up0, None)
            multiplied = product(read, up1, up_bias)
        y = ACTIVATIONS[activation](product(y, w, b)) * multiplied
        if i + 1 < count:
            y = y.to(held).double()
    return wide[:, :n], y if added is None else y + added.double()


def factor(n, k, dtype):
    """A weight with gaps between its rows."""
    return (random(n, k + 1, dtype=F32) / k**0.5).to(dtype)[:, :k]


def assert_near(found, expected, held, out, k):
    """As one product where operands are f32; a bf16 between two products may be rounded to either
    side of a tie, a step that the products behind it carry on."""
    if held is F32:
        return assert_close(found, expected, out, 4 * k)
    error = (found.double() - expected).norm() / expected.norm()
    assert error < (4e-3 if out is BF16 else 2e-3), f"off by {error:.2g}"
    assert_close(found, expected, out, k + 2**15)  # within 2^-8 each, however many agree


@combinations
def test_odd_sizes(kernels, held, weight):
    torch.manual_seed(1)
    for m, widths in (
        (1, (1, 1, 1)),
        (17, (33, 2, 31)),
        (40, (16, 3, 95)),
        (33, (31, 9, 127, 5, 31)),
        (96, (64, 16, 48, 1, 17)),
        (15, (7, 5, 3, 2)),
    ):
        for panels in (1, 2, 8):
            found, expected = run(kernels, m, widths, held, weight, panels=panels)
            assert_near(found, expected, held, F32, max(widths))


@combinations
def test_products_beyond_one_cut(kernels, held, weight):
    torch.manual_seed(2)
    found, expected = run(kernels, 50, (1100, 60, 2100, 70, 100), held, weight, panels=3)
    assert_near(found, expected, held, F32, 2100)


@combinations
@pytest.mark.parametrize("out", [F32, BF16], ids=NAME.get)
def test_epilogues(kernels, held, weight, out):
    torch.manual_seed(3)
    for activation in range(len(ACTIVATIONS)):
        given = {"bias": F32, "activations": (0, activation), "residual": out, "out": out}
        found, expected = run(kernels, 37, (40, 12, 50, 8, 40), held, weight, x=out, **given)
        assert_near(found, expected, held, out, 50)


@combinations
@pytest.mark.parametrize("gated", ["shared", "own"])
def test_gates(kernels, held, weight, gated):
    torch.manual_seed(5)
    for m, widths in ((1, (1, 1, 1)), (37, (40, 13, 50, 9, 40)), (50, (1100, 60, 2100, 70, 100))):
        for panels in (1, 3):
            given = {"bias": F32, "activations": (0, 4), "residual": F32, "panels": panels}
            found, expected = run(kernels, m, widths, held, weight, **given, gated=gated)
            assert_near(found, expected, held, F32, max(widths))


def test_what_lies_behind_a_task_does_not_matter(kernels):
    """A row's bytes are the same whatever else a task holds."""
    for held, weight in COMBINATIONS:
        torch.manual_seed(4)
        whole, _ = run(kernels, 70, (20, 4, 33, 4, 20), held, weight, panels=8)
        torch.manual_seed(4)
        parts, _ = run(kernels, 70, (20, 4, 33, 4, 20), held, weight, panels=1)
        assert torch.equal(whole, parts)


def test_panels_of_a_task():
    """As many as memory allows, and as few as keep all cores busy."""
    assert panels_of_task(256, 8, 1 << 10, 2) == 8
    assert panels_of_task(256, 8, 1 << 18, 2) == 4
    assert panels_of_task(256, 8, 1 << 21, 2) == 2
    assert [panels_of_task(n, 8, 1, 2) for n in (1, 4, 8, 12, 16)] == [1, 2, 4, 2, 8]
