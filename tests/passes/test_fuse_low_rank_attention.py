"""fuse-low-rank-attention: rewrites, declines, accuracy, idempotence, gain."""

import pytest
import torch
import torch.nn.functional as F

import infopt
from infopt.codegen.kernels.attention import attention
from infopt.codegen.kernels.low_rank_attention import low_rank_attention
from infopt.compiler.pipeline import PassContext, Pipeline
from infopt.compiler.report import Report
from infopt.compiler.settings import Settings
from infopt.compiler.target import Target
from infopt.compiler.testing import check_pass, graph_of, run_pass
from infopt.passes.fuse_low_rank_attention import FuseLowRankAttention

T, R, HEADS, DEPTH = 40, 16, 4, 16
X = torch.randn(2, T, 64)
DOWNS = [torch.randn(R, 64) / 8 for _ in range(3)]
UPS = [torch.randn(HEADS * DEPTH, R) / 4 for _ in range(3)]
BIASES = [torch.randn(HEADS * DEPTH) for _ in range(3)]
MASK = torch.rand(2, 1, 1, T) > 0.2
INPUTS = [X, *DOWNS, *UPS]
PLAIN = {"scale": 0.25, "causal": False, "window": 0}


def heads(o, x, count=HEADS):
    return o.permute(o.reshape(x, [*x.shape[:2], count, -1]), [0, 2, 1, 3])


def factored(o, x, *weights, biases=(None, None, None), mask=None, attrs=PLAIN):
    downs, ups = weights[:3], weights[3:6]
    rows = [
        heads(o, o.linear(o.linear(x, a), b, c), b.shape[0] // DEPTH)
        for a, b, c in zip(downs, ups, biases, strict=True)
    ]
    return o.call(attention, *rows, mask, **attrs)


def fused(o, x, *weights, biases=(None, None, None), mask=None, attrs=PLAIN):
    downs, ups = weights[:3], weights[3:6]
    factors = [o.linear(x, a) for a in downs]
    counts = {"heads": ups[0].shape[0] // DEPTH, "kv_heads": ups[1].shape[0] // DEPTH}
    return o.call(low_rank_attention, *factors, *ups, *biases, mask, **counts, **attrs)


def with_rest(build):
    return lambda o, x, *rest: build(o, x, *rest[:6], biases=rest[6:9], mask=rest[9])


CASES = {
    "plain": (factored, fused, INPUTS),
    "biases and a mask": (with_rest(factored), with_rest(fused), [*INPUTS, *BIASES, MASK]),
    "shared keys": (
        factored,
        fused,
        [X, *DOWNS, UPS[0], *(up[: 2 * DEPTH].clone() for up in UPS[1:])],
    ),
    "causal": (
        lambda o, *a: factored(o, *a, attrs=PLAIN | {"causal": True}),
        lambda o, *a: fused(o, *a, attrs=PLAIN | {"causal": True}),
        INPUTS,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rewrites(name: str) -> None:
    check_pass(FuseLowRankAttention(), *CASES[name])


def read_twice(o, *a):
    made = factored(o, *a)
    return made, o.relu(made.args[1])


def one_whole(o, x, *weights):
    made = factored(o, x, *weights)
    values = heads(o, o.linear(x, o.cat([weights[5]] * 4, 1)))
    return o.call(attention, *made.args[:2], values, **PLAIN)


def wide(o, x, *weights):
    return factored(
        o, x, *(o.cat([w] * 4, 0) for w in weights[:3]), *(o.cat([w] * 4, 1) for w in weights[3:])
    )


DECLINED = {
    "k is read elsewhere too": read_twice,
    "v is no product of a thin factor": one_whole,
}


@pytest.mark.parametrize("reason", DECLINED)
def test_declines(reason: str) -> None:
    graph = graph_of(DECLINED[reason], INPUTS, FuseLowRankAttention())
    result, report = run_pass(FuseLowRankAttention(), graph)
    assert result is graph
    assert any(reason in site.reason for site in report.declined)


def test_rows_of_full_rank_are_left_alone() -> None:
    """Nothing thin, nothing to say."""
    graph = graph_of(wide, INPUTS, FuseLowRankAttention())
    result, report = run_pass(FuseLowRankAttention(), graph)
    assert result is graph and not report.sites


def test_declines_where_it_does_not_pay() -> None:
    """On a GPU every block of queries rebuilds keys and values again."""
    many = torch.randn(2, 8192, 64)
    graph = graph_of(factored, [many, *INPUTS[1:]], FuseLowRankAttention())
    report = Report()
    ctx = PassContext(Target.parse("cuda:sm90"), (), report, Settings(check=0))
    result = Pipeline([FuseLowRankAttention()], alone=True).run(graph, ctx)
    [site] = report.passes[0].declined
    assert result is graph and site.gain < 0
    assert "it does not pay: one op takes" in site.reason and "as it is" in site.reason


def test_accuracy() -> None:
    _, report = run_pass(
        FuseLowRankAttention(),
        graph_of(factored, INPUTS, FuseLowRankAttention()),
        [tuple(INPUTS)],
    )
    assert len(report.applied) == 1


def test_idempotence() -> None:
    once, _ = run_pass(FuseLowRankAttention(), graph_of(factored, INPUTS, FuseLowRankAttention()))
    assert run_pass(FuseLowRankAttention(), once)[0] is once


def test_gain() -> None:
    graph = graph_of(factored, INPUTS, FuseLowRankAttention())
    _, report = run_pass(FuseLowRankAttention(), graph)
    assert all(site.gain > 0 for site in report.applied)


class Factored(torch.nn.Module):
    def __init__(self, width: int = 128, rank: int = 32) -> None:
        super().__init__()
        self.down = torch.nn.ModuleList(torch.nn.Linear(width, rank, bias=False) for _ in range(3))
        self.up = torch.nn.ModuleList(torch.nn.Linear(rank, width) for _ in range(3))

    def forward(self, x):
        made = [b(a(x)) for a, b in zip(self.down, self.up, strict=True)]
        q, k, v = (y.view(*x.shape[:2], 4, -1).transpose(1, 2) for y in made)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("compute", [None, "bf16"])
def test_a_model_keeps_its_bits_in_less_memory(compute: str | None) -> None:
    torch.manual_seed(0)
    net, x = Factored().eval(), torch.randn(8, 256, 128)
    with torch.no_grad():
        found = infopt.compile(net, (x,), compute=compute)
        plain = infopt.default_passes(remove=["fuse-low-rank-attention"], compute=compute)
        apart = infopt.compile(net, (x,), passes=plain)
        assert torch.equal(found(x), apart(x))
        assert found.report.memory["arena"] < 0.7 * apart.report.memory["arena"]
        open_length = infopt.compile(
            net, (x,), compute=compute,
            dynamic_shapes=({1: torch.export.Dim("t", min=17, max=99)},),
        )  # fmt: skip
        for tokens in (17, 64, 99):
            given = torch.randn(8, tokens, 128)
            torch.testing.assert_close(open_length(given), net(given), rtol=2e-2, atol=2e-2)
