"""Linear layers with weights in integers on a GPU; other formats: test_gpu_stored_formats.py."""

import itertools

import pytest
import torch

from infopt.codegen.kernels.quantized_linear import quantized_gated_linear, quantized_linear
from infopt.codegen.weight_formats.formats import FORMATS
from infopt.compiler.infer import Builder
from infopt.compiler.integer_weight import ROW_ROUNDINGS
from infopt.compiler.types import TensorType
from infopt.passes.quantizing import no_kernel
from tests.codegen.gpu.launched import check, compiles, every_arch, gpu, launches_of, most

INTEGERS = [name for name in FORMATS if name.startswith("int")]
EVERY_FORMAT = pytest.mark.parametrize("format", INTEGERS)
SMALL = {"block": "32x32 w4 s2"}


def layer(m, n=40, k=200, format="int4-g32", dtype=torch.float32):
    x, w = torch.randn(m, k).to(dtype), torch.randn(n, k) / 8
    values, scales = FORMATS[format].encode(w)
    return x, (values, scales, FORMATS[format].sums(values, scales, k))


def entries(launches):
    return [launch.entry for launch in launches]


def test_cases():
    seen = set()
    cases = [case for case in quantized_linear.cases() if case[0][0].shape[0] != 5]
    for args, attrs in cases[::3]:  # every format and activation; the rest is below
        seen |= set(entries(check(quantized_linear, args, attrs, gpu(cores=1), SMALL)))
    assert seen == {"quantize_rows", "quantized_tiles"}


@EVERY_FORMAT
@pytest.mark.parametrize("activations", ["none", "bf16", "int8"])
def test_formats(format, activations):
    attrs = {"format": format, "activations": activations}
    for m, dtype in ((3, torch.float32), (33, torch.bfloat16)):
        x, w = layer(m, format=format, dtype=dtype)
        check(quantized_linear, (x, *w), attrs, gpu(cores=1), SMALL)


@pytest.mark.slow
@EVERY_FORMAT
@pytest.mark.parametrize("activations", ["none", "bf16", "int8"])
def test_formats_in_the_other_dtypes(format, activations):
    attrs = {"format": format, "activations": activations}
    for m, dtype in ((33, torch.float32), (3, torch.bfloat16)):
        x, w = layer(m, format=format, dtype=dtype)
        check(quantized_linear, (x, *w), attrs, gpu(cores=1), SMALL)


@pytest.mark.parametrize(
    ("format", "activations"),
    [
        ("int8", "none"),
        ("int4-g32", "int8"),
        *most(("int8", "int8"), ("int4-g32", "none")),
        *most(*itertools.product(("int8-g64", "int4-g128"), ("none", "int8"))),
    ],
)
def test_gated_and_shares_of_k(format, activations):
    x, w = layer(2, k=1100, format=format)
    _, up = layer(2, k=1100, format=format)
    bias = torch.randn(40)
    attrs = {"format": format, "activations": activations, "activation": "silu"}
    launches = check(quantized_gated_linear, (x, *w, *up, bias, bias + 1), attrs)
    assert entries(launches)[-2:] == ["quantized_tiles", "linear_sum"]
    launches = check(quantized_linear, (x, *w, bias, torch.randn(2, 40)), attrs)
    assert entries(launches)[-2:] == ["quantized_tiles", "linear_sum"]
    args = (x.repeat(10, 1), *w, *up)
    check(quantized_gated_linear, args, {**attrs, "out": torch.bfloat16}, choice=SMALL)


def test_rows_as_bytes_are_the_ops():
    x, w = layer(40)
    x[1], x[2, 3], x[3, 3], x[4] = 0, float("nan"), float("inf"), 1e-37
    attrs = {"format": "int8", "activations": "int8"}
    x, w = x, layer(1, format="int8")[1]
    check(quantized_linear, (x, *w), attrs, choice=SMALL)
    check(quantized_linear, (x.abs(), *w), attrs, choice=SMALL)
    check(quantized_linear, (-x.abs(), *w), attrs, choice=SMALL)


def test_open_sizes_and_strided_rows():
    for m in (3, 33):
        x, w = layer(m)
        for activations in ("bf16", "int8"):
            attrs = {"format": "int4-g32", "activations": activations}
            check(quantized_linear, (x, *w), attrs, gpu(cores=1), SMALL, opened=m)
            wide = torch.randn(m, 300)[:, :200]
            check(quantized_linear, (wide, *w), attrs, gpu(cores=1), SMALL)


def shaped(m, format, n=4096, k=4096):
    meta = FORMATS[format]
    bytes = k if meta.bits == 8 else k // 2
    x = torch.empty(m, k, dtype=torch.bfloat16, device="meta")
    values = torch.empty(n, bytes, dtype=torch.int8 if meta.bits == 8 else torch.uint8)
    scales = torch.empty(n, meta.groups(k), dtype=meta.scale_dtype, device="meta")
    return x, values.to("meta"), scales, torch.empty(n, device="meta")


@every_arch
def test_compiles(arch):
    attrs = {"format": "int4-g128", "activations": "none", "out": torch.bfloat16}
    made, _ = launches_of(quantized_linear, shaped(1, "int4-g128"), attrs, gpu(arch, cores=132))
    compiles(made, arch)
    attrs = {"format": "int8", "activations": "int8", "out": torch.bfloat16}
    compiles(launches_of(quantized_linear, shaped(512, "int8"), attrs, gpu(arch))[0], arch)


@pytest.mark.slow
@every_arch
@EVERY_FORMAT
@pytest.mark.parametrize("activations", ["none", "int8"])
def test_every_schedule_compiles(arch, format, activations):
    attrs = {"format": format, "activations": activations, "out": torch.bfloat16}
    target = gpu(arch, cores=132)
    for m in (1, 512):
        x, *w = shaped(m, format)
        residual = torch.empty(m, 4096, dtype=torch.bfloat16, device="meta")
        for block in ("usual", "128x64 w8 s3", "64x64 w4 s3", "64x32 w4 s3"):
            given = {**attrs, "activation": "gelu"}
            args = (x, *w, w[2], residual)
            compiles(launches_of(quantized_linear, args, given, target, {"block": block})[0], arch)
            args = (x, *w, *w)
            made = launches_of(quantized_gated_linear, args, attrs, target, {"block": block})
            compiles(made[0], arch)
            if m == 1:
                break


@pytest.mark.parametrize("rounding", [r for r in ROW_ROUNDINGS if r != "int8"])
def test_rows_rounded_by_torchaos_formula_have_no_kernel_here(rounding):
    """Its own rounding in their place would be another result, unasked."""
    codec, o = FORMATS["int8"], Builder()
    values, scales = codec.encode(torch.randn(64, 64))
    tensors = (torch.randn(4, 64), values, scales, codec.sums(values, scales, 64))
    parts = [o.input(f"x{i}", TensorType.of(t)) for i, t in enumerate(tensors)]
    attrs = {"activations": rounding, "step": 0.1 if rounding == "int8-static" else 0.0}
    single = o.call(quantized_linear, *parts, **attrs)
    gated = o.call(quantized_gated_linear, *parts, *parts[1:], **attrs)
    for made in (single, gated):
        assert no_kernel(made, gpu(cores=1)) == f"rows rounded as {rounding}"
    assert no_kernel(o.call(quantized_linear, *parts, activations="int8"), gpu(cores=1)) == ""
