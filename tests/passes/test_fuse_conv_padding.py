"""fuse-conv-padding: rewrites, declines, accuracy, idempotence, gain."""

import pytest
import torch

from infopt.codegen.kernels.conv import conv_act
from infopt.compiler.cost import graph_seconds
from infopt.compiler.target import Target
from infopt.compiler.testing import check_pass, graph_of, run_pass
from infopt.passes.fuse_conv_padding import FuseConvPadding

X, W, B = torch.randn(2, 4, 9, 8), torch.randn(6, 4, 3, 3) / 6, torch.randn(6)
INPUTS = [X, W, B]
REST = {"stride": [2, 1], "dilation": [1, 1], "groups": 1}


def before(o, x, w, b, pad=(1, 1, 2, 2), **attrs):
    return o.conv2d(o.pad(x, list(pad), **attrs), w, b, padding=[0, 1], **REST)


def test_rewrites_equal_sides():
    def expected(o, x, w, b):
        return o.conv2d(x, w, b, padding=[2, 2], **REST)

    check_pass(FuseConvPadding(), before, expected, INPUTS)


def test_rewrites_unequal_sides():
    def padded(o, x, w, b):
        return before(o, x, w, b, (0, 1, 2, 3), value=0.0)

    def expected(o, x, w, b):
        return o.call(conv_act, x, w, None, b, padding=[2, 3, 1, 2], **REST)

    check_pass(FuseConvPadding(), padded, expected, INPUTS)


def test_rewrites_a_scaled_convolution_and_a_line():
    def scaled(o, x, w, b):
        return o.call(conv_act, o.pad(x, [0, 1]), w, b, b, padding=[0, 0], **REST)

    def expected(o, x, w, b):
        return o.call(conv_act, x, w, b, b, padding=[0, 0, 0, 1], **REST)

    check_pass(FuseConvPadding(), scaled, expected, INPUTS)
    check_pass(
        FuseConvPadding(),
        lambda o, x, w: o.call(
            torch.ops.aten.conv1d.padding, o.pad(x, [3, 1]), w, None, padding="valid"
        ),
        lambda o, x, w: o.call(conv_act, x, w, None, None, padding=[3, 1], **LINE),
        [X[:, :, 0], W[:, :, 0]],
    )


LINE = {"stride": [1], "dilation": [1], "groups": 1}
DECLINED = {
    "padding of mode reflect and value None, expected constant zeros": {"mode": "reflect"},
    "padding of mode constant and value 1.0, expected constant zeros": {"value": 1.0},
    "padding (1, -1, 0, 0) that crops or is open": {"pad": (1, -1, 0, 0)},
    "padding (1, 1, 0, 0, 0, 1) of more than the window's axes": {
        "pad": (1, 1, 0, 0, 0, 1),
        "channels": 3,
    },
}


@pytest.mark.parametrize("reason", DECLINED)
def test_declines(reason):
    def build(o, x, w, b):
        options = dict(DECLINED[reason])
        given = o.slice(x, 1, 0, options.pop("channels", 4))
        return before(o, given, w, b, **options)

    graph = graph_of(build, INPUTS, FuseConvPadding())
    found, report = run_pass(FuseConvPadding(), graph)
    assert found is graph and report.declined[0].reason == reason


def test_accuracy():
    _, report = run_pass(
        FuseConvPadding(), graph_of(before, INPUTS, FuseConvPadding()), [tuple(INPUTS)]
    )
    assert len(report.applied) == 1


def test_idempotent():
    once, _ = run_pass(FuseConvPadding(), graph_of(before, INPUTS, FuseConvPadding()))
    assert run_pass(FuseConvPadding(), once)[0] is once


def test_gain():
    graph = graph_of(before, INPUTS, FuseConvPadding())
    found, _ = run_pass(FuseConvPadding(), graph)
    target = Target.parse("cpu:avx512")
    assert graph_seconds(found, target) < graph_seconds(graph, target)


def test_same_padding_would_change_with_the_size():
    def same(o, x, w, b):
        return o.call("aten.conv2d.padding", o.pad(x, [1, 1]), w, b, padding="same")

    _, report = run_pass(FuseConvPadding(), graph_of(same, INPUTS, FuseConvPadding()))
    assert report.declined[0].reason == 'padding "same" on top of it'


@pytest.mark.parametrize("padding", [[0, 1], [1], [2, 2]])
def test_padding_that_is_there_already_is_added_to(padding):
    sides = padding * 2 if len(padding) == 1 else padding
    check_pass(
        FuseConvPadding(),
        lambda o, x, w, b: o.conv2d(o.pad(x, [3, 3, 2, 2]), w, b, padding=padding, **REST),
        lambda o, x, w, b: o.conv2d(x, w, b, padding=[sides[0] + 2, sides[1] + 3], **REST),
        INPUTS,
    )
