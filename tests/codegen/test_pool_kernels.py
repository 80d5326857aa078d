"""Poolings against torch: NaN and infinities, padding, uneven ends, every level, every layout."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from infopt.codegen.build import find_compiler
from infopt.codegen.load import lower_for, program
from infopt.compiler.target import LEVELS, Target
from tests.codegen.traced import bits_equal, graph_of

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
RUNNABLE = [level for level in LEVELS if level in Target.detect().features]
CLOSE = {F32: (1e-6, 1e-6), BF16: (8e-3, 1e-3), F16: (1e-3, 1e-4)}

MAXIMA = {
    "as resnet": lambda x: F.max_pool2d(x, 3, 2, 1),
    "no overlap": lambda x: F.max_pool2d(x, 2),
    "uneven end": lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
    "dilated": lambda x: F.max_pool2d(x, (2, 3), (1, 3), (1, 1), (2, 2)),
    "line": lambda x: F.max_pool1d(x[:, :, 0], 3, 2, 1),
}
AVERAGES = {
    "padded": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "uneven end": lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
    "padding not counted": lambda x: F.avg_pool2d(x, (3, 2), 2, 1, True, count_include_pad=False),
    "divisor": lambda x: F.avg_pool2d(x, 3, 2, 1, divisor_override=5),
    "line": lambda x: F.avg_pool1d(x[:, :, 0], 3, 2, 1),
    "all": lambda x: F.adaptive_avg_pool2d(x, 1),
    "parts": lambda x: F.adaptive_avg_pool2d(x, (3, 5)),
    "parts of rows": lambda x: F.adaptive_avg_pool2d(x, (None, 4)),
    "parts of a line": lambda x: F.adaptive_avg_pool1d(x[:, :, 0], 4),
}


def images(dtype=F32, height=17, width=70):
    torch.manual_seed(0)
    return torch.randn(2, 3, height, width).to(dtype)


def native(f, x, level=None):
    target = Target.parse(f"cpu:{level}") if level else Target.detect()
    lowered = lower_for(graph_of(f, (x,)), target)
    assert lowered.report.aten_nodes == 0, lowered.report
    return program(lowered, threads=2)([x])[0]


@pytest.mark.parametrize("level", RUNNABLE)
@pytest.mark.parametrize("dtype", [F32, BF16, F16])
def test_maxima_are_the_same_bits(level, dtype):
    x = images(dtype)
    x[0, 0, 2, 3], x[0, 1, 0, 0], x[1, 2, 16, 69] = float("nan"), float("inf"), float("nan")
    x[1, 0] = float("-inf")
    for name, f in MAXIMA.items():
        assert bits_equal(native(f, x, level), f(x)), name


@pytest.mark.parametrize("level", RUNNABLE)
@pytest.mark.parametrize("dtype", [F32, BF16, F16])
def test_averages(level, dtype):
    rtol, atol = CLOSE[dtype]
    x = images(dtype)
    x[0, 0, 2, 3] = float("nan")
    for f in AVERAGES.values():
        expected = f(x.double()).to(dtype)
        torch.testing.assert_close(
            native(f, x, level), expected, rtol=rtol, atol=atol, equal_nan=True
        )


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (7, 7), (40, 200)])
def test_sizes(size):
    x = images(F32, *size)
    assert bits_equal(native(MAXIMA["as resnet"], x), MAXIMA["as resnet"](x))
    torch.testing.assert_close(native(AVERAGES["padded"], x), AVERAGES["padded"](x))
    torch.testing.assert_close(native(AVERAGES["all"], x), AVERAGES["all"](x))


def test_layouts():
    for x in (
        images().contiguous(memory_format=torch.channels_last),
        images()[:, 1:, 2:-2, 3:-3],
        images().transpose(2, 3),
    ):
        for f in (MAXIMA["as resnet"], AVERAGES["padded"], AVERAGES["parts"]):
            found, expected = native(f, x), f(x)
            assert found.stride() == expected.stride()
            torch.testing.assert_close(found, expected)


@settings(max_examples=25)
@given(
    st.integers(1, 20), st.integers(1, 70), st.tuples(st.integers(1, 4), st.integers(1, 5)),
    st.tuples(st.integers(1, 4), st.integers(1, 4)), st.booleans(), st.booleans(), st.data(),
)  # fmt: skip
def test_any_window(height, width, kernel, stride, uneven, counted, data):
    padding = tuple(data.draw(st.integers(0, k // 2)) for k in kernel)
    sizes = zip((height, width), kernel, padding, strict=True)
    if any(n + 2 * p < k for n, k, p in sizes):
        return
    x = images(F32, height, width)

    def maximum(x):
        return F.max_pool2d(x, kernel, stride, padding, 1, uneven)

    def average(x):
        return F.avg_pool2d(x, kernel, stride, padding, uneven, counted)

    assert bits_equal(native(maximum, x), maximum(x))
    torch.testing.assert_close(native(average, x), average(x))


def test_reasons():
    def reasons(f, x):
        return list(lower_for(graph_of(f, (x,)), Target.detect()).report.reasons.values())

    assert "torch.float64" in reasons(MAXIMA["no overlap"], images().double())[0]
    assert "expected a batch of images" in reasons(MAXIMA["no overlap"], images()[0])[0]
