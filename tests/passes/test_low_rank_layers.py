"""Which layers could be two thin products, of which ranks, and which are one already."""

from __future__ import annotations

import pytest
import torch

from infopt.codegen.kernels.linear import gated_linear
from infopt.compiler.graph import Graph
from infopt.compiler.infer import Builder
from infopt.compiler.pipeline import PassContext
from infopt.compiler.target import Target
from infopt.compiler.testing import graph_of
from infopt.compiler.types import TensorType
from infopt.passes import low_rank_layers
from infopt.passes.low_rank_layers import LowRankLayers, is_second_factor

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


def constants(build, *shapes, dtype=torch.float32, **more) -> LowRankLayers:
    """Of build(o, x, *weights) over constants w0, w1, ..."""
    o, consts = Builder(), {f"w{i}": torch.ones(s, dtype=dtype) for i, s in enumerate(shapes)}
    x = o.input("x", TensorType.dense((3, shapes[0][1]), dtype))
    nodes = [o.const(n, TensorType.of(w)) for n, w in consts.items()]
    graph = Graph((x,), (build(o, x, *nodes),), consts | more)
    return LowRankLayers(graph, PassContext(Target.parse("cpu:scalar")))


def of_last(layers: LowRankLayers):
    return layers.graph.outputs[0]


def linear(o, x, w):
    return o.linear(x, w)


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ((64, 64), torch.float32, ""),
        ((64, 64), torch.float64, ""),
        ((63, 65), torch.float32, "63 x 65 is too small to pay"),
        ((64, 64), torch.int64, "it computes in torch.int64"),
    ],
)
def test_which_layers_could_be_thin(shape, dtype, reason) -> None:
    layers = constants(linear, shape, dtype=dtype)
    assert layers.refusal(of_last(layers)) == reason


def test_gate_and_up_count_together() -> None:
    layers = constants(lambda o, x, a, b: o.call(gated_linear, x, a, b), (32, 64), (32, 64))
    assert layers.shape(of_last(layers)) == (64, 64) and layers.refusal(of_last(layers)) == ""


def test_a_weight_that_others_read_stays() -> None:
    layers = constants(lambda o, x, w: o.add(o.linear(x, w), o.sum(w)), (64, 64))
    product = of_last(layers).args[0]
    assert layers.refusal(product).startswith("its weight is also read by aten.sum")


def test_a_rank_is_a_share_of_the_least_side() -> None:
    layers = constants(linear, (64, 100))
    ranks = [layers.rank(of_last(layers), share) for share in (0.25, 0.5, 0.001, 1.0)]
    assert ranks == [16, 32, 1, 64]


def test_ranks_that_save_no_numbers_do_not_pay() -> None:
    layers = constants(linear, (96, 96))
    told = "rank 48 does not pay: 9216 numbers in two factors, 9216 in one"
    assert layers.profit(of_last(layers), 48) == (told, None)


def test_two_products_that_take_longer_do_not_pay(monkeypatch) -> None:
    for least, pays in ((1.9e-6, True), (2e-6, False)):

        def seconds(node, target, dims, least=least):
            return 2e-6 if node.args[1].shape == (96, 96) else least / 2

        monkeypatch.setattr(low_rank_layers, "node_seconds", seconds)
        layers = constants(linear, (96, 96))
        reason, gain = layers.profit(of_last(layers), 8)
        assert gain == pytest.approx(2e-6 - least, abs=1e-12)
        wanted = "rank 8 does not pay: two products take 2 us, one takes 2 us"
        assert reason == ("" if pays else wanted)


def test_factors_take_names_that_are_free() -> None:
    layers = constants(linear, (64, 64), w0_rank1_a=torch.ones(2))
    layers.replacement(of_last(layers), 1)
    assert sorted(layers.tensors) == ["w0_rank1_a_", "w0_rank1_b"]
