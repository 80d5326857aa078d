"""Linear layers whose constant weights are stored in few bits, where the user asked."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import infopt
from infopt.codegen.kernels.linear import gated_linear, linear_act
from infopt.codegen.kernels.quantized_linear import quantized_gated_linear, quantized_linear
from infopt.compiler.graph import Graph, Stage
from infopt.compiler.infer import Builder
from infopt.compiler.interpret import interpret
from infopt.compiler.testing import run_pass
from infopt.compiler.types import TensorType
from infopt.passes.quantize_weights import QuantizeWeights

K, N = 96, 64
INT8 = QuantizeWeights(activations="int8")


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(5, K)


@pytest.fixture
def weights():
    torch.manual_seed(1)
    return {"layers_0_w": torch.randn(N, K) / 8, "layers_1_w": torch.randn(N, K) / 8}


def graph_with(weights, x, build):
    """build(o, x, *weights) over constants."""
    o = Builder()
    node = o.input("x", TensorType.of(x))
    consts = [o.const(name, TensorType.of(w)) for name, w in weights.items()]
    return Graph((node,), (build(o, node, *consts),), dict(weights), stage=Stage.FUSE)


def test_rewrites(x, weights):
    start = graph_with(
        weights, x, lambda o, x, w, v: o.call(linear_act, x, w, None, o.linear(x, o.relu(v)))
    )
    found, report = run_pass(INT8, start, [(x,)])
    [node] = [n for n in found.nodes() if n.op is quantized_linear]
    assert [str(a.attr("name")) for a in node.args[1:4]] == [
        "layers_0_w_int8_values",
        "layers_0_w_int8_scales",
        "layers_0_w_int8_sums",
    ]
    assert found.consts["layers_0_w_int8_values"].dtype == torch.int8
    assert (report.applied[0].where, report.applied[0].reason[:14]) == (
        "layers_0_w",
        "int8, error 0.",
    )
    assert {s.reason for s in report.declined} == {"its weight is not a constant"}


@pytest.mark.parametrize("format", ["int8", "int8-g32", "int4-g32", "int4-g64"])
@pytest.mark.parametrize("activations", ["none", "int8"])
def test_accuracy(x, weights, format, activations):
    def build(o, x, w, v):
        return o.call(gated_linear, x, w, v, None, None, activation="gelu")

    start = graph_with(weights, x, build)
    pass_ = QuantizeWeights((("*", format),), activations)
    found, report = run_pass(pass_, start, [(x,)])
    assert [n.op for n in found.nodes() if n.op is quantized_gated_linear]
    want, got = interpret(start, [x])[0], interpret(found, [x])[0]
    error = ((got - want).norm() / want.norm()).item()
    assert 0 < error < (0.02 if format.startswith("int8") else 0.15)
    assert "rms" in report.error


def test_patterns_choose_formats(x, weights):
    pass_ = QuantizeWeights((("layers.0.*", "none"), ("layers.*", "int4-g32")))
    start = graph_with(weights, x, lambda o, x, w, v: o.add(o.linear(x, w), o.linear(x, v)))
    found, report = run_pass(pass_, start, [(x,)])
    assert "layers_0_w" in found.consts and "layers_1_w_int4_g32_values" in found.consts
    assert [(s.where, s.reason) for s in report.declined] == [("layers_0_w", "to stay as it is")]


def test_declines(weights, x):
    small = {"w": torch.randn(8, K)}
    _, report = run_pass(INT8, graph_with(small, x, lambda o, x, w: o.linear(x, w)))
    assert report.declined[0].reason == "8 x 96 is too small to pay"
    wide = {"w": torch.randn(N, K).double()}
    start = graph_with(wide, x.double(), lambda o, x, w: o.linear(x, w))
    found, report = run_pass(INT8, start)
    assert found is start and report.declined[0].reason == "it computes in torch.float64"


def test_a_weight_for_each_group_of_rows_stays(x):
    def build(o, x, experts, ends):
        return o.call("grouped_linear", x, experts, ends)

    kept = {"experts": torch.randn(2, N, K) / 8, "ends": torch.tensor([2, 5], dtype=torch.int32)}
    start = graph_with(kept, x, build)
    found, report = run_pass(INT8, start, [(x,)])
    assert found is start
    (site,) = report.declined
    assert (
        site.where == "experts" and "every group of its rows has a weight of its own" in site.reason
    )


def test_idempotent(x, weights):
    start = graph_with(weights, x, lambda o, x, w, v: o.add(o.linear(x, w), o.linear(x, v)))
    found, _ = run_pass(INT8, start)
    again, report = run_pass(INT8, found)
    assert again is found and not report.sites


def test_gain():
    """Only permission puts it in the list: it changes results."""
    assert "quantize-weights" not in {p.name for p in infopt.default_passes()}
    assert "quantize-weights" in {p.name for p in infopt.default_passes(weights="int8")}


def test_a_weight_read_twice_is_stored_once(x, weights):
    start = graph_with(weights, x, lambda o, x, w, v: o.add(o.linear(x, w), o.relu(o.linear(x, w))))
    found, _ = run_pass(INT8, start)
    assert sorted(found.consts) == [
        f"layers_0_w_int8_{part}" for part in ("scales", "sums", "values")
    ]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.first, self.last = nn.Linear(K, 2 * N), nn.Linear(2 * N, N)

    def forward(self, x):
        return self.last(torch.nn.functional.gelu(self.first(x)))


@pytest.mark.parametrize("options", [{}, {"activations": "int8"}, {"compute": "bf16"}])
def test_both_doors_agree_and_weights_may_change(x, options):
    """torch.compile takes weights as constants here, and notices when they change."""
    torch._dynamo.reset()
    net = Net().eval()
    options = {"weights": {"first*": "int8", "*": "int4-g32"}, **options}
    with torch.no_grad():
        offline = infopt.compile(net, (x,), **options)
        online = torch.compile(net, backend="infopt", options=options)
        assert torch.equal(offline(x), online(x))
        assert "first_weight: applied: int8, error" in infopt.explain(online, "quantize-weights")
        net.first.weight.mul_(2)
        changed = online(x)
        assert torch.equal(changed, infopt.compile(net, (x,), **options)(x))
        assert not torch.equal(changed, offline(x))
        net.first.weight = nn.Parameter(net.first.weight / 2)
        torch.testing.assert_close(online(x), offline(x))


def test_artifact_and_new_weights(x, tmp_path):
    net, other = Net().eval(), Net().eval()
    with torch.no_grad():
        other.first.weight.mul_(3)
        compiled = infopt.compile(net, (x,), weights="int8", activations="int8")
        compiled.save(tmp_path / "net.infopt")
        loaded = infopt.load(tmp_path / "net.infopt")
        assert torch.equal(loaded(x), compiled(x))
        loaded.load_weights(other.state_dict())
        want = infopt.compile(other, (x,), weights="int8", activations="int8")(x)
        assert torch.equal(loaded(x), want)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"weights": "int3"}, "there is no format 'int3'"),
        ({"weights": {"*": "fp4"}}, "there is no format 'fp4' (for '*')"),
        ({"weights": 8}, "expected a format or a dict of patterns to formats, found 8"),
        ({"activations": "int8"}, "give weights too"),
        ({"weights": "int8", "activations": "int4"}, "or 'int8-static', found 'int4'"),
        ({"weights": "int8", "activations": "int8-static"}, "give calibration too, a list of"),
        ({"weights": "int8", "passes": []}, "give one of the two"),
        (
            {"calibration": [(torch.zeros(1, K),)]},
            "low_rank, prune, group_sparsity or a budget too",
        ),
        ({"weights": "int8", "calibration": []}, "expected a list of tuples of inputs, found []"),
        ({"weights": "int8", "calibration": [torch.zeros(1)]}, "calibration[0]: expected a tuple"),
    ],
)
def test_bad_options(x, options, message):
    with pytest.raises(infopt.BadOption) as error:
        infopt.compile(Net().eval(), (x,), **options)
    assert message in str(error.value)


@pytest.mark.parametrize("format, share", [("int8", 0.9), ("int4-g32", 0.8)])
def test_calibration_lowers_the_error_of_inputs_like_it(x, format, share):
    """Inputs that vary in few directions, as those of real layers do."""
    net, directions = Net().eval(), torch.randn(K // 8, K)

    def inputs(rows):
        return torch.randn(rows, K // 8) @ directions + 0.05 * torch.randn(rows, K)

    seen, unseen = inputs(300), inputs(200)
    with torch.no_grad():
        want = net(unseen)
        plain = infopt.compile(net, (unseen,), weights=format)
        tuned = infopt.compile(
            net, (unseen,), weights=format, calibration=[(seen[:200],), (seen[100:],)]
        )
        errors = [(compiled(unseen) - want).norm().item() for compiled in (plain, tuned)]
    assert 0 < errors[1] < share * errors[0]


def test_weights_chosen_by_calibration_are_held(x):
    net = Net().eval()
    with torch.no_grad():
        compiled = infopt.compile(net, (x,), weights="int8", calibration=[(x,)])
        with pytest.raises(infopt.WeightsMismatch, match="does not say from what"):
            compiled.load_weights(net.state_dict())


def test_torch_compile_takes_no_calibration(x):
    options = {"weights": "int8", "calibration": [(x,)]}
    with pytest.raises(Exception, match=r"give them to infopt\.compile"):
        torch.compile(Net().eval(), backend="infopt", options=options)(x)


@pytest.mark.parametrize("option", ["calibration", "budget"])
def test_further_inputs_must_be_the_model_s(x, option):
    wrong = [(torch.randn(3, K),)]
    budget = {"budget": infopt.Budget(0.1, samples=tuple(wrong))}
    options = budget if option == "budget" else {"weights": "int8", "calibration": wrong}
    with pytest.raises(infopt.BadOption, match=r"\[0\]: .* named in dynamic_shapes"):
        infopt.compile(Net().eval(), (x,), **options)
    with pytest.raises(infopt.BadOption, match=r"\[0\]: "):
        infopt.compile(
            Net().eval(),
            (x,),
            **{"weights": "int8", "calibration": [(x, x)]}
            if option == "calibration"
            else {"budget": infopt.Budget(0.1, samples=((x, x),))},
        )


class Tied(nn.Module):
    """A table whose rows come in and are scored, as in language models."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.table, self.norm = nn.Embedding(101, K), nn.LayerNorm(K)

    def forward(self, ids):
        return nn.functional.linear(self.norm(self.table(ids)), self.table.weight)


