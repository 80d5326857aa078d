"""sparsify-groups: what stays of a layer, weights that come with zeros, declines with numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import infopt
import infopt.codegen.gpu  # its kernels, for estimates
from infopt.codegen.group_sparsity import GroupForm, dense_weight, largest
from infopt.codegen.kernels.group_sparse_linear import group_sparse_linear
from infopt.compiler.errors import BadOption, ContractBroken
from infopt.compiler.graph import Graph, Stage
from infopt.compiler.infer import Builder
from infopt.compiler.interpret import interpret
from infopt.compiler.pipeline import PassContext, Pipeline, SiteLimit
from infopt.compiler.report import Report
from infopt.compiler.settings import Settings
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType
from infopt.models.decoder import SMALL, Decoder
from infopt.passes.sparsify_groups import SparsifyGroups

M, K, N = 64, 256, 320  # large enough to pay
CPU = Target.parse("cpu:avx512_bf16,cores=2")
FORM = GroupForm(8, 1)
HALF = SparsifyGroups(0.5, limit=10.0)
torch.manual_seed(0)
W = {"gate": torch.randn(N, K) / 16, "up": torch.randn(N, K) / 16, "down": torch.randn(K, N) / 18}
W |= {"bias": torch.randn(N), "shared": torch.randn(N, K)}
X = torch.randn(M, K)


def graph_with(build, x=X, weights=W) -> Graph:
    o = Builder()
    node = o.input("x", TensorType.of(x))
    consts = {name: o.const(name, TensorType.of(w)) for name, w in weights.items()}
    return Graph((node,), (build(o, node, **consts),), dict(weights), stage=Stage.FUSE)


def sparsify(graph, pass_=HALF, target=CPU, samples=(), **given):
    report = Report()
    ctx = PassContext(target, tuple(samples), report, Settings(check=1), **given)
    return Pipeline([pass_], alone=True).run(graph, ctx), report.passes[0]


def one(o, x, gate, bias, **rest):
    return o.call("linear_act", x, gate, bias, activation="gelu")


def mlp(o, x, gate, up, bias, down, **rest):
    y = o.call("gated_linear", x, gate, up, bias, None, activation="silu")
    return o.call("linear_act", y, down, None, x, activation="none")


def cut(weight, share=0.5, form=FORM):
    """The weight with the smallest groups of every block set to 0, by their squares."""
    groups = form.counts(*weight.shape)[1]
    columns = largest(form.scores(weight), groups - round(share * groups))
    return dense_weight(form.packed(weight, columns), columns, *weight.shape)


def relative(want, got):
    return ((got - want).norm() / want.norm()).item()


def test_rewrites():
    start = graph_with(mlp)
    found, report = sparsify(start)
    nodes = [n for n in found.nodes() if n.op is group_sparse_linear]
    assert [n.attr("features") for n in nodes] == [N, N, K]
    assert [n.attr("activation") for n in nodes] == ["silu", "none", "none"]
    assert nodes[0].args[1].shape == (N // 8, K // 2, 8, 1) and nodes[2].args[4] is found.inputs[0]
    told = [s.reason for s in report.applied]
    assert told == [
        f"{K // 2} and {K // 2} of {K} groups of 8 x 1",
        f"{N // 2} of {N} groups of 8 x 1",
    ]
    assert all(s.gain > 0 for s in report.applied) and "rms" not in (report.error or "")
    small = {name: cut(w) if w.dim() == 2 else w for name, w in W.items()}
    want = interpret(graph_with(mlp, weights=small), [X])[0]
    assert relative(want, interpret(found, [X])[0]) < 1e-5
    assert {"gate_groups", "gate_columns", "up_groups", "down_groups"} <= set(found.consts)


def test_accuracy():
    start = graph_with(one)
    _, report = sparsify(start, samples=[(X,)])
    assert "rms 0." in report.error
    with pytest.raises(ContractBroken, match=r"sparsify-groups promises .*rms_rel.*0\.01"):
        sparsify(start, SparsifyGroups(0.5, limit=0.01), samples=[(X,)])


@pytest.mark.slow
def test_calibration_fits_what_stays():
    """Of columns that multiply next to nothing no group stays; the rest takes over, and the bias
    the mean. Unseen inputs of the same kind are nearer too."""
    torch.manual_seed(1)
    basis, mean = torch.randn(K // 4, K), torch.randn(K)

    def inputs():
        x = mean + torch.randn(M, K // 4) @ basis / 8
        x[:, ::2] *= 1e-3
        return x

    start, unseen, seen = graph_with(one), inputs(), [(inputs(),) for _ in range(8)]
    fit, _ = sparsify(start, calibration=seen)
    plain, _ = sparsify(start)
    assert (fit.consts["gate_columns"] % 2 == 1).all()
    want = interpret(start, [unseen])[0]
    errors = [relative(want, interpret(g, [unseen])[0]) for g in (fit, plain)]
    assert errors[0] < 0.01 < 0.3 < errors[1]
    without = graph_with(lambda o, x, gate, **rest: o.linear(x, gate))
    found, _ = sparsify(without, calibration=seen)
    (node,) = (n for n in found.nodes() if n.op is group_sparse_linear)
    assert node.args[3].attr("name") == "gate_shifted_bias"
    assert relative(interpret(without, [unseen])[0], interpret(found, [unseen])[0]) < 0.01


def test_zeros_that_are_there():
    """Every block keeps as many as the block with the most; what is left out is zero."""
    weights = {**W, "gate": cut(W["gate"], 0.6)}
    weights["gate"][:8] = 0
    weights["gate"][9, 5] = 1
    start = graph_with(one, weights=weights)
    found, report = sparsify(start, SparsifyGroups("zeros"), samples=[(X,)])
    (site,) = report.applied
    most = round(0.4 * K) + (cut(W["gate"], 0.6)[8:16, 5] == 0).all().int().item()
    assert site.reason == f"{most} of {K} groups of 8 x 1"
    assert relative(interpret(start, [X])[0], interpret(found, [X])[0]) < 1e-6
    dense = graph_with(one)
    found, report = sparsify(dense, SparsifyGroups("zeros"))
    assert found is dense and report.declined[0].reason == "no group of every block is zero"
    weights["gate"][20:28] = float("nan")  # is not zero
    _, report = sparsify(graph_with(one, weights=weights), SparsifyGroups("zeros"))
    assert report.declined[0].reason == "no group of every block is zero"


def no_constant(o, x, gate, **rest):
    return o.linear(x, o.mul(gate, 2.0))


def read_elsewhere(o, x, gate, **rest):
    return o.add(o.linear(x, gate), o.sum(gate))


def wide_residual(o, x, gate, bias, **rest):
    return o.call("linear_act", x, gate, None, bias, activation="none")


@pytest.mark.parametrize(
    ("build", "given", "reason"),
    [
        (no_constant, {}, "its weight is not a constant"),
        (read_elsewhere, {}, "its weight is also read by aten.sum.default"),
        (wide_residual, {}, "a residual that is broadcast"),
        (one, {"pass_": SparsifyGroups(0.05)}, "us with 243 of 256 groups of 8 x 1, "),
        (one, {"x": X[:1], "pass_": SparsifyGroups(0.2)}, "us with 205 of 256 groups of 8 x 1, "),
        (one, {"x": X.bfloat16()}, "and what it reads bf16[64, 256]"),
    ],
)
def test_declines(build, given, reason):
    x = given.get("x", X)
    weights = {**W, "bias": W["bias"].to(x.dtype)}
    start = graph_with(build, x, weights)
    found, report = sparsify(start, given.get("pass_", SparsifyGroups(0.5)))
    (site,) = report.sites
    assert found is start and not site.applied and reason in site.reason, site.reason
    assert "us with" not in reason or ("does not pay" in site.reason and site.gain < 0)


def test_what_a_target_takes_decides():
    """Whole tiles are faster than vectors that skip half; a GPU takes groups of its own."""
    weights = {name: w.bfloat16() for name, w in W.items()}
    start = graph_with(one, X.bfloat16().repeat(16, 1), weights)
    _, report = sparsify(start)
    assert report.applied[0].reason == f"{K // 4} of {K // 2} groups of 8 x 2"
    _, report = sparsify(start, target=Target.parse("cpu:amx,cores=2"))
    assert report.declined[0].reason.startswith("does not pay: ")
    found, report = sparsify(start, target=Target.parse("cuda:sm90"))
    assert report.applied[0].reason == f"{K // 16} of {K // 8} groups of 64 x 8"
    assert found.consts["gate_groups"].shape == (N // 64, K // 16, 64, 8)


def test_idempotent():
    found, _ = sparsify(graph_with(mlp))
    again, report = sparsify(found)
    assert again is found and not report.sites


def test_sites_can_be_left_out():
    limit = SiteLimit(1)
    found, _ = sparsify(graph_with(mlp), limit=limit)
    assert len(limit.applied) == 1
    assert 1 <= sum(n.op is group_sparse_linear for n in found.nodes()) <= 2


def test_gain():
    """Only permission puts it in the list, and it comes before factors and formats."""
    assert "sparsify-groups" not in {p.name for p in infopt.default_passes()}
    asked = infopt.default_passes(low_rank=0.25, weights="int8", group_sparsity=0.5)
    names = [p.name for p in asked]
    at = names.index("sparsify-groups")
    assert names[at : at + 3] == ["sparsify-groups", "factor-low-rank", "quantize-weights"]


@pytest.mark.parametrize("share", [0, 1, True, "half", -0.5, None])
def test_wrong_options(share):
    with pytest.raises(BadOption, match="group_sparsity: expected a share between 0 and 1 or"):
        SparsifyGroups(share)


class Net(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(2)
        self.first, self.last = nn.Linear(K, N, dtype=dtype), nn.Linear(N, K, dtype=dtype)
        with torch.no_grad():
            for layer in (self.first, self.last):
                form = GroupForm(8, 2 if dtype is torch.bfloat16 else 1)
                layer.weight.copy_(cut(layer.weight, 0.6, form))

    def forward(self, x):
        return self.last(torch.nn.functional.gelu(self.first(x)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_both_doors_and_an_artifact_agree(dtype, tmp_path):
    torch._dynamo.reset()
    net, x, target = Net(dtype).eval(), X.to(dtype), infopt.Target.detect()
    options = {"group_sparsity": "zeros"}
    with torch.no_grad():
        offline = infopt.compile(net, (x,), **options)
        online = torch.compile(net, backend="infopt", options=options)
        assert torch.equal(offline(x), online(x))
        applied = len(offline.report.find("sparsify-groups").applied)
        assert applied == (0 if target.level == "amx" and dtype is torch.bfloat16 else 2)
        assert relative(net(x), offline(x)) < (1e-5 if dtype is torch.float32 else 1e-2)
        offline.save(tmp_path / "net.infopt")
        assert torch.equal(infopt.load(tmp_path / "net.infopt")(x), offline(x))
        with pytest.raises(Exception, match=r"first|last|weight"):
            offline.set_weights({"first.weight": net.first.weight})
        net.first.weight.mul_(2)  # noticed, and chosen again
        assert relative(net(x), online(x)) < (1e-5 if dtype is torch.float32 else 1e-2)


def test_prompts_and_steps_of_a_decoder_agree():
    model = Decoder(SMALL).eval()
    passes = infopt.default_passes(add=[HALF])
    lm = infopt.compile_causal_lm(model, max_length=32, passes=passes)
    assert lm.report.find("sparsify-groups").applied
    ids = torch.randint(0, SMALL.vocabulary, (16,))
    prompt = lm.logits(ids)
    state = lm.prefill(ids[None, :1])
    steps = [state.logits[0]]
    for token in ids[1:]:
        state = lm.step(state, token[None])
        steps.append(state.logits[0])
    torch.testing.assert_close(torch.stack(steps), prompt, rtol=1e-4, atol=1e-4)
