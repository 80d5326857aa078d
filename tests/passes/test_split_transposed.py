"""split-transposed: rewrites, declines, accuracy, idempotence, gain."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import infopt
from infopt.compiler.graph import Graph
from infopt.compiler.infer import Builder
from infopt.compiler.interpret import interpret
from infopt.compiler.testing import run_pass
from infopt.compiler.types import TensorType
from infopt.passes.split_transposed import TRANSPOSED, SplitTransposed

X, W, B = torch.randn(2, 4, 9), torch.randn(4, 3, 4), torch.randn(3)


def program(
    x: torch.Tensor = X, w: torch.Tensor = W, b: torch.Tensor | None = B, **attrs: Any
) -> Graph:
    """A transposed convolution of x with constants."""
    axes, o = x.dim() - 2, Builder()
    named = {"stride": (2,), "padding": (1,), "output_padding": (0,)} | attrs
    named = {"dilation": (1,), "groups": 1} | named
    op = next(name for name, count in TRANSPOSED.items() if count == axes)
    consts = {"w": w} | ({} if b is None else {"b": b})
    held = [o.const(name, TensorType.of(t)) for name, t in consts.items()]
    given_x = o.input("x", TensorType.of(x))
    return Graph((given_x,), (o.call(op, given_x, *held, *[None] * (b is None), **named),), consts)


def test_rewrites() -> None:
    """Kernel 4, stride 2: even places see taps 3 and 1 of it, odd ones 2 and 0, bias for both."""
    made, report = run_pass(SplitTransposed(), program(), [(X,)])
    assert len(report.applied) == 1
    (conv,) = (n for n in made.nodes() if n.op.name == "aten.conv1d.default")
    w, b = (made.consts[str(a.attr("name"))] for a in conv.args[1:])  # type: ignore[union-attr]
    phases = torch.stack((W[:, :, [2, 0]], W[:, :, [3, 1]]), 2)  # [C, O, 2, taps]
    assert torch.equal(w, phases.permute(1, 2, 0, 3).reshape(6, 4, 2))
    assert torch.equal(b, B.repeat_interleave(2))
    assert conv.attr("padding") == (1,) and conv.attr("stride") == (1,)


DECLINED = {
    "dilation (2,)": {"dilation": (2,)},
    "padding 4 crops more than a kernel of 4": {"padding": (4,)},
    "8 taps for 4: half of them would be zeros": {"stride": (8,)},
}


@pytest.mark.parametrize("reason", DECLINED)
def test_declines(reason: str) -> None:
    start = program(**DECLINED[reason])
    found, report = run_pass(SplitTransposed(), start)
    assert found is start and report.declined[0].reason == reason


def test_declines_weights_that_are_inputs() -> None:
    o = Builder()
    x, w = o.input("x", TensorType.of(X)), o.input("w", TensorType.of(W))
    named = {"stride": (2,), "padding": (1,), "output_padding": (0,), "dilation": (1,)}
    y = o.call("aten.conv_transpose1d.default", x, w, None, groups=1, **named)
    _, report = run_pass(SplitTransposed(), Graph((x, w), (y,)))
    assert "its phases would be made at every call" in report.declined[0].reason


@pytest.mark.slow
@settings(max_examples=60)
@given(data=st.data())
def test_accuracy(data: st.DataObject) -> None:
    """Any window in one and two dimensions, with and without groups and bias, is torch's."""
    axes, groups = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3))
    stride = [data.draw(st.integers(1, 4)) for _ in range(axes)]
    kernel = [data.draw(st.integers(-(-s // 2) + 1, 7)) for s in stride]
    attrs = {
        "stride": tuple(stride),
        "padding": tuple(data.draw(st.integers(0, k - 1)) for k in kernel),
        "output_padding": tuple(data.draw(st.integers(0, s - 1)) for s in stride),
        "groups": groups,
    }
    sizes = [data.draw(st.integers(1, 6)) for _ in range(axes)]
    torch.manual_seed(data.draw(st.integers(0, 99)))
    x = torch.randn(2, 2 * groups, *sizes, dtype=torch.float64)
    w = torch.randn(2 * groups, 3, *kernel, dtype=torch.float64)
    b = torch.randn(3 * groups, dtype=torch.float64) if data.draw(st.booleans()) else None
    transpose = F.conv_transpose1d if axes == 1 else F.conv_transpose2d
    try:
        expected = transpose(x, w, b, dilation=1, **attrs)
    except RuntimeError:  # more is cropped than there is
        return
    found, report = run_pass(SplitTransposed(), program(x, w, b, dilation=(1,) * axes, **attrs))
    torch.testing.assert_close(interpret(found, [x])[0], expected)
    assert report.applied or "would be zeros" in report.declined[0].reason


def test_idempotent() -> None:
    once, _ = run_pass(SplitTransposed(), program())
    again, _ = run_pass(SplitTransposed(), once)
    assert again is once


@torch.no_grad()
def test_gain() -> None:
    """What was torch's is native, for open lengths too, and weights can still be exchanged."""
    net = nn.ConvTranspose1d(6, 5, 8, stride=4, padding=2).eval()
    length = torch.export.Dim("length", min=2)
    made = infopt.compile(net, (torch.randn(2, 6, 9),), dynamic_shapes={"input": {2: length}})
    assert made.report.aten_nodes == 0, made.report
    plain = infopt.compile(
        net, (torch.randn(2, 6, 9),), passes=infopt.default_passes(remove=["split-transposed"])
    )
    assert plain.report.aten_nodes == 1
    other = nn.ConvTranspose1d(6, 5, 8, stride=4, padding=2).eval()
    for size in (2, 9, 40):
        x = torch.randn(2, 6, size)
        torch.testing.assert_close(made(x), net(x))
    made.load_weights(other.state_dict())
    torch.testing.assert_close(made(x), other(x))
