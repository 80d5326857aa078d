"""fold-batch-norm: rewrites, declines, accuracy, idempotence, gain."""

import pytest
import torch

import infopt
from infopt.codegen.kernels.conv import conv_act
from infopt.compiler.cost import graph_seconds
from infopt.compiler.target import Target
from infopt.compiler.testing import check_pass, graph_of, run_pass
from infopt.passes.fold_batch_norm import FoldBatchNorm

X, W, B = torch.randn(2, 3, 9, 8), torch.randn(5, 3, 3, 3) / 5, torch.randn(5)
NORM = [torch.rand(5) + 0.5, torch.randn(5), torch.randn(5), torch.rand(5) + 0.1]
WINDOW = {"stride": [2, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1}
F32 = torch.float32


def normed(o, y, weight, bias, mean, var, training=False):
    return o.batch_norm(y, weight, bias, mean, var, training, 0.1, 1e-5, False)


def before(o, x, w, b, *norm):
    return normed(o, o.conv2d(x, w, b, **WINDOW), *norm)


def cast(o, v, dtype=F32):
    return v if v.dtype == dtype else o.to(v, dtype)


def expected(o, x, w, b, weight, bias, mean, var):
    weight, bias, mean, var, b = (cast(o, v) for v in (weight, bias, mean, var, b))
    scale = o.mul(weight, o.rsqrt(o.add(var, 1e-5)))
    shift = o.add(bias, o.neg(o.mul(o.sub(mean, b), scale)))
    return o.call(conv_act, x, w, scale, shift, **WINDOW)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rewrites(dtype):
    given = [t.to(dtype) for t in (X, W, B, *NORM)]
    check_pass(FoldBatchNorm(), before, expected, given)


def test_rewrites_what_is_not_behind_a_convolution():
    def scaled(o, x, weight, bias, mean, var):
        scale = o.mul(weight, o.rsqrt(o.add(var, 1e-5)))
        shift = o.add(bias, o.neg(o.mul(mean, scale)))
        y = o.mul(cast(o, x), o.reshape(scale, [-1, 1]))
        return cast(o, o.add(y, o.reshape(shift, [-1, 1])), x.dtype)

    for x in (torch.randn(2, 5, 7), torch.randn(2, 5, 7).bfloat16()):
        check_pass(FoldBatchNorm(), normed, scaled, [x, *NORM])


def test_a_convolution_that_is_read_twice_stays():
    def twice(o, x, w, b, *norm):
        y = o.conv2d(x, w, b, **WINDOW)
        return normed(o, y, *norm), o.relu(y)

    found, report = run_pass(FoldBatchNorm(), graph_of(twice, [X, W, B, *NORM]))
    assert len(report.applied) == 1
    assert [n.op.name for n in found.nodes()].count("aten.conv2d.default") == 1


def test_no_weight_and_no_bias():
    def plain(o, x, w, mean, var):
        return normed(o, o.conv2d(x, w, None, **WINDOW), None, None, mean, var)

    def folded(o, x, w, mean, var):
        scale = o.rsqrt(o.add(var, 1e-5))
        return o.call(conv_act, x, w, scale, o.neg(o.mul(mean, scale)), **WINDOW)

    check_pass(FoldBatchNorm(), plain, folded, [X, W, *NORM[2:]])


def test_declines():
    def training(o, x, weight, bias):
        return o.batch_norm(x, weight, bias, None, None, True, 0.1, 1e-5, False)

    graph = graph_of(training, [torch.randn(2, 5, 7), *NORM[:2]])
    found, report = run_pass(FoldBatchNorm(), graph)
    assert found is graph
    assert report.declined[0].reason == "it normalises by the statistics of the batch"


def test_accuracy():
    given = [X, W, B, *NORM]
    _, report = run_pass(FoldBatchNorm(), graph_of(before, given), [tuple(given)])
    assert len(report.applied) == 1  # Exact was measured by the pipeline, else ContractBroken


def test_idempotent():
    once, _ = run_pass(FoldBatchNorm(), graph_of(before, [X, W, B, *NORM]))
    assert run_pass(FoldBatchNorm(), once)[0] is once


def test_gain():
    graph = graph_of(before, [torch.randn(2, 3, 112, 112), W, B, *NORM])
    found, _ = run_pass(FoldBatchNorm(), graph)
    target = Target.parse("cpu:avx512")
    assert graph_seconds(found, target) < graph_seconds(graph, target)


def test_square_images_of_any_size():
    """One size for height and width: torch itself never asks whether a plane has one element."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, 2, 1, bias=False),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.Conv2d(8, 4, 3, padding=1),
        torch.nn.BatchNorm2d(4),
    ).eval()
    for norm in net[1], net[4]:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    side = torch.export.Dim("side", min=2)
    made = infopt.compile(net, (torch.randn(2, 3, 9, 9),), dynamic_shapes=({2: side, 3: side},))
    assert made.report.aten_nodes == 0, made.report
    for n in (9, 32, 3, 2, 1):
        image = torch.randn(2, 3, n, n)
        with torch.no_grad():
            torch.testing.assert_close(made(image), net(image), rtol=1e-5, atol=1e-5)
