"""fuse-low-rank: rewrites, declines, accuracy, idempotence, gain."""

from functools import partial

import pytest
import torch

import infopt
from infopt.codegen.kernels.linear import gated_linear, linear_act
from infopt.codegen.kernels.linear_chain import linear_chain, narrow_linear_chain
from infopt.codegen.kernels.narrow_linear import narrow_linear
from infopt.compiler.cost import graph_seconds
from infopt.compiler.pipeline import PassContext, Pipeline
from infopt.compiler.report import Report
from infopt.compiler.target import Target
from infopt.compiler.testing import graph_of
from infopt.passes.fuse_low_rank import FuseLowRank
from tests.compiler.tracing.traced import names

# whether a site pays is another question on every machine
TARGET = "cpu:avx512_bf16,cores=2"
check_pass = partial(infopt.testing.check_pass, target=TARGET)
run_pass = partial(infopt.testing.run_pass, target=TARGET)

BF16 = torch.bfloat16
M = 512  # enough for 16 cores
X = torch.randn(M, 64)
V, U, V2, U2 = (
    torch.randn(n, k) / k**0.5 for n, k in ((8, 64), (96, 8), (12, 96), (64, 12))
)  # fmt: skip
B, B2 = torch.randn(96), torch.randn(64)
INPUTS = [X, V, U, V2, U2, B, B2]


def pair(o, x, v, u, v2, u2, b, b2):
    return o.linear(o.linear(x, v), u, b)


def mlp(o, x, v, u, v2, u2, b, b2):
    hidden = o.call(linear_act, o.linear(x, v), u, b, None, activation="gelu")
    return o.call(linear_act, o.linear(hidden, v2), u2, b2, x, activation="none")


def mlp_fused(o, x, v, u, v2, u2, b, b2):
    functions = ("none", "gelu", "none", "none")
    args = (x, v, u, v2, u2, None, b, None, b2, x)
    return o.call(linear_chain, *args, functions=functions)


def pair_fused(o, x, v, u, v2, u2, b, b2):
    return o.call(linear_chain, x, v, u, None, None, None, b, functions=("none", "none"))


def narrow(o, x, v, u, v2, u2, b, b2):
    first = o.call(narrow_linear, x, v, activation="none", out=BF16)
    return o.call(narrow_linear, first, u, b, activation="silu", out=torch.float32)


def narrow_fused(o, x, v, u, v2, u2, b, b2):
    args = (x, v, u, None, None, None, b)
    given = {"functions": ("none", "silu"), "out": torch.float32}
    return o.call(narrow_linear_chain, *args, **given)


def three(o, *given):
    """The hidden features of the MLP are read twice: its two halves are fused each by itself."""
    x, v, u, v2, u2, b, b2 = given
    hidden = o.linear(o.linear(x, v), u, b)
    return o.linear(o.linear(hidden, v2), u2, b2), o.relu(hidden)


def three_fused(o, *given):
    v2, u2, b2 = given[3], given[4], given[6]
    hidden, plain = pair_fused(o, *given), {"functions": ("none", "none")}
    return o.call(linear_chain, hidden, v2, u2, None, None, None, b2, **plain), o.relu(hidden)


def shared(o, x, v, u, v2, u2, b, b2):
    """A gate and what it multiplies, of one first factor."""
    hidden = o.call(gated_linear, o.linear(x, v), u, u, b, b, activation="gelu")
    return o.call(linear_act, o.linear(hidden, v2), u2, b2, x, activation="none")


def shared_fused(o, x, v, u, v2, u2, b, b2):
    args = (x, v, u, v2, u2, None, b, None, b2, x, None, u, b)
    return o.call(linear_chain, *args, functions=("none", "gelu", "none", "none"))


def gated(o, x, v, u, v2, u2, b, b2):
    """A gate and what it multiplies, each in two factors."""
    gate = o.call(linear_act, o.linear(x, v), u, b, None, activation="silu")
    up = o.linear(o.linear(x, o.relu(v)), o.relu(u))
    return o.linear(o.linear(o.mul(up, gate), v2), u2)


def gated_fused(o, x, v, u, v2, u2, b, b2):
    args = (x, v, u, v2, u2, None, b, None, None, None, o.relu(v), o.relu(u))
    return o.call(linear_chain, *args, functions=("none", "silu", "none", "none"))


def gate_alone(o, x, v, u, v2, u2, b, b2):
    """Read twice, so without the way down."""
    hidden = o.call(gated_linear, o.linear(x, v), u, u, activation="silu")
    return hidden, o.relu(hidden)


