"""Points of the roofline: how often, how much, and what limits each of them."""

from __future__ import annotations

import pytest
import torch

from infopt.compiler.roofline import _decades, describe, points_of, roofline
from infopt.compiler.target import Target
from infopt.compiler.testing import graph_of

MACHINE = Target.parse("cpu:avx2,cores=2")  # 192 GFLOP/s in f32, 30 GB/s, 2 us to start a step


def test_what_limits_an_operation() -> None:
    def build(o, x, w, small):
        return o.linear(x, w), o.add(x, x), o.add(small, small)

    inputs = [torch.randn(1024, 1024), torch.randn(1024, 1024), torch.randn(8)]
    points = points_of(graph_of(build, inputs), MACHINE)
    assert [(p.name, p.bound) for p in points] == [
        ("linear", "compute"), ("add.Tensor", "memory"), ("add.Tensor", "start"),
    ]  # fmt: skip
    product, large, small = points
    assert product.flops == 2 * 1024**3 and product.bytes == 3 * 4 * 1024**2
    assert product.seconds == pytest.approx(2 * 1024**3 / 192e9 + 2e-6)
    assert large.seconds == pytest.approx(2 * 4 * 1024**2 / 30e9 + 2e-6)
    assert small.intensity == 8 / (2 * 4 * 8)


def test_equal_operations_are_one_point() -> None:
    points = points_of(graph_of(lambda o, x: o.exp(o.exp(x)), [torch.randn(64)]), MACHINE)
    (point,) = points
    assert point.count == 2 and point.gflops == pytest.approx(2 * point.flops / point.seconds / 1e9)
    assert describe(point).startswith("2 x exp in f32: ")
    assert describe(point).endswith(", limited by start")
    assert roofline([], MACHINE) == "" and roofline(points, MACHINE).count("<circle") == 1


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [(0.5, 20.0, (-1, 2)), (1.0, 10.0, (0, 1)), (3.0, 3.0, (0, 1)), (10.0, 10.0, (1, 2))],
)
def test_axes_end_at_powers_of_ten(low: float, high: float, found: tuple[int, int]) -> None:
    assert _decades(low, high) == found
