"""Convolutions against torch in float64, at every level this machine runs, over odd sizes."""

import ctypes
import pathlib
import shutil
import subprocess

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import infopt
import infopt.codegen
from infopt.codegen.build import find_compiler
from infopt.codegen.kernels.conv import conv_act
from infopt.codegen.kernels.conv import convolution as convolution_call
from infopt.codegen.kernels.window import window_of
from infopt.codegen.load import lower_for, program
from infopt.compiler.target import LEVELS, Target
from infopt.compiler.testing import graph_of as build_graph
from infopt.compiler.types import TensorType
from tests.codegen import kernel_call
from tests.codegen.kernel_call import call_kernel, poisoned
from tests.codegen.traced import graph_of

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
RUNNABLE = [level for level in LEVELS if level in Target.detect().features]
ROUNDING = {F32: 2e-6, BF16: 8e-3, F16: 1e-3}  # of the result, relative to its largest value
CSRC = pathlib.Path(infopt.codegen.__file__).resolve().parent / "csrc"
CHANNELS_LAST = torch.channels_last

# batch, channels, height, width, features, kernel, stride, padding, dilation, groups
IMAGES = {
    "stem": (1, 3, 23, 25, 8, (7, 7), (2, 2), (3, 3), (1, 1), 1),
    "same": (2, 16, 7, 7, 50, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "pixels": (3, 9, 7, 5, 13, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    "strided pixels": (2, 40, 5, 5, 7, (1, 1), (2, 2), (0, 0), (1, 1), 1),
    "groups": (2, 12, 9, 6, 20, (3, 2), (1, 2), (0, 1), (1, 1), 4),
    "far taps": (1, 4, 9, 30, 5, (5, 3), (3, 1), (2, 6), (2, 3), 1),
    "stride 3": (1, 5, 20, 20, 6, (2, 5), (3, 3), (1, 4), (1, 1), 1),
    "several cuts of k": (1, 250, 6, 6, 100, (3, 3), (1, 1), (1, 1), (1, 1), 1),
    "depthwise": (2, 5, 11, 70, 5, (3, 3), (1, 1), (1, 1), (1, 1), 5),
    "depthwise, strided": (1, 3, 18, 37, 9, (5, 4), (2, 2), (2, 1), (2, 1), 3),
    "depthwise, stride 3": (1, 3, 18, 37, 3, (3, 7), (1, 3), (0, 3), (1, 2), 3),
    "one pixel": (1, 6, 1, 1, 4, (3, 3), (1, 1), (1, 1), (1, 1), 1),
}


def given_images(case, dtype):
    n, c, h, w, o, kernel, stride, padding, dilation, groups = case
    torch.manual_seed(0)
    terms = c // groups * kernel[0] * kernel[1]
    x = torch.randn(n, c, h, w).to(dtype)
    weight = (torch.randn(o, c // groups, *kernel) / terms**0.5).to(dtype)
    return (x, weight, torch.randn(o).to(dtype)), (stride, padding, dilation, groups)


def convolution(window):
    return lambda x, w, b: F.conv2d(x, w, b, *window)


def agrees(f, args, level=None, graph=None):
    """f on native code at a level is f in float64, rounded once."""
    target = Target.parse(f"cpu:{level}") if level else Target.detect()
    lowered = lower_for(graph or graph_of(f, args), target)
    assert lowered.report.aten_nodes == 0, lowered.report
    with torch.no_grad():
        (found,) = program(lowered, threads=2)([a.clone() for a in args])
        exact = f(*[a.double() for a in args])
        expected = f(*args)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert found.stride() == expected.stride()
    error = (found.double() - exact).abs().max() / exact.abs().max().clamp_min(1e-30)
    assert error <= ROUNDING[args[0].dtype], f"relative error {error:.2e}"


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("name", IMAGES)
def test_images(name, dtype):
    args, window = given_images(IMAGES[name], dtype)
    agrees(convolution(window), args)


@pytest.mark.parametrize("level", RUNNABLE)
@pytest.mark.parametrize("dtype", [F32, BF16, F16])
def test_levels(level, dtype):
    for name in ("stem", "groups", "same", "far taps", "stride 3", "depthwise"):
        args, window = given_images(IMAGES[name], dtype)
        agrees(convolution(window), args, level)


def run_call(name, dtype, level):
    """One case as its emitter has it called: in two ranges, with its scratch and no byte more."""
    (x, w, b), (stride, padding, dilation, groups) = given_images(IMAGES[name], dtype)
    attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    expected = F.conv2d(x.double(), w.double(), b.double(), **attrs)
    out = poisoned(expected.shape, dtype)
    types = [TensorType.of(t) for t in (x, w, out, b)]
    named = ("x", "weight", None, "shift", None)
    window, target = window_of(types[1], attrs), Target.parse(f"cpu:{level},cores=2")
    made = convolution_call(*types[:3], named, window, target, shift=types[3])
    tensors = [x, w, None, b, None, out]
    call_kernel(level, made.symbol, tensors, made.numbers, made.tasks, made.scratch)
    error = (out.double() - expected).abs().max() / expected.abs().max()
    assert error <= ROUNDING[dtype], f"{name}: relative error {error:.2e}"


@pytest.mark.parametrize("level", RUNNABLE)
@pytest.mark.parametrize("dtype", [F32, BF16, F16])
def test_scratch_and_task_ranges(level, dtype):
    for name in IMAGES:
        run_call(name, dtype, level)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler (g++)")
def test_tiles(tmp_path, monkeypatch):
    """The AMX form of the product, its tiles in plain C++."""
    library = tmp_path / "conv_emulated.so"
    flags = ["-O0", "-std=c++17", "-fPIC", "-shared", "-w", "-DINFOPT_EMULATE_AMX"]
    subprocess.run(["g++", *flags, str(CSRC / "kernels_conv.cpp"), "-o", str(library)], check=True)
    monkeypatch.setattr(kernel_call, "_library", lambda level: ctypes.CDLL(str(library)))
    for name in IMAGES:
        run_call(name, BF16, "amx")


@pytest.mark.parametrize("dtype", [F32, BF16])
def test_layouts(dtype):
    """channels_last weights are read where they lie, other images are brought into rows."""
    (x, w, b), window = given_images(IMAGES["stem"], dtype)

    def f(x, w, b):
        return F.conv2d(x, w, b, *window)

    agrees(f, (x, w.contiguous(memory_format=CHANNELS_LAST), b))
    agrees(f, (x.contiguous(memory_format=CHANNELS_LAST), w, b))
    agrees(lambda x, w, b: f(x.transpose(2, 3), w, b), (x, w, b))
    agrees(lambda x, w, b: f(x[:, :, 1:-1, 2:-1], w, b), (x, w, b))
    agrees(lambda x, w, b: f(x.expand(3, -1, -1, -1), w, b), (x, w, b))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_named_paddings(padding):
    (x, w, b), _ = given_images((2, 3, 9, 8, 5, (4, 3), 1, 1, 1, 1), F32)
    agrees(lambda x, w, b: F.conv2d(x, w, b, 1, padding, (1, 2)), (x, w, b))
    agrees(lambda x, w: F.conv1d(x[:, :, 0], w[:, :, 0], None, 1, padding, 3), (x, w))


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
def test_lines(dtype):
    x, w = torch.randn(2, 6, 61).to(dtype), torch.randn(10, 3, 5).to(dtype) / 4
    agrees(lambda x, w: F.conv1d(x, w, None, 2, 3, 2, 2), (x, w))


def test_every_size_of_one_program():
    """Batch, height and width are open, and no size is taken from the first call."""
    net = torch.nn.Conv2d(3, 5, 3, stride=2, padding=1).eval()
    sizes = {axis: torch.export.Dim(name, min=2) for axis, name in ((0, "n"), (2, "h"), (3, "w"))}
    made = infopt.compile(net, (torch.randn(2, 3, 9, 8),), dynamic_shapes={"input": sizes})
    assert made.report.aten_nodes == 0, made.report
    for n, h, width in ((2, 9, 8), (5, 30, 7), (3, 2, 41)):
        image = torch.randn(n, 3, h, width)
        with torch.no_grad():
            torch.testing.assert_close(made(image), net(image))


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_epilogues(groups, dtype):
    """scale, shift, residual before or after the activation; groups of one channel slide."""
    torch.manual_seed(0)
    x, w = torch.randn(2, 4, 9, 35).to(dtype), torch.randn(8, 4 // groups, 3, 3).to(dtype) / 4
    scale, shift = torch.rand(8) + 0.5, torch.randn(8)
    residual = torch.randn(2, 8, 9, 35).to(dtype)
    for first in (False, True):
        more = {"activation": "silu", "add_first": first, "padding": (1, 1), "groups": groups}
        args = (x, w, scale, shift, residual)
        graph = build_graph(lambda o, *nodes: o.call(conv_act, *nodes, **more), args)  # noqa: B023
        assert [n.op for n in graph.nodes()].count(conv_act) == 1
        agrees(lambda *tensors: conv_act(*tensors, **more), args, graph=graph)  # noqa: B023


def test_cores_share_features_where_they_cannot_share_pixels():
    """14 x 14 pixels are 13 panels: two cores with 7 and 6 of them would not end together. Where
    pixels are two apart panels cost more than that, and each is made once."""
    out, weight = (TensorType.dense(n, F32) for n in ((1, 256, 14, 14), (256, 256, 3, 3)))
    names, target = ("x", "weight", None, None, None), Target.parse("cpu:avx512,cores=2")
    for stride, size, tasks, shape in ((1, 14, 4, (128, 7)), (2, 28, 2, (256, 7))):
        x = TensorType.dense((1, 256, size, size), F32)
        attrs = {"stride": (stride,) * 2, "padding": (1, 1), "dilation": (1, 1), "groups": 1}
        call = convolution_call(x, weight, out, names, window_of(weight, attrs), target)
        assert call.tasks == tasks and call.numbers[21:23] == shape


def test_an_empty_batch():
    (x, w, b), _ = given_images(IMAGES["same"], F32)
    graph = graph_of(lambda x, w, b: F.max_pool2d(F.conv2d(x, w, b), 2), (x[:0], w, b))
    (found,) = program(lower_for(graph, Target.detect()))([x[:0], w, b])
    assert found.shape == (0, 50, 2, 2)


def test_special_values_reach_only_their_windows():
    x = torch.zeros(1, 1, 6, 6)
    x[0, 0, 0, 0], x[0, 0, 5, 5] = float("nan"), float("inf")
    w = torch.ones(1, 1, 3, 3)
    graph = graph_of(lambda x, w: F.conv2d(x, w, padding=1), (x, w))
    made = program(lower_for(graph, Target.detect()))
    expected = F.conv2d(x, w, padding=1)
    assert torch.equal(made([x, w])[0].isnan(), expected.isnan())
    assert torch.equal(made([x, w])[0].isinf(), expected.isinf())


@settings(max_examples=25)
@given(
    st.tuples(
        st.integers(1, 3), st.integers(1, 5), st.integers(1, 20), st.integers(1, 40),
        st.integers(1, 20), st.tuples(st.integers(1, 4), st.integers(1, 7)),
        st.tuples(st.integers(1, 3), st.integers(1, 3)),
        st.tuples(st.integers(0, 3), st.integers(0, 3)),
        st.tuples(st.integers(1, 2), st.integers(1, 3)), st.integers(1, 3),
    ),
    st.sampled_from([F32, BF16]),
)  # fmt: skip
def test_any_window(case, dtype):
    n, c, h, w, o, kernel, stride, padding, dilation, groups = case
    for size, k, p, d in zip((h, w), kernel, padding, dilation, strict=True):
        if size + 2 * p < d * (k - 1) + 1:
            return
    args, window = given_images(
        (n, c * groups, h, w, o * groups, kernel, stride, padding, dilation, groups), dtype
    )
    agrees(convolution(window), args)


def test_reasons():
    def reason(f, *args):
        return lower_for(graph_of(f, args), Target.detect()).report.reasons

    x, w = torch.randn(1, 2, 5, 5), torch.randn(3, 2, 3, 3)
    assert "torch.float64" in reason(F.conv2d, x.double(), w.double())["aten.conv2d.default"]
    assert "expected a batch" in reason(F.conv2d, x[0], w)["aten.conv2d.default"]