def gate_alone_fused(o, x, v, u, v2, u2, b, b2):
    args = (x, v, u, *[None] * 8, u)
    hidden = o.call(linear_chain, *args, functions=("none", "silu"))
    return hidden, o.relu(hidden)


CASES = {
    "a gated mlp": (shared, shared_fused),
    "a gate alone": (gate_alone, gate_alone_fused),
    "two": (pair, pair_fused),
    "an mlp": (mlp, mlp_fused),
    "hidden features read twice": (three, three_fused),
}


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize("case", CASES)
def test_rewrites(case, dtype):
    before, after = CASES[case]
    assert check_pass(FuseLowRank(), before, after, [t.to(dtype) for t in INPUTS]).applied


def test_rewrites_a_gate_of_other_factors():
    assert check_pass(FuseLowRank(), gated, gated_fused, INPUTS).applied


def test_a_gate_that_is_rounded_stays():
    """Its two pairs are fused each by itself, and so is the way down."""
    given = [t.to(BF16) for t in INPUTS]
    found, report = run_pass(FuseLowRank(), graph_of(gated, given, FuseLowRank()))
    assert names(found).count("linear_chain") == 3
    assert [s.reason for s in report.declined] == [
        "gate and up are rounded before they are multiplied"
    ]


def test_rewrites_bf16_products():
    assert check_pass(FuseLowRank(), narrow, narrow_fused, INPUTS).applied


DECLINED = {
    "is read elsewhere too": lambda o, x, v, u, *_: (o.linear(f := o.linear(x, v), u), o.sum(f)),
    "is an output, read elsewhere too": lambda o, x, v, u, *_: (
        o.linear(f := o.linear(x, v), u),
        f,
    ),
    "ends with a residual": lambda o, x, v, u, *_: o.linear(
        o.call(linear_act, x, v, None, o.slice(x, 1, 0, 8), activation="none"), u
    ),
    "weights or biases of several dtypes": lambda o, x, v, u, *_: o.call(
        narrow_linear, o.call(narrow_linear, x, o.to(v, BF16), out=BF16), u, out=torch.float32
    ),
    "rows are too few to share out": lambda o, x, v, u, *_: o.linear(
        o.linear(o.slice(x, 0, 0, 20), v), u
    ),
}


@pytest.mark.parametrize("reason", DECLINED)
def test_declines(reason):
    start = graph_of(DECLINED[reason], INPUTS, FuseLowRank())
    found, report = run_pass(FuseLowRank(), start)
    assert found is start and reason.split(", ")[-1] in report.declined[0].reason


def test_wide_products_are_no_sites():
    wide = torch.randn(96, 64), torch.randn(64, 96)
    graph = graph_of(lambda o, x, w, v: o.linear(o.linear(x, w), v), [X, *wide], FuseLowRank())
    found, report = run_pass(FuseLowRank(), graph)
    assert found is graph and not report.sites


def test_declines_by_cost():
    """More cores than tasks can be shared out to evenly: one by one the products take less."""
    shapes = ((4096, 768), (192, 768), (3072, 192), (192, 3072), (768, 192), (3072,), (768,))
    graph = graph_of(mlp, [torch.empty(s, device="meta") for s in shapes], FuseLowRank())
    for cores, pays in ((2, True), (24, False)):
        ctx = PassContext(Target.parse(f"cpu:avx512,cores={cores}"), (), Report())
        found = Pipeline([FuseLowRank()], alone=True).run(graph, ctx)
        site = ctx.report.passes[0].sites[0]
        assert site.applied is pays and "us, one by one" in site.reason, site
        assert (site.gain > 0) is pays and ("linear_chain" in names(found)) is pays


def test_accuracy():
    for build, _ in CASES.values():
        _, report = run_pass(FuseLowRank(), graph_of(build, INPUTS, FuseLowRank()), [tuple(INPUTS)])
        assert report.applied


def test_idempotent():
    for build, _ in CASES.values():
        once, _ = run_pass(FuseLowRank(), graph_of(build, INPUTS, FuseLowRank()))
        assert run_pass(FuseLowRank(), once)[0] is once


def test_gain():
    graph = graph_of(mlp, INPUTS, FuseLowRank())
    result, report = run_pass(FuseLowRank(), graph)
    target = Target.parse("cpu:avx512")
    assert graph_seconds(result, target) < graph_seconds(graph, target) and report.gain > 0


