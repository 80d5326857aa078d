"""Order, the first of it, counts and values put by index: bit by bit what torch gives."""

import pytest
import torch

from infopt.codegen.build import find_compiler
from tests.codegen.traced import flat, graph_of, lowered, program_of

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")
DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8], ids=str
)
put = torch.ops.aten.index_put.default


def same(f, *args):
    """f compiled for open sizes is all native, and equal to f in every bit."""
    run = program_of(f, args, dynamic=True)
    assert all(type(step).__name__ == "NativeStep" for step in run.plan.steps), run.plan.steps
    for found, wanted in zip(run(list(args)), flat(f(*args)), strict=True):
        assert (found.dtype, found.stride()) == (wanted.dtype, wanted.stride())
        assert torch.equal(found.nan_to_num(7), wanted.nan_to_num(7))


def reason(f, *args):
    return " ".join(lowered(graph_of(f, args)).report.reasons.values())


@DTYPES
def test_order_and_the_first_of_it(dtype):
    x = (torch.rand(3, 4, 130) * 20).to(dtype)  # of integers many are equal
    if dtype.is_floating_point:
        x[0, 1, 5], x[1, 0, 7], x[0, 1, 9] = float("nan"), -float("inf"), float("nan")

    def ordered(x):
        turned = x.transpose(0, 2)
        return (
            *x.sort(-1),
            *torch.sort(x, dim=-1, stable=True, descending=True),
            *turned.sort(0, descending=True),
            *torch.sort(x[0], dim=1, stable=True),
        )

    def firsts(x):
        return (
            *x.topk(2),  # few of many, and as torch does it otherwise
            *x.topk(4, largest=False),
            x.topk(3, dim=1)[1],
            x.transpose(0, 2).topk(5, dim=0, sorted=False)[0],
        )

    same(ordered, x)
    same(firsts, x)


def test_counts():
    for n in (5, 1000):
        x = torch.randint(-1, 9, (n,)).float()
        x[2] = float("nan")
        spread = x + torch.rand(n)
        same(lambda x: torch.histc(x, bins=8, min=0, max=7), x)
        same(lambda x: torch.histc(x[::2], bins=100, min=-0.3, max=6.7), spread)
        same(lambda x: torch.histc(x, 4, 0, 3).cumsum(0, dtype=torch.int32), x)
    assert "parts of the range" in reason(lambda x: torch.histc(x.abs(), 4), torch.rand(9))


def test_values_put_by_index():
    for n in (5, 300):
        x, places = torch.randn(n), torch.randperm(n)
        same(lambda p: put(torch.empty_like(p), [p], torch.arange(p.shape[0])), places)
        same(lambda x, p: put(x, [p], x * 2), x, places)
        same(lambda x, p: put(torch.zeros(x.shape[0], 6), [p], x[:, None]), x, places)
        same(lambda x, p: put(torch.zeros(3, x.shape[0], 6), [None, p], x[:1]), x, places)
    y, i, j = torch.randn(4, 6, 5), torch.tensor([[0, -1], [2, 1]]), torch.tensor([3, 1])
    same(lambda y, i, j: put(y, [i, j], y[0, 0] * 3), y, i, j)
    same(lambda y, i, j: put(y, [i, None, j], y[0, :, 0] * 3), y, i, j)
    same(lambda y, j: put(y.transpose(0, 2), [j], y[0, :, :4] * 2), y, j)
    same(lambda y, j: put(y, [j[:1].expand(3)], y[:3]), y, j)  # the last of several stays
    assert "added" in reason(lambda y, j: put(y, [j], y[:2], True), y, j)


def test_rows_picked_by_index():
    y, i, j = torch.randn(4, 6, 5), torch.tensor([[0, -1], [2, 1]]), torch.tensor([3, 1])
    same(lambda y, i, j: (y[i], y[i, :, j], y[:, j], y.transpose(0, 2)[j], y[j][..., ::2]), y, i, j)
    wide = torch.randn(9, 5000)  # rows that several tasks share
    same(lambda y, j: y[j], wide, j)


def test_a_place_outside_is_an_error():
    run = program_of(lambda x, p: put(x, [p], x), (torch.randn(4), torch.arange(4)))
    with pytest.raises(IndexError, match="index out of bounds"):
        run([torch.randn(4), torch.tensor([0, 1, 4, 2])])
