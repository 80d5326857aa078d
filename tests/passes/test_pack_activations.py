"""Rows of activations rounded to bytes by whoever makes them, with ranges found beforehand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import infopt
from infopt.codegen.kernels.packed_layer_norm import packed_layer_norm
from infopt.codegen.kernels.quantized_linear import quantized_linear
from infopt.codegen.load import lower_for, program
from infopt.codegen.weight_formats.formats import FORMATS
from infopt.compiler.graph import Graph, Stage
from infopt.compiler.infer import Builder
from infopt.compiler.integer_weight import quantize_rows, rounded_rows
from infopt.compiler.interpret import interpret
from infopt.compiler.target import Target
from infopt.compiler.testing import run_pass
from infopt.compiler.types import TensorType
from infopt.passes.pack_activations import PackActivations
from tests.codegen.kernel_call import every_level

K, N = 70, 133  # no multiples of anything


class Block(nn.Module):
    """As in an encoder: norm, two layers with gelu between, a sum, norm, one layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.before, self.behind = nn.LayerNorm(K), nn.LayerNorm(K)
        self.up, self.down, self.last = nn.Linear(K, N), nn.Linear(N, K), nn.Linear(K, K)

    def forward(self, x):
        y = self.before(x)
        z = self.behind(y + self.down(nn.functional.gelu(self.up(y))))
        return z + self.last(z)


def stored(o, x, weight, name, consts, **attrs):
    """quantized_linear(x, weight) in a graph."""
    values, scales = FORMATS["int8"].encode(weight)
    parts = {"values": values, "scales": scales}
    parts["sums"] = FORMATS["int8"].sums(values, scales, weight.shape[1])
    nodes = []
    for kind, part in parts.items():
        consts[f"{name}_{kind}"] = part
        nodes.append(o.const(f"{name}_{kind}", TensorType.of(part)))
    return o.call(quantized_linear, x, *nodes, **attrs)


def layers(m, activations="int8", **fixed):
    """layer_norm, a layer with gelu, another: the graph and its input."""
    torch.manual_seed(m)
    o, consts, x = Builder(), {}, torch.randn(m, K) * 3
    node = o.input("x", TensorType.of(x))
    y = o.layer_norm(node, [K], None, None, 1e-5)
    attrs = {"activations": activations, **fixed}
    up = stored(o, y, torch.randn(N, K) / 8, "up", consts, activation="gelu", **attrs)
    down = stored(o, up, torch.randn(K, N) / 8, "down", consts, **attrs)
    return Graph((node,), (o.add(y, down),), consts, stage=Stage.FUSE), x


def run(graph, x, level):
    lowered = lower_for(graph, Target.parse(f"cpu:{level}"))
    return program(lowered, 2)([x])[0], lowered


@every_level
@pytest.mark.parametrize("m", [1, 7, 16, 37])
def test_norms_write_the_same_bytes(level, m):
    """To the bit what a layer makes of the rows itself, which is what the reference makes."""
    graph, x = layers(m)
    packed, report = run_pass(PackActivations(), graph, [(x,)])
    assert [n.op for n in packed.nodes() if n.op is packed_layer_norm]
    assert len(report.applied) == 1 and "made by quantized_linear" in report.declined[0].reason
    found, lowered = run(packed, x, level)
    assert torch.equal(found, run(graph, x, level)[0])
    assert lowered.report.aten_nodes == 0, lowered.report


@every_level
@pytest.mark.parametrize("m", [1, 7, 16, 37])
@pytest.mark.parametrize("step, codes", [(0.001, 1), (0.004, 2), (0.05, 1)])
def test_layers_write_bytes_of_a_static_range(level, m, step, codes):
    """With gelu as exact as the step asks for: exact for the first. A code may be the next one
    where a value is in the middle of two, so few results differ, and by little; the second step
    leaves the coarse gelu most room, and a sum of 133 may see a few such."""
    graph, x = layers(m, "int8-static", step=step, zero=90)
    packed, report = run_pass(PackActivations(static=True), graph, [(x,)])
    assert len(report.applied) == 2 and not report.declined
    found, lowered = run(packed, x, level)
    assert lowered.report.aten_nodes == 0, lowered.report
    assert "infopt_quantize_panels" not in {s.kernel for s in lowered.plan.steps}
    wanted = interpret(packed, [x])[0]
    torch.testing.assert_close(found, wanted, rtol=0, atol=codes * step)
    assert (found - wanted).norm() < 0.01 * wanted.norm()