@pytest.mark.parametrize("format", ["int8", "int4-g32"])
def test_a_table_is_stored_once_for_rows_and_scores(format):
    net, ids = Tied().eval(), torch.randint(0, 101, (3, 5))
    with torch.no_grad():
        compiled = infopt.compile(net, (ids,), weights=format)
        want, found = net(ids), compiled(ids)
        changed = Tied().eval()
        changed.table.weight.mul_(-2)
        stored = [v for v in compiled.graph.consts.values() if v.dtype in (torch.int8, torch.uint8)]
        compiled.load_weights(changed.state_dict())
        again = infopt.compile(changed, (ids,), weights=format)(ids)
    assert len(stored) == 1 and len(stored[0]) == 101
    assert (found - want).norm() < (0.02 if format == "int8" else 0.2) * want.norm()
    assert torch.equal(compiled(ids), again)


def test_a_small_table_stays():
    class Rows(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(2, K)

        def forward(self, ids):
            return self.table(ids) * 2

    compiled = infopt.compile(Rows().eval(), (torch.tensor([1, 0]),), weights="int8")
    assert "2 x 96 is too small to pay" in infopt.explain(compiled, "quantize-weights")


def test_unknown_activations_are_refused():
    known = "'none', 'int8', 'int8-static'"
    with pytest.raises(infopt.BadOption, match=f"expected one of {known}, found 'fp8'"):
        QuantizeWeights(activations="fp8")


def test_activations_that_bytes_hold_badly_stay_in_16_bits(x):
    """A column that is large and matters little takes all the codes of its rows."""
    net, seen = Net().eval(), x.clone()
    seen[:, 3] = 60
    with torch.no_grad():
        net.first.weight[:, 3] /= 600
        want, options = net(seen), {"weights": "int8", "activations": "int8"}
        plain = infopt.compile(net, (seen,), **options)
        kept = infopt.compile(net, (seen,), **options, calibration=[(seen,)])
        errors = [((found(seen) - want).norm() / want.norm()).item() for found in (plain, kept)]
    assert errors[1] < 0.02 < 0.04 < errors[0]
    rows = {
        str(n.args[1].attr("name")).split("_")[1]: n.attr("activations")
        for n in kept.graph.nodes()
        if n.op is quantized_linear
    }
    assert rows == {"first": "bf16", "last": "int8"}
    report = infopt.explain(kept, "quantize-weights")
    assert report.count("activations in 16 bits, as bytes would lose") == 1


@pytest.mark.parametrize("format", ["fp8-e4m3", "fp8-e5m2-g32"])
def test_floats_of_8_bits_through_both_doors(x, format, tmp_path):
    """Also as an artifact, and with new weights; products of bytes they have none."""
    torch._dynamo.reset()
    net, other = Net().eval(), Net().eval()
    with torch.no_grad():
        offline = infopt.compile(net, (x,), weights=format)
        online = torch.compile(net, backend="infopt", options={"weights": format})
        found, want = offline(x), net(x)
        assert torch.equal(found, online(x))
        assert 0 < (found - want).norm() < 0.1 * want.norm()
        assert f"applied: {format}, error" in infopt.explain(offline, "quantize-weights")
        assert offline.report.aten_nodes == 0
        offline.save(tmp_path / "net.infopt")
        loaded = infopt.load(tmp_path / "net.infopt")
        assert torch.equal(loaded(x), found)
        loaded.load_weights(other.state_dict())
        assert torch.equal(loaded(x), infopt.compile(other, (x,), weights=format)(x))
        bytes = infopt.compile(net, (x,), weights=format, activations="int8")
    reason = f"rows in bytes times {format}"
    assert reason in infopt.explain(bytes, "quantize-weights")


@pytest.mark.parametrize("format", ["lut4", "lut3-g64", "lut4-g128+0.5%", "int4-g32+1%"])
def test_tables_and_remainders_through_both_doors(x, format, tmp_path):
    """Also as an artifact, whose tables are found again for new weights; remainders are not."""
    torch._dynamo.reset()
    net, other = Net().eval(), Net().eval()
    options = {"weights": format}
    with torch.no_grad():
        offline = infopt.compile(net, (x,), **options)
        online = torch.compile(net, backend="infopt", options=options)
        found, want = offline(x), net(x)
        assert torch.equal(found, online(x))
        assert (found - want).norm() < (0.3 if "lut3" in format else 0.15) * want.norm()
        assert f"applied: {format}, error" in infopt.explain(offline, "quantize-weights")
        offline.save(tmp_path / "net.infopt")
        loaded = infopt.load(tmp_path / "net.infopt")
        assert torch.equal(loaded(x), found)
        other.first.weight.add_(torch.randn_like(other.first.weight) / 9)
        for program in (loaded, offline) if "+" not in format else ():
            program.load_weights(other.state_dict())
            assert torch.equal(program(x), infopt.compile(other, (x,), **options)(x))
        if "+" in format:
            with pytest.raises(infopt.WeightsMismatch, match="does not say from what"):
                loaded.load_weights(net.state_dict())
        net.first.weight.mul_(2)
        torch.testing.assert_close(
            online(x), infopt.compile(net, (x,), **options)(x), rtol=0, atol=0
        )


@pytest.mark.parametrize("format", ["lut4-g64", "lut4+1%"])
def test_a_table_of_codes_is_stored_once_for_rows_and_scores(format):
    net, ids = Tied().eval(), torch.randint(0, 101, (3, 5))
    with torch.no_grad():
        compiled = infopt.compile(net, (ids,), weights=format)
        want, found = net(ids), compiled(ids)
    stored = [v for v in compiled.graph.consts.values() if v.dtype == torch.uint8]
    assert len(stored) == 1 and len(stored[0]) == 101
    assert (found - want).norm() < 0.2 * want.norm()


def test_calibration_also_chooses_tables_and_remainders(x):
    net, directions = Net().eval(), torch.randn(K // 8, K)

    def inputs(rows):
        return torch.randn(rows, K // 8) @ directions + 0.05 * torch.randn(rows, K)

    seen, unseen = inputs(300), inputs(200)
    with torch.no_grad():
        want = net(unseen)
        for format in ("lut4", "lut4+1%"):
            plain = infopt.compile(net, (unseen,), weights=format)
            tuned = infopt.compile(net, (unseen,), weights=format, calibration=[(seen[:200],)])
            errors = [(compiled(unseen) - want).norm().item() for compiled in (plain, tuned)]
            assert 0 < errors[1] < 0.85 * errors[0]


def test_a_batch_does_not_move_rows(x):
    """With batch_invariant, rows alone and among others give the same bytes."""
    net, many = Net().eval(), torch.randn(37, K)
    rows = torch.export.Dim("rows", min=1, max=64)
    with torch.no_grad():
        for format in ("lut4", "lut4-g64+1%"):
            compiled = infopt.compile(
                net, (many,), weights=format, batch_invariant=True, dynamic_shapes=({0: rows},)
            )
            alone = torch.cat([compiled(row[None]) for row in many[:5]])
            assert torch.equal(compiled(many)[:5], alone)


@pytest.mark.parametrize("format", ["lut4+9%", "lut5", "lut4-g32"])
def test_formats_there_are_not(x, format):
    with pytest.raises(infopt.BadOption) as error:
        infopt.compile(Net().eval(), (x,), weights=format)
    assert str(error.value) == (
        f"weights: there is no format {format!r} (for '*'); there are none, int8, int8-g32, "
        "int8-g64, int8-g128, int4-g32, int4-g64, int4-g128, lut4, lut4-g64, lut4-g128, lut3, "
        "lut3-g64, lut3-g128, fp8-e4m3, fp8-e4m3-g32, fp8-e4m3-g64, fp8-e4m3-g128, fp8-e5m2, "
        "fp8-e5m2-g32, fp8-e5m2-g64, fp8-e5m2-g128; "
        "each also with up to 5% of its weights kept exactly, as in "
        "'int4-g32+0.5%'"
    )
    budget = infopt.Budget(0.1, formats=("int8", format))
    with pytest.raises(infopt.BadOption, match="budget: there is no format"):
        infopt.compile(Net().eval(), (x,), budget=budget)


def test_int8_activations_times_a_remainder_stay(x):
    """Said before anything is encoded."""
    start = graph_with({"w": torch.randn(N, K)}, x, lambda o, x, w: o.linear(x, w))
    found, report = run_pass(QuantizeWeights((("*", "lut4+1%"),), "int8"), start)
    assert found is start
    reason = "no kernel for lut4+1% here: rows in bytes times a remainder"
    assert report.declined[0].reason == reason
