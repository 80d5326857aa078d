"""Pointwise regions as Triton kernels: torch's values bit by bit, for every dtype and layout."""

import pytest
import torch
import torch.nn.functional as F

from infopt.runtime.plan import LaunchStep
from tests.codegen.test_regions import CLOSE, EXACT, FLOATS, INTS, possible, values
from tests.codegen.traced import bits_equal, compare, ulps

pytest.importorskip("triton")
from tests.gpu.interpreted import check, lowered_of, program_of

# The interpreter multiplies and adds in two roundings, where GPUs and torch's loops have one.
TWO_ROUNDINGS = ("addcmul", "sub alpha")


@pytest.mark.parametrize("dtype", [*FLOATS, *INTS, torch.bool], ids=str)
def test_every_dtype_bit_by_bit(dtype):
    a, b = values(dtype), values(dtype).flip(0)
    table = possible(EXACT, a, b)
    made = program_of(lambda a, b: tuple(f(a, b) for f in table.values()), (a, b))
    for name, found in zip(table, made([a, b]), strict=True):
        expected = table[name](a, b)
        if name in TWO_ROUNDINGS and dtype.is_floating_point:
            torch.testing.assert_close(found, expected, equal_nan=True)
        else:
            assert bits_equal(found, expected), f"{name}: {found} instead of {expected}"
    launches = [s for s in made.plan.steps if isinstance(s, LaunchStep)]
    assert len(launches) > 3 * (len(made.plan.steps) - len(launches))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_functions_within_two_steps(dtype):
    a, b = values(dtype), values(dtype).flip(0)
    made = program_of(lambda a, b: tuple(f(a, b) for f in CLOSE.values()), (a, b))
    for name, found in zip(CLOSE, made([a, b]), strict=True):
        expected = CLOSE[name](a, b)
        same = (found - expected).abs()
        near = bool((same[same.isfinite()] <= torch.finfo(dtype).eps * 8).all())
        finite = a.isfinite()  # torch's gelu of infinity is NaN
        nan = torch.equal(found[finite].isnan(), expected[finite].isnan())
        assert ulps(found, expected) <= 2 or (near and nan), (
            f"{name}: {found} instead of {expected}"
        )


@pytest.mark.parametrize("source", [*FLOATS, *INTS, torch.bool], ids=str)
def test_conversions(source):
    targets = [*FLOATS, *INTS, torch.bool]
    if source.is_floating_point:
        x = torch.tensor([0.0, -0.0, 1.5, -1.5, 127.9, -3.99, 100.0, -100.0]).to(source)
    else:
        x = values(source)
    targets = [t for t in targets if t is not torch.uint8 or not source.is_floating_point]
    check(lambda x: tuple(x.to(t) for t in targets), x)


def test_promotion():
    f, i, h = torch.randn(7), torch.randint(-5, 5, (7,)), torch.randn(7).bfloat16()
    check(
        lambda f, i, h: (f + i, i * f, h + f, i + h, i / 2, i * 0.5, h * i, i > 0.5, h < f, i == f),
        f,
        i,
        h,
    )


def test_broadcasting_and_views():
    x, y, z = torch.randn(3, 4, 5), torch.randn(5), torch.randn(3, 1, 5)
    check(lambda x, y, z: (x + y) * z - x.transpose(0, 1).transpose(0, 1), x, y, z)
    check(lambda x: x + x.transpose(0, 2).contiguous().transpose(0, 2), x)
    check(lambda x: (x * 2).transpose(0, 1).unsqueeze(1) + 1, x)
    check(lambda x: (x * 3)[1:] + (x * 3)[:-1], x)
    m = torch.randn(6, 6)
    check(lambda m: (m + 1) * (m + 1).t() + (m.t() * 2), m)
    check(lambda m: (m + 1).expand(3, 6, 6) * 2, m)
    check(lambda m: (m * 2).t().reshape(4, 9) + 1, m)
    check(lambda m: torch.cat([m, m + 1], 1), m)
    check(lambda m: F.pad(m * 2, (1, 2)), m)
    check(lambda s: s * 2 + 1, torch.tensor(3.0))


def test_a_region_larger_than_a_tile():
    x, y = torch.randn(3, 5000), torch.randn(5000)
    check(lambda x, y: (x + y, x.t() * 2), x, y)


def test_equal_regions_are_one_kernel():
    def f(x, y):
        for _ in range(4):
            x = torch.cumsum((x * 2 + 1).tanh() @ y, 0)
        return x

    made = lowered_of(f, (torch.randn(5, 8), torch.randn(8, 8)))
    regions = [k for k in made.kernels if k.launch.entry != "product_tiles"]
    assert len(regions) == 1 and "tanh" in regions[0].launch.source


def test_kinds_of_loops_do_not_matter_here():
    x, i = torch.randn(300), torch.randint(0, 9, (300,))
    made = check(lambda x, i: x.exp() * (i + 1) + i.sin(), x, i, most_ulps=3)
    assert len(made.plan.steps) == 1


def test_fills_counts_and_sizes():
    x = torch.randn(4, 5)

    def f(x):
        n = torch.arange(5)
        causal = torch.arange(4).unsqueeze(1) >= n
        return x.masked_fill(~causal, -1), n, torch.full((2, 3), 7), torch.arange(2, 9, 3)

    check(f, x)
    g = lambda x: x + torch.arange(x.shape[1], dtype=torch.float32) * x.shape[0]  # noqa: E731
    made = program_of(g, (x,), dynamic=True)
    for shape in ((2, 3), (7, 33), (30, 5)):
        compare(made, g, (torch.randn(shape),))


def test_sizes_below_and_above_a_tile_of_one_program():
    def f(x, y):
        return (x + y).relu() * 2, (x * y).transpose(0, 1) + 1

    made = program_of(f, (torch.randn(5, 6, 7), torch.randn(6, 7)), dynamic=True)
    for a, b, c in ((2, 3, 4), (9, 6, 7), (5, 2, 3), (3, 20, 100)):
        compare(made, f, (torch.randn(a, b, c), torch.randn(b, c)))
