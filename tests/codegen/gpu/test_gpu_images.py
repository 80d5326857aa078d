"""Convolutions, poolings and group norm on a GPU: windows of any kind, epilogues, layouts."""

import pytest
import torch
import torch.nn.functional as F

from infopt.codegen.gpu.conv import TILES_SPACE
from infopt.codegen.kernels.conv import conv_act
from infopt.codegen.kernels.narrow_conv import narrow_conv
from infopt.compiler.ops import aten
from tests.codegen.gpu.launched import check, compiles, every_arch, gpu, launches_of, most
from tests.codegen.test_pool_kernels import AVERAGES, MAXIMA
from tests.gpu.interpreted import check as check_program

CONV, GROUP_NORM = aten("conv2d.default"), aten("group_norm.default")
SMALL = {"tile": "16x32x16 w4 s2"}  # a case has several tiles
# channels, height, width, features, kernel, stride, padding, dilation, groups
WINDOWS = {
    "stem": (3, 11, 13, 20, (7, 7), (2, 2), (3, 3), (1, 1), 1),
    "pixels": (9, 7, 5, 13, (1, 1), (1, 1), (0, 0), (1, 1), 1),
    "groups": (12, 9, 6, 20, (3, 2), (1, 2), (0, 1), (1, 1), 4),
    "far taps": (4, 9, 13, 5, (5, 3), (3, 1), (2, 6), (2, 3), 1),
    "depthwise": (3, 11, 30, 9, (5, 4), (2, 2), (2, 1), (2, 1), 3),
}


def images(name, dtype=torch.float32):
    c, h, w, o, kernel, stride, padding, dilation, groups = WINDOWS[name]
    x, weight = torch.randn(2, c, h, w), torch.randn(o, c // groups, *kernel) / 5
    attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return [t.to(dtype) for t in (x, weight, torch.randn(o))], attrs


@pytest.mark.parametrize("op", [conv_act, narrow_conv], ids=lambda o: o.name)
def test_cases(op):
    for args, attrs in op.cases():
        check(op, args, attrs, choice=SMALL)


@pytest.mark.parametrize("dtype", [torch.bfloat16, *most(torch.float32, torch.float16)], ids=str)
@pytest.mark.parametrize("name", WINDOWS)
def test_windows(name, dtype):
    args, attrs = images(name, dtype)
    check(CONV, args, attrs, choice=SMALL)


def test_layouts():
    (x, w, b), attrs = images("groups")
    last = torch.channels_last
    for weight in (w, w.contiguous(memory_format=last)):
        for given in (
            x,
            x.contiguous(memory_format=last),
            x.expand(2, -1, -1, -1).flip(3)[..., 1:],
        ):
            check(CONV, (given, weight, b), attrs, choice=SMALL)
    check(CONV, (x, w, b), attrs, opened=9, choice=SMALL)


@pytest.mark.parametrize("name", ["pixels", "depthwise"])
def test_epilogues(name):
    (x, w, _), attrs = images(name)
    o = w.shape[0]
    scale, shift = torch.rand(o) + 0.5, torch.randn(o)
    residual = torch.randn_like(F.conv2d(x, w, **attrs))
    for first in (False, True):
        more = attrs | {"activation": "silu", "add_first": first}
        check(conv_act, (x, w, scale, shift, residual), more, choice=SMALL)


def test_special_values_reach_only_their_windows():
    x = torch.zeros(1, 1, 6, 6)
    x[0, 0, 0, 0], x[0, 0, 5, 5] = float("nan"), float("inf")
    usual = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    check(CONV, (x, torch.ones(2, 1, 3, 3), None), usual)
    check(CONV, (x.repeat(1, 2, 1, 1), torch.ones(2, 1, 3, 3), None), usual | {"groups": 2})


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_named_paddings_and_lines():
    (x, w), close = (torch.randn(2, 3, 9, 8), torch.randn(5, 3, 4, 3)), (1e-4, 1e-4)
    check_program(lambda x, w: F.conv2d(x, w, None, 1, "same", (1, 2)), x, w, close=close)
    check_program(lambda x, w: F.conv1d(x[:, :, 0], w[:, :, 0], None, 2, 1), x, w, close=close)


@pytest.mark.parametrize("name", [*MAXIMA, *AVERAGES])
def test_poolings(name):
    x = torch.randn(2, 3, 9, 22)
    x[0, 0, 2, 3], x[0, 1, 0, 0], x[1, 0] = float("nan"), float("inf"), -float("inf")
    f = MAXIMA.get(name) or AVERAGES[name]
    close = None if name in MAXIMA else (1e-6, 1e-6)
    for given in (x, x.transpose(2, 3)):
        made = check_program(f, given, close=close)
        assert sum(made.device.launched.values()) > 0, "torch ran it"
    if name in MAXIMA:
        check_program(f, x.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_group_norm(dtype):
    attrs = {"num_groups": 3, "eps": 1e-5, "cudnn_enabled": True}
    x, w = (torch.randn(2, 6, 31, 40) + 3).to(dtype), torch.randn(6)
    check(GROUP_NORM, (x, w.to(dtype), w.to(dtype)), attrs)
    check(GROUP_NORM, (x[:, :, 0].transpose(0, 2)[:, :6], None, None), attrs)
    check(GROUP_NORM, (x, w.to(dtype), None), attrs, opened=31)


def empty(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


def conv_args(name, dtype):
    c, o, size, kernel, stride, groups = {
        "stem": (3, 64, 224, 7, 2, 1),
        "inner": (256, 256, 14, 3, 1, 1),
        "depthwise": (96, 96, 56, 3, 1, 96),
    }[name]
    x, w = empty(8, c, size, size, dtype=dtype), empty(o, c // groups, kernel, kernel, dtype=dtype)
    f = empty(o, dtype=torch.float32)
    out = -(-size // stride)
    attrs = {"stride": (stride,) * 2, "padding": (kernel // 2,) * 2, "groups": groups}
    return (x, w, f, f, empty(8, o, out, out, dtype=dtype)), attrs | {"activation": "relu"}


@every_arch
def test_compiles(arch):
    for name in ("inner", "depthwise"):
        args, attrs = conv_args(name, torch.bfloat16)
        compiles(launches_of(conv_act, args, attrs, gpu(arch))[0], arch)
    attrs = {"num_groups": 32, "eps": 1e-5, "cudnn_enabled": True}
    compiles(launches_of(GROUP_NORM, (args[0], None, None), attrs, gpu(arch))[0], arch)


@pytest.mark.slow
@every_arch
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["stem", "inner", "depthwise"])
def test_every_schedule_compiles(arch, dtype, name):
    args, attrs = conv_args(name, dtype)
    for tile in TILES_SPACE["tile"]:
        choice = {"tile": tile}
        compiles(launches_of(conv_act, args, attrs, gpu(arch), choice)[0], arch)
        if name != "depthwise" and dtype is torch.float32:
            given = (*args[:2], *args[2:4], args[4])
            compiles(launches_of(narrow_conv, given, attrs, gpu(arch), choice)[0], arch)
