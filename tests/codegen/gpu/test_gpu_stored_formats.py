"""Linear layers on a GPU whose weights are floats of 8 bits or codes into tables."""

import pytest
import torch

from infopt.codegen.gpu.interpret import interpret
from infopt.codegen.kernels.quantized_linear import quantized_gated_linear, quantized_linear
from infopt.codegen.weight_formats.floats import KINDS
from infopt.codegen.weight_formats.formats import FORMATS, stored_format
from infopt.codegen.weight_formats.weight_format import weight_format
from tests.codegen.gpu.launched import ARCHES, check, compiles, every_arch, gpu, launches_of, most

QUICK = ("fp8-e4m3", "fp8-e5m2-g32", "lut4", "lut3-g64")
OTHERS = [f for f in FORMATS if not f.startswith("int") and f not in QUICK]
EVERY_FORMAT = pytest.mark.parametrize("format", [*QUICK, *most(*OTHERS)])
SMALL = {"block": "32x32 w4 s2"}


def stored(format, n=40, k=200):
    found = weight_format(format).store(torch.randn(n, k) / 8)
    return found.values, found.scales, found.sums


def given(x, weights, attrs, arch="sm90"):
    """What the kernel gives, with no tolerance."""
    launches, named = launches_of(quantized_linear, (x, *weights), attrs, gpu(arch), SMALL)
    interpret(launches, named)
    return named["out"]


@EVERY_FORMAT
def test_a_row_with_one_element_gives_a_column_exactly(format):
    weights = stored(format)
    wanted = stored_format(format).decode(*weights[:2], 200).T
    attrs = {"format": format, "activations": "none"}
    assert torch.equal(given(torch.eye(200), weights, attrs), wanted)
    few = torch.eye(200)[[0, 31, 32, 63, 64, 199]].bfloat16()
    assert torch.equal(given(few, weights, attrs, "sm80"), wanted[[0, 31, 32, 63, 64, 199]])


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_float(arch, kind):
    numbers = torch.arange(256, dtype=torch.uint8).view(KINDS[kind]).float()
    numbers = numbers[numbers.isfinite()]
    n = len(numbers)
    assert n in (254, 248)
    weights = (numbers.to(KINDS[kind]).view(torch.uint8)[:, None], torch.ones(n, 1), torch.zeros(n))
    attrs = {"format": f"fp8-{kind}", "activations": "none"}
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(given(torch.ones(1, 1).to(dtype), weights, attrs, arch)[0], numbers)


@EVERY_FORMAT
@pytest.mark.parametrize("activations", ["none", "bf16", "int8"])
def test_formats(format, activations):
    if activations == "int8" and not FORMATS[format].takes_bytes:
        pytest.skip("products of bytes and floats: declined")
    attrs = {"format": format, "activations": activations}
    weights = stored(format)
    for m, dtype in ((3, torch.bfloat16), (33, torch.float32)):
        x = torch.randn(m, 200).to(dtype)
        check(quantized_linear, (x, *weights), attrs, gpu(cores=1), SMALL)


def test_factors_that_somebody_else_chose():
    format = stored_format("fp8-e5m2-g64-f32")
    values, scales = format.encode(torch.randn(40, 200))
    assert scales.dtype is torch.float32
    args = (torch.randn(5, 200), values, scales, format.sums(values, scales, 200))
    check(quantized_linear, args, {"format": format.name, "activations": "none"}, choice=SMALL)


@pytest.mark.parametrize(
    ("format", "activations"),
    [
        ("fp8-e4m3-g64", "none"),
        ("lut3", "int8"),
        *most(("lut4-g128", "int8"), ("lut4", "bf16"), ("fp8-e5m2", "none"), ("lut3-g64", "none")),
    ],
)
def test_gated_and_shares_of_k(format, activations):
    gate, up = stored(format, k=1100), stored(format, k=1100)
    x, bias = torch.randn(2, 1100), torch.randn(40)
    attrs = {"format": format, "activations": activations, "activation": "silu"}
    for op, args in (
        (quantized_gated_linear, (x, *gate, *up, bias, bias + 1)),
        (quantized_linear, (x, *gate, bias, torch.randn(2, 40))),
    ):
        launches = check(op, args, attrs)
        assert [launch.entry for launch in launches][-2:] == ["quantized_tiles", "linear_sum"]
    args = (x.repeat(10, 1), *gate, *up)
    check(quantized_gated_linear, args, {**attrs, "out": torch.bfloat16}, choice=SMALL)


@pytest.mark.parametrize("format", ["fp8-e4m3", "lut4-g64", "lut3"])
def test_open_sizes_strided_rows_and_nan(format):
    weights, attrs = stored(format), {"format": format, "activations": "none"}
    for m in (3, 33):
        x = torch.randn(m, 200)
        x[1, 7], x[2, 199] = float("nan"), float("inf")
        check(quantized_linear, (x, *weights), attrs, gpu(cores=1), SMALL, opened=m)
        found = given(x, weights, attrs)
        assert found[1].isnan().all() and not found[2].isfinite().any()
        check(quantized_linear, (torch.randn(m, 300)[:, :200], *weights), attrs, choice=SMALL)


def shaped(m, format, n=4096, k=4096):
    """A layer's operands without data."""
    types = weight_format(format).types(n, k)
    x = torch.empty(m, k, dtype=torch.bfloat16, device="meta")
    w = {kind: torch.empty(s, dtype=d, device="meta") for kind, (s, d) in types.items()}
    return x, w["values"], w["scales"], w["sums"]


@every_arch
@pytest.mark.parametrize(("format", "rows"), [("fp8-e4m3", 1), ("lut3-g64", 512), ("lut4", 1)])
def test_compiles(arch, format, rows):
    attrs = {"format": format, "activations": "none", "out": torch.bfloat16}
    made, _ = launches_of(quantized_linear, shaped(rows, format), attrs, gpu(arch, cores=132))
    compiles(made[:1], arch)


@pytest.mark.slow
@every_arch
@pytest.mark.parametrize("format", [*QUICK, *OTHERS])
@pytest.mark.parametrize("activations", ["none", "int8"])
def test_every_schedule_compiles(arch, format, activations):
    if activations == "int8" and not FORMATS[format].takes_bytes:
        pytest.skip("products of bytes and floats: declined")
    attrs = {"format": format, "activations": activations, "out": torch.bfloat16}
    target = gpu(arch, cores=132)
    for m in (1, 512):
        x, *w = shaped(m, format)
        residual = torch.empty(m, 4096, dtype=torch.bfloat16, device="meta")
        for block in ("usual", "128x64 w8 s3", "64x64 w4 s3", "64x32 w4 s3"):
            with_gelu = {**attrs, "activation": "gelu"}
            args, choice = (x, *w, w[2], residual), {"block": block}
            compiles(launches_of(quantized_linear, args, with_gelu, target, choice)[0], arch)
            gated = launches_of(quantized_gated_linear, (x, *w, *w), attrs, target, choice)
            compiles(gated[0], arch)
            if m == 1:
                break