class Thin(torch.nn.Module):
    def __init__(self, k, rank, n):
        super().__init__()
        self.v, self.u = torch.nn.Linear(k, rank, bias=False), torch.nn.Linear(rank, n)

    def forward(self, x):
        return self.u(self.v(x))


class Gated(torch.nn.Module):
    def __init__(self, k, rank, n, act=torch.nn.functional.silu):
        super().__init__()
        self.gate, self.up, self.down = Thin(k, rank, n), Thin(k, rank, n), Thin(n, rank, k)
        self.act = act

    def forward(self, x):
        return x + self.down(self.act(self.gate(x)) * self.up(x))


@pytest.mark.parametrize("act", [torch.nn.functional.silu, torch.relu])
@pytest.mark.parametrize("compute", [None, "bf16"])
def test_gated_models_in_factors(compute, act):
    """The same bits as one by one, of few rows too."""
    torch.manual_seed(0)
    net, x = Gated(64, 8, 256, act).eval(), torch.randn(2048, 64)
    rows = {"dynamic_shapes": ({0: torch.export.Dim("rows", min=1, max=4096)},)}
    passes = infopt.default_passes(remove=["fuse-low-rank"], compute=compute)
    with torch.no_grad():
        one = infopt.compile(net, (x,), compute=compute, **rows)
        plain = infopt.compile(net, (x,), passes=passes, **rows)
        assert [n for n in names(one.graph) if "linear" in n] == [
            "narrow_linear_chain" if compute else "linear_chain"
        ]
        for count in (1, 8, 9, 100, 1000, 2048):
            given = torch.randn(count, 64)
            assert torch.equal(one(given), plain(given)), count


class Dense(torch.nn.Module):
    """A gated MLP whose weights are of low rank."""

    def __init__(self, k, rank, n):
        super().__init__()
        self.gate, self.up = (torch.nn.Linear(k, n, bias=False) for _ in range(2))
        self.down = torch.nn.Linear(n, k, bias=False)
        with torch.no_grad():
            v = torch.randn(rank, k) / k**0.5
            for layer in (self.gate, self.up):
                layer.weight.copy_(torch.randn(n, rank) / rank**0.5 @ v)
            self.down.weight.copy_(torch.randn(k, rank) @ torch.randn(rank, n) / (rank * n) ** 0.5)

    def forward(self, x):
        return self.down(torch.nn.functional.silu(self.gate(x)) * self.up(x))


@pytest.mark.parametrize("given", [{}, {"compute": "bf16"}, {"dtype": BF16}], ids=str)
def test_gated_models_that_become_factors(given):
    torch.manual_seed(0)
    dtype, compute = given.get("dtype", torch.float32), given.get("compute")
    net, x = Dense(128, 16, 512).eval().to(dtype), torch.randn(2048, 128, dtype=dtype)
    thin = {"low_rank": 0.125, "compute": compute}
    passes = infopt.default_passes(remove=["fuse-low-rank"], **thin)
    rows = {"dynamic_shapes": ({0: torch.export.Dim("rows", min=1, max=4096)},)}
    with torch.no_grad():
        one = infopt.compile(net, (x,), **thin, **rows)
        plain = infopt.compile(net, (x,), passes=passes, **rows)
        assert len([n for n in names(one.graph) if "linear" in n]) == 1
        for count in (1, 8, 9, 100, 1000, 2048):
            some = torch.randn(count, 128).to(dtype)
            assert torch.equal(one(some), plain(some)), count


def test_models_in_factors():
    """The same bits as one by one, with open rows and saved; nothing wide in memory."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(Thin(64, 8, 256), torch.nn.GELU(), Thin(256, 8, 64)).eval()
    x = torch.randn(2048, 64)  # enough for 64
    rows = {"dynamic_shapes": ({0: torch.export.Dim("rows", min=1, max=4096)},)}
    passes = infopt.default_passes(remove=["fuse-low-rank"])
    with torch.no_grad():
        one, plain = infopt.compile(net, (x,)), infopt.compile(net, (x,), passes=passes)
        assert names(one.graph).count("linear_chain") == 1
        assert one.report.memory["arena"] < plain.report.memory["arena"] / 4
        anywhere = infopt.compile(net, (x,), **rows)
        plainly = infopt.compile(net, (x,), passes=passes, **rows)
        assert names(anywhere.graph).count("linear_chain") == 1
        for count in (1, 8, 9, 100, 1000):
            given = torch.randn(count, 64)
            assert torch.equal(anywhere(given), plainly(given))
        assert torch.equal(one(x), plain(x))
