"""Which layer is the second factor of a product of two."""

from __future__ import annotations

import pytest
import torch

from infopt.codegen.kernels.linear import gated_linear
from infopt.compiler.testing import graph_of
from infopt.passes.low_rank_layers import is_second_factor

X = torch.randn(3, 40)


def last(build, *shapes):
    graph = graph_of(build, [X, *(torch.randn(s) for s in shapes)])
    return graph.outputs[0]


# 24 x 40 has 960 numbers, and so have factors of rank 15
@pytest.mark.parametrize(("rank", "fewer"), [(1, True), (14, True), (15, False), (20, False)])
def test_both_factors_hold_fewer_numbers_than_one_matrix(rank: int, fewer: bool) -> None:
    def two(o, x, a, b):
        return o.linear(o.linear(x, a), b)

    assert is_second_factor(last(two, (rank, 40), (24, rank))) is fewer


def test_two_second_factors_of_one_first() -> None:
    def gated(o, x, a, b, c):
        return o.call(gated_linear, o.linear(x, a), b, c)

    # 48 x 40 against rank (48 + 40): 21 at most
    for rank, fewer in ((21, True), (22, False)):
        node = last(gated, (rank, 40), (24, rank), (24, rank))
        assert is_second_factor(node) is fewer


def test_what_is_no_product_of_two() -> None:
    shapes = (2, 40), (24, 2)
    biased = lambda o, x, a, b, c: o.linear(o.linear(x, a, c), b)  # noqa: E731
    assert not is_second_factor(last(biased, *shapes, (2,)))
    between = lambda o, x, a, b: o.linear(o.relu(o.linear(x, a)), b)  # noqa: E731
    assert not is_second_factor(last(between, *shapes))
    assert not is_second_factor(last(lambda o, x, a: o.linear(x, a), (2, 40)))
    behind = lambda o, x, a, b: o.exp(o.linear(o.linear(x, a), b))  # noqa: E731
    assert not is_second_factor(last(behind, *shapes))
