"""Which layers may have formats, and in how many bits what they read is held."""

from __future__ import annotations

import pytest
import torch

import infopt
from infopt.codegen.kernels.quantized_linear import quantized_linear
from infopt.compiler.graph import Graph, Stage
from infopt.compiler.infer import Builder
from infopt.compiler.pipeline import PassContext, Pipeline
from infopt.compiler.report import Report
from infopt.compiler.settings import Settings
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType
from infopt.passes.quantize_weights import QuantizeWeights
from infopt.passes.quantizing import Quantizing

WIDTH = 64


def chain(*shapes, dtype=torch.float32) -> Graph:
    """Linear layers w0, w1, ... one after another."""
    o, consts, generator = Builder(), {}, torch.Generator().manual_seed(0)
    x = node = o.input("x", TensorType.dense((200, shapes[0][1]), dtype))
    for i, shape in enumerate(shapes):
        weight = torch.randn(shape, generator=generator) / shape[1] ** 0.5
        consts[f"w{i}"] = weight.to(dtype)
        node = o.linear(node, o.const(f"w{i}", TensorType.of(consts[f"w{i}"])))
    return Graph((x,), (node,), consts, stage=Stage.FUSE)


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ((64, 64), torch.float32, ""),
        ((64, 64), torch.bfloat16, ""),
        ((63, 65), torch.float32, "63 x 65 is too small to pay"),
        ((64, 64), torch.float64, "it computes in torch.float64"),
    ],
)
def test_which_layers_may_have_formats(shape, dtype, reason):
    graph = chain(shape, dtype=dtype)
    quantizing = Quantizing(graph, PassContext(Target.parse("cpu:scalar")))
    assert quantizing.refusal(graph.outputs[0]) == reason


def quantized(rows: torch.Tensor, graph: Graph, **options) -> tuple[dict, dict]:
    """Of every layer: how what it reads is held; and what the report says."""
    report = Report()
    target = Target.parse("cpu:scalar")
    ctx = PassContext(target, (), report, Settings(check=0), calibration=((rows,),))
    found = Pipeline([QuantizeWeights(**options)], alone=True).run(graph, ctx)
    layers = [n for n in found.nodes() if n.op is quantized_linear]
    held = {str(n.args[1].attr("name"))[:2]: n.attr("activations") for n in layers}
    return held, {s.where: s.reason for s in report.passes[0].sites}


def rows_of(kind: str) -> torch.Tensor:
    rows = torch.randn(200, WIDTH, generator=torch.Generator().manual_seed(1))
    if kind == "one large row":  # one range for all rows leaves little to the others
        rows[0] *= 60
    return rows


@pytest.mark.parametrize(("kind", "held"), [("alike", "int8-static"), ("one large row", "int8")])
def test_a_range_for_all_rows_where_it_loses_little(kind, held):
    """Else every row has its own, which is enough here: no 16 bits."""
    graph = chain((WIDTH, WIDTH), (WIDTH, WIDTH))
    found, told = quantized(rows_of(kind), graph, activations="int8-static")
    assert found == {"w0": "int8", "w1": held}  # what the program is given has no maker
    assert all("16 bits" not in reason for reason in told.values())


def test_ranges_need_inputs():
    start = chain((WIDTH, WIDTH))
    with pytest.raises(infopt.BadOption, match="uses ranges that calibration inputs give"):
        ctx = PassContext(Target.parse("cpu:scalar"))
        QuantizeWeights(activations="int8-static").run(start, ctx)


def test_a_layer_that_no_pattern_names_stays():
    start = chain((WIDTH, WIDTH), (WIDTH, WIDTH))
    found, told = quantized(rows_of("alike"), start, formats=(("w1", "int8"),))
    assert list(found) == ["w1"]
    assert told["w0"] == "to stay as it is" and told["w1"].startswith("int8, error 0.")


def test_the_first_pattern_counts():
    start = chain((WIDTH, WIDTH), (WIDTH, WIDTH))
    formats = (("w0", "none"), ("w*", "int4-g32"), ("*", "int8"))
    _, told = quantized(rows_of("alike"), start, formats=formats)
    assert told["w0"] == "to stay as it is" and told["w1"].startswith("int4-g32, error")