@every_level
@pytest.mark.parametrize("m", [3, 20])
def test_values_beyond_a_static_range_count_as_its_ends(level, m):
    """NaN as the lower one; other rows are as they would be without."""
    o, consts, x = Builder(), {}, torch.randn(m, K)
    x[0, 0], x[0, 1], x[0, 2], x[1, 3], x[2, 4] = 1e9, float("inf"), -1e30, -50.0, float("nan")
    node = o.input("x", TensorType.of(x))
    attrs = {"activations": "int8-static", "step": 0.02, "zero": 100}
    graph = Graph((node,), (stored(o, node, torch.eye(K), "w", consts, **attrs),), consts)
    codes, _, _ = quantize_rows(x, "int8-static", 0.02, 100)
    assert codes[0, :3].tolist() == [255, 255, 0] and codes[1, 3] == 0 == codes[2, 4]
    torch.testing.assert_close(run(graph, x, level)[0], (codes - 100) * 0.02, rtol=1e-5, atol=1e-6)


def test_a_packed_value_that_somebody_else_reads_is_made_by_torch():
    """Lowering uses such kernels only where all readers know the form."""
    o, consts, x = Builder(), {}, torch.randn(20, K)
    node = o.input("x", TensorType.of(x))
    made = o.call(packed_layer_norm, node, None, None, None, None, eps=1e-5)
    rows = o.getitem(made, 1)
    layer = stored(o, rows, torch.randn(N, K) / 8, "w", consts, activations="packed")
    for outputs, native in (
        ((layer,), True),
        ((layer, o.relu(rows)), False),
        ((layer, rows), False),
    ):
        graph = Graph((node,), outputs, consts)
        lowered = lower_for(graph, Target.detect())
        assert (lowered.report.native["packed_layer_norm"] == 1) is native
        for found, wanted in zip(program(lowered, 1)([x]), interpret(graph, [x]), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    alone = Graph(
        (node,), (stored(o, node, torch.eye(K), "w", consts, activations="packed"),), consts
    )
    assert torch.allclose(program(lower_for(alone, Target.detect()), 1)([x])[0], x, atol=0.05)


def outlying(rows):
    """As what a norm with a few large weights gives: two columns of thirty times the others."""
    x = torch.randn(rows, K)
    x[:, 7] += 3
    return x


@pytest.mark.parametrize("compute", [None, "bf16"])
def test_ranges_come_from_calibration(compute, tmp_path):
    net = Block().eval()
    with torch.no_grad():
        net.before.weight[3] *= 30
        net.up.weight[:, 3] /= 30
    x, seen = outlying(50), [(outlying(50),) for _ in range(4)]
    options = {"weights": "int8", "calibration": seen, "compute": compute}
    with torch.no_grad():
        want = net(x)
        compiled = infopt.compile(net, (x,), activations="int8-static", **options)
        found = compiled(x)
        assert 0 < (found - want).norm() < 0.02 * want.norm()
        assert "infopt_quantize_panels" not in compiled.profile(x)
        compiled.save(tmp_path / "net")
        assert torch.equal(infopt.load(tmp_path / "net")(x), found)


def test_open_numbers_of_rows():
    net, rows = Block().eval(), torch.export.Dim("rows", min=1, max=64)
    options = {"weights": "int8", "activations": "int8-static", "calibration": [(outlying(64),)]}
    with torch.no_grad():
        compiled = infopt.compile(net, (outlying(50),), dynamic_shapes=({0: rows},), **options)
        for m in (1, 8, 9, 40):
            x = outlying(m)
            want = net(x)
            assert (compiled(x) - want).norm() < 0.05 * want.norm()
            assert torch.equal(compiled(x)[:1], compiled(x[:1]))


def test_idempotent():
    graph, x = layers(20, "int8-static", step=0.05, zero=90)
    packed, _ = run_pass(PackActivations(static=True), graph, [(x,)])
    again, report = run_pass(PackActivations(static=True), packed, [(x,)])
    assert again is packed and not report.sites


def test_gain():
    """One pass over the rows less for each."""
    graph, x = layers(64, "int8-static", step=0.05, zero=90)
    packed, _ = run_pass(PackActivations(static=True), graph, [(x,)])
    level = Target.detect().level
    before, after = (len(run(g, x, level)[1].plan.steps) for g in (graph, packed))
    assert after == before - 2


def test_rounded_rows_need_no_second_rounding():
    x = torch.randn(5, K)
    once = rounded_rows(x, "int8-static", 0.03, 120)
    assert torch.equal(rounded_rows(once, "int8-static", 0.03, 120), once)
