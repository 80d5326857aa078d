"""Norms and softmax on a GPU: rows that are one block, and longer ones."""

import pytest
import torch

from infopt.codegen.gpu import row_blocks
from infopt.codegen.kernels.layer_norm import add_layer_norm
from infopt.codegen.kernels.rms_norm import add_rms_norm, rms_norm
from infopt.compiler.ops import aten
from tests.codegen.gpu.launched import check, compiles, every_arch, gpu, launches_of

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
LAYER_NORM, RMS_NORM = aten("layer_norm.default"), aten("rms_norm.default")
SOFTMAX, LOG_SOFTMAX = aten("softmax.int"), aten("log_softmax.int")


@pytest.fixture(params=["whole", "long"])
def rows(request, monkeypatch):
    """Whether rows are one block, or are walked in steps of 32."""
    if request.param == "long":
        monkeypatch.setattr(row_blocks, "LONGEST", 8)
        monkeypatch.setattr(row_blocks, "LOOPED", 32)
    return request.param


@pytest.mark.parametrize("op", [rms_norm, add_rms_norm, add_layer_norm], ids=lambda o: o.name)
def test_cases(op, rows):
    for args, attrs in op.cases():
        (launch,) = check(op, args, attrs)
        assert launch.entry == ("norm_rows" if rows == "whole" else "norm_long_rows")


@DTYPES
def test_norms(dtype, rows):
    x, w, b = (torch.randn(*s).to(dtype) for s in ((3, 11, 50), (50,), (50,)))
    usual = {"normalized_shape": (50,), "eps": 1e-5, "cudnn_enable": True}
    check(LAYER_NORM, (x, w, b), usual)
    check(LAYER_NORM, (x,), usual)
    check(LAYER_NORM, (x.transpose(0, 1), w), usual)
    check(LAYER_NORM, (x[:, 0], w, b), usual)
    check(LAYER_NORM, (x[0, :1], w, b), usual)
    check(RMS_NORM, (x + 9, w), {"normalized_shape": (50,), "eps": 1e-6})
    check(rms_norm, (x, w.float()), {"eps": 1e-6})


def test_open_sizes():
    for n in (1, 3, 40):
        x, r, w = torch.randn(2, n, 50), torch.randn(2, n, 50), torch.randn(50)
        check(add_rms_norm, (x, r, w), {"eps": 1e-6}, opened=n if n != 1 else None)
    x, w = torch.randn(4, 50), torch.randn(50)
    (launch,) = check(rms_norm, (x, w), {"eps": 1e-6}, opened=50)
    assert launch.entry == "norm_long_rows"
    check(SOFTMAX, (torch.randn(2, 3, 37, 37),), {"dim": -1, "dtype": None}, opened=37)


@DTYPES
def test_softmax(dtype, rows):
    x = (torch.randn(2, 3, 4, 37) * 3).to(dtype)
    for op in (SOFTMAX, LOG_SOFTMAX):
        for given in (x, x.transpose(1, 2), x.transpose(2, 3), x[0, 0, 0], x[:, :, 1:, 3:]):
            check(op, (given,), {"dim": -1, "dtype": None})


def test_special_values(rows):
    x = torch.randn(6, 70)
    x[0, 3], x[1, 5], x[2, 6] = float("nan"), float("inf"), -float("inf")
    x[3], x[4, :40] = -float("inf"), -float("inf")
    for op in (SOFTMAX, LOG_SOFTMAX):
        check(op, (x,), {"dim": -1, "dtype": None})
    check(rms_norm, (x, torch.randn(70)), {"eps": 1e-6})
    check(LAYER_NORM, (x,), {"normalized_shape": (70,), "eps": 1e-5, "cudnn_enable": True})


def norm_args(width, dtype=torch.bfloat16):
    x = torch.empty(32, width, dtype=dtype, device="meta")
    return (x, x, x[0], x[0]), {"eps": 1e-5}


@every_arch
@pytest.mark.parametrize("width", [768, 20000])
def test_compiles(arch, width):
    args, attrs = norm_args(width)
    compiles(launches_of(add_layer_norm, args, attrs, gpu(arch))[0], arch)
    softmax = launches_of(SOFTMAX, args[:1], {"dim": -1, "dtype": None}, gpu(arch))[0]
    compiles(softmax, arch)


@pytest.mark.slow
@every_arch
@pytest.mark.parametrize("width", [64, 768, 4096, 8192, 16384, 20000])
def test_every_schedule_compiles(arch, width):
    args, attrs = norm_args(width)
    for warps in row_blocks.ROW_SPACE["warps"]:
        choice = {"warps": warps}
        compiles(launches_of(add_layer_norm, args, attrs, gpu(arch), choice)[0], arch)
        rms = {"eps": 1e-6, "offset": 0.0, "cast_first": True}
        compiles(launches_of(add_rms_norm, args[:3], rms, gpu(arch), choice)[0], arch)
        softmax = (LOG_SOFTMAX, args[:1], {"dim": -1, "dtype": None})
        compiles(launches_of(*softmax, gpu(arch), choice)[0], arch)
