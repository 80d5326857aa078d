"""Runs of ops computed slice by slice, so that a call needs less memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import infopt
from infopt.codegen.lower import lower
from infopt.compiler.graph import Graph
from infopt.compiler.infer import Builder
from infopt.compiler.interpret import interpret
from infopt.compiler.testing import run_pass
from infopt.compiler.types import TensorType
from infopt.models import unet
from infopt.models.unet import UNetBlock
from infopt.passes.slice_runs import SliceRuns
from infopt.passes.slicing_rules import Axis, cut_operands

M, D, H = 128, 16, 256


def inputs(*shapes):
    torch.manual_seed(0)
    return [torch.randn(*s) / s[-1] ** 0.5 for s in shapes]


def graph_of(build, tensors):
    o = Builder()
    nodes = tuple(o.input(f"x{i}", TensorType.of(t)) for i, t in enumerate(tensors))
    return Graph(nodes, (build(o, *nodes),))


def mlp(o, x, w, v):
    return o.add(x, o.linear(o.gelu(o.linear(x, w)), v))


def names(graph):
    return [n.op.name.split(".")[1] for n in graph.nodes() if n.op.name.startswith("aten")]


def test_rewrites():
    given = inputs((M, D), (H, D), (D, H))
    start = graph_of(mlp, given)
    found, report = run_pass(SliceRuns(), start, [tuple(given)])
    count = names(found).count("gelu")
    assert count == 8  # slices of one panel
    assert [n.shape[0] for n in found.nodes() if n.op.name == "aten.gelu.default"] == [16] * 8
    assert names(found)[-1] == "cat" and names(found).count("slice") == count
    [site] = report.applied
    assert "4 ops over 128 rows in 8 slices: " in site.reason and site.gain < 0


def test_accuracy():
    """The same bits: every row is computed as it was."""
    given = inputs((2, M // 2, D), (H, D), (D, H))
    start = graph_of(mlp, given)
    found, _ = run_pass(SliceRuns(), start, [tuple(given)])
    assert names(found).count("gelu") > 1
    torch.testing.assert_close(interpret(found, given)[0], interpret(start, given)[0])


def test_declines():
    small = inputs((8, D), (H, D), (D, H))
    _, report = run_pass(SliceRuns(), graph_of(mlp, small))
    assert report.declined[0].reason.startswith("no slices use less than ")
    large = graph_of(mlp, inputs((M, D), (H, D), (D, H)))
    kept, report = run_pass(SliceRuns(10**9), large)
    assert names(kept) == names(large) and "the limit is 1000000000" in report.declined[0].reason
    with pytest.raises(infopt.UnreachableBudget, match=r"max_activations=64: a call needs \d+ b"):
        run_pass(SliceRuns(64), large)


def test_idempotent():
    start = graph_of(mlp, inputs((M, D), (H, D), (D, H)))
    found, _ = run_pass(SliceRuns(), start)
    again, _ = run_pass(SliceRuns(), found)
    assert names(again) == names(found)


def test_gain():
    """Only a limit puts it in the list, and the plan's memory is what it is judged by."""
    assert "slice-runs" not in {p.name for p in infopt.default_passes()}
    assert infopt.default_passes(max_activations=1 << 20)[-1].name == "slice-runs"
    start = graph_of(mlp, inputs((4 * M, D), (H, D), (D, H)))
    target = infopt.Target.parse("cpu:avx2")
    before = lower(start, target).arena_bytes
    found, report = run_pass(SliceRuns(before // 2), start)
    after = lower(found, target).arena_bytes
    assert after <= before // 2 and f"{before} bytes -> {after}" in report.applied[0].reason
    assert names(found).count("gelu") < 32  # no more slices than needed


class Attention(nn.Module):
    """All of it leaves the batch apart, the last product even the rows."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.q, self.k, self.v, self.out = (nn.Linear(32, 32) for _ in range(4))
        self.wide = nn.Linear(32, 128)

    def forward(self, x, mask):
        b, t, d = x.shape
        q, k, v = (f(x).view(b, t, 2, 16).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v, mask[:, None, None])
        x = x + self.out(y.transpose(1, 2).reshape(b, t, d))
        return self.wide(x).relu(), x.mean(1)


def test_a_compiled_model_keeps_the_limit_and_every_bit():
    net, x = Attention().eval(), torch.randn(8, 48, 32)
    mask = torch.rand(8, 48) > 0.3
    with torch.no_grad():
        plain = infopt.compile(net, (x, mask))
        limit = plain.report.memory["arena"] // 2
        lean = infopt.compile(net, (x, mask), max_activations=limit)
        torch._dynamo.reset()
        online = torch.compile(net, backend="infopt", options={"max_activations": limit})
        for a, b, c in zip(plain(x, mask), lean(x, mask), online(x, mask), strict=True):
            assert torch.equal(a, b) and torch.equal(a, c)
    assert lean.report.memory["arena"] <= limit + (1 << 17)  # with the threads' scratch


def test_batches_that_are_mixed_stay_whole():
    x = torch.randn(8, 4, 16)
    for mixes in (lambda o, x: o.softmax(x, 0), lambda o, x: o.cumsum(x, 0)):
        start = graph_of(lambda o, x, f=mixes: o.relu(f(o, o.gelu(x))), [x])
        found, _ = run_pass(SliceRuns(), start, [(x,)])
        torch.testing.assert_close(interpret(found, [x])[0], interpret(start, [x])[0])
        softmax = [n for n in found.nodes() if n.shape == (8, 4, 16)]
        assert softmax


def test_rules_of_axes():
    o = Builder()

    def value(*shape):
        return o.input("x" + "_".join(map(str, shape)), TensorType.dense(shape, torch.float32))

    x, batch, rows = value(8, 6, 10), Axis("batch", 8), Axis("rows", 48)
    both = [o.gelu(x), o.linear(x, value(12, 10)), o.layer_norm(x, [10]), o.softmax(x, -1)]
    only_batch = [
        o.permute(x, [0, 2, 1]),
        o.softmax(x, 1),
        o.select(x, 1, 0),
        o.layer_norm(x, [6, 10]),
    ]
    none = [o.permute(x, [1, 0, 2]), o.softmax(x, 0), o.layer_norm(x, [8, 6, 10]), o.sum(x, [0])]
    none += [o.cumsum(x, 0), o.select(x, 0, 0), o.expand(value(1, 6, 10), [8, 6, 10])]
    for node in both:
        assert cut_operands(node, batch) == cut_operands(node, rows) == {x}, node
    for node in only_batch:
        assert cut_operands(node, batch) == {x} and cut_operands(node, rows) is None, node
    for node in none:
        assert cut_operands(node, batch) is None and cut_operands(node, rows) is None, node
    bias, per_item = value(10), value(8, 1, 1)
    assert cut_operands(o.add(x, bias), rows) == {x}
    assert cut_operands(o.add(x, per_item), batch) == {x, per_item}
    assert cut_operands(o.add(x, per_item), rows) is None
    square = value(8, 8)
    assert cut_operands(o.linear(square, square), batch) is None  # read cut and whole


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5, "1G"])
def test_bad_limits(wrong):
    with pytest.raises(infopt.BadOption, match="max_activations: expected "):
        infopt.compile(nn.Linear(4, 4), (torch.randn(2, 4),), max_activations=wrong)
    with pytest.raises(infopt.BadOption, match="max_activations chooses passes"):
        infopt.compile(nn.Linear(4, 4), (torch.randn(2, 4),), max_activations=64, passes=[])


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_of_a_diffusion_models_block(dtype):
    torch.manual_seed(0)
    model = UNetBlock(unet.SMALL).eval().to(dtype)
    c = unet.SMALL
    shapes = (c.channels, c.image, c.image), (c.time,), (c.tokens, c.context)
    args = tuple([torch.randn(8, *shape).to(dtype) for shape in shapes])
    whole = infopt.compile(model, args)
    target = infopt.Target.detect()
    limit = int(0.4 * lower(whole.graph, target).arena_bytes)
    sliced = infopt.compile(model, args, max_activations=limit)
    assert lower(sliced.graph, target).arena_bytes <= limit
    assert torch.equal(sliced(*args), whole(*args))
    expected, close = model(*args), {} if dtype is torch.float32 else {"rtol": 2e-2, "atol": 5e-2}
    torch.testing.assert_close(whole(*args), expected, **(close or {"rtol": 1e-4, "atol": 1e-4}))
