"""conv2d with stride = kernel as one matrix product."""

from __future__ import annotations

import pytest
import torch

from infopt.compiler.testing import check_pass, graph_of, run_pass
from infopt.passes.unfold_patches import UnfoldPatches


def inputs(height: int = 12, patch: int = 4, bias: bool = True) -> list[torch.Tensor]:
    torch.manual_seed(0)
    found = [torch.randn(2, 3, height, 8), torch.randn(5, 3, patch, patch)]
    return [*found, torch.randn(5)] if bias else found


def conv(stride=(4, 4), padding=(0, 0), dilation=(1, 1), groups=1):
    def build(o, x, weight, bias=None):
        return o.conv2d(x, weight, bias, stride, padding, dilation, groups)

    return build


def expected(o, x, weight, bias=None):
    pieces = o.permute(o.reshape(x, [2, 3, 3, 4, 2, 4]), [0, 2, 4, 1, 3, 5])
    flat = o.reshape(weight, [5, 48])
    y = o.linear(o.reshape(pieces, [2, 6, 48]), flat, bias)
    return o.reshape(o.permute(y, [0, 2, 1]), [2, 5, 3, 2])


@pytest.mark.parametrize("bias", [True, False])
def test_rewrites(bias):
    check_pass(UnfoldPatches(), conv(), expected, inputs(bias=bias))


@pytest.mark.parametrize(
    ("build", "given", "reason"),
    [
        (conv(stride=(2, 2)), inputs(), "patches overlap or leave gaps"),
        (conv(padding=(1, 1)), inputs(), "padding (1, 1)"),
        (conv(padding=(0, 1)), inputs(), "padding (0, 1)"),
        (
            conv(),
            [t[0] if t.dim() == 4 and t.shape[0] == 2 else t for t in inputs()],
            "expected [batch, channels",
        ),
        (conv(stride=(1, 1)), inputs(patch=1), "the kernel is 1x1"),
        (conv(dilation=(2, 2)), inputs(patch=2), "patches overlap or leave gaps"),
        (conv(), inputs(height=13), "is not a known multiple of the patch size 4"),
    ],
)
def test_declines(build, given, reason):
    start = graph_of(build, given)
    found, report = run_pass(UnfoldPatches(), start)
    assert found is start
    assert reason in report.declined[0].reason


def test_groups_are_declined():
    given = [torch.randn(2, 4, 8, 8), torch.randn(4, 2, 4, 4)]
    _, report = run_pass(UnfoldPatches(), graph_of(conv(groups=2), given))
    assert "groups 2" in report.declined[0].reason


def test_accuracy():
    given = inputs()
    _, report = run_pass(UnfoldPatches(), graph_of(conv(), given), [tuple(given)])
    assert len(report.applied) == 1  # Exact was measured by the pipeline, else ContractBroken


def test_idempotent():
    found, _ = run_pass(UnfoldPatches(), graph_of(conv(), inputs()))
    again, _ = run_pass(UnfoldPatches(), found)
    assert again is found


def test_gain():
    """A canonical form: applied wherever it is legal, without a prediction."""
    assert UnfoldPatches.always
    _, report = run_pass(UnfoldPatches(), graph_of(conv(), inputs()))
    assert report.applied[0].gain is None


def test_padding_by_name():
    def named(o, x, weight, padding):
        return o.call("aten.conv2d.padding", x, weight, None, [4, 4], padding)

    x, weight = inputs()[0], torch.randn(5, 3, 4, 4)
    check_pass(UnfoldPatches(), lambda o, x, w: named(o, x, w, "valid"), expected, [x, weight])
    one = torch.randn(5, 3, 1, 1)
    graph = graph_of(
        lambda o, x, w: o.call("aten.conv2d.padding", x, w, None, [1, 1], "same"), [x, one]
    )
    assert run_pass(UnfoldPatches(), graph)[0] is graph
