"""Models that torchao quantized, at both doors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import infopt
from infopt.compiler.errors import TraceDeclined
from infopt.compiler.integer_weight import ROW_ROUNDINGS, quantize_rows
from infopt.compiler.tracing.torchao_weight import torchao_weight

ao = pytest.importorskip("torchao.quantization")
int8_tensor = pytest.importorskip("torchao.quantization.quantize_.workflows.int8.int8_tensor")
intx_tensor = pytest.importorskip(
    "torchao.quantization.quantize_.workflows.intx.intx_unpacked_to_int8_tensor"
)

GROUP = ao.PerGroup
INT4 = {"weight_dtype": torch.int4}
AFFINE = ao.quant_primitives.MappingType.ASYMMETRIC
CONFIGS = {  # made of, the format it becomes
    "int8": (lambda: ao.Int8WeightOnlyConfig(), "int8"),
    "int8-dynamic": (lambda: ao.Int8DynamicActivationInt8WeightConfig(), "int8"),
    "int8-affine": (
        lambda: ao.Int8DynamicActivationInt8WeightConfig(act_mapping_type=AFFINE),
        "int8",
    ),
    "int4": (lambda: ao.IntxWeightOnlyConfig(**INT4, granularity=GROUP(32)), "int4-g32-f32"),
    "int4-dynamic": (
        lambda: ao.Int8DynamicActivationIntxWeightConfig(**INT4, weight_granularity=GROUP(64)),
        "int4-g64-f32",
    ),
}


def quantized(config):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(128, 96), nn.GELU(), nn.Linear(96, 64)).eval()
    ao.quantize_(net[:1], config())
    return net


def distance(found, wanted):
    return ((found - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("rows", [3, 20])
@pytest.mark.parametrize("name", CONFIGS)
def test_both_doors_run_on_its_integers(name, rows):
    config, format = CONFIGS[name]
    net = quantized(config)
    x = torch.randn(rows, 128)
    with torch.no_grad():
        eager = net(x)
        compiled = infopt.compile(net, (x,), strict=True)
        torch._dynamo.reset()
        jitted = torch.compile(net, backend="infopt", options={"strict": True})
        for found, door in ((compiled(x), compiled), (jitted(x), jitted)):
            assert distance(found, eager) <= 1e-6
            assert f": {format}" in infopt.explain(door, "keep-quantized")
    assert type(net[0].weight).__module__.startswith("torchao")  # the model is as it was


@pytest.mark.parametrize("rounding", [r for r in ROW_ROUNDINGS if r != "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_are_rounded_as_torchao_does_to_the_bit(rounding, dtype):
    """A code that differs by one is a whole step: near is not enough."""
    torch.manual_seed(3)
    x = torch.randn(3000, 96) * torch.logspace(-9, 4, 3000)[:, None]
    x = torch.cat([x, x.abs(), -x.abs(), torch.zeros(1, 96)]).to(dtype)
    how, (codes, steps, zeros) = ROW_ROUNDINGS[rounding], quantize_rows(x, rounding)
    kind = ao.quant_primitives.MappingType
    mapping = kind.SYMMETRIC if how.symmetric else kind.ASYMMETRIC
    if how.per_token:
        theirs = intx_tensor._apply_int8_act_asym_per_token_quant_dequant(x)
        assert torch.equal(((codes - zeros) * steps).to(dtype), theirs)
        return
    theirs = int8_tensor.Int8Tensor.from_hp(
        x, ao.PerRow(), mapping_type=mapping, reduce_range=how.reduced
    )
    assert torch.equal(codes - 128, theirs.qdata.float())
    assert torch.equal(steps, theirs.scale)
    assert torch.equal(zeros - 128, theirs.zero_point.float())


def test_rows_without_a_kernel_for_their_rounding_are_the_same():
    """Ranges made smaller for processors without VNNI: torch rounds the rows."""
    config = {"reduce_range": True, "act_mapping_type": AFFINE}
    net = quantized(lambda: ao.Int8DynamicActivationInt8WeightConfig(**config))
    x = torch.randn(20, 128)
    with torch.no_grad():
        compiled = infopt.compile(net, (x,))
        assert distance(compiled(x), net(x)) <= 1e-6
    assert "rounded as int8-affine-reduced" in infopt.explain(compiled, "keep-quantized")


def test_integers_changed_in_place_are_seen_by_torch_compile():
    net = quantized(CONFIGS["int8"][0])
    x = torch.randn(3, 128)
    torch._dynamo.reset()
    with torch.no_grad():
        jitted = torch.compile(net, backend="infopt", options={"strict": True})
        jitted(x)
        net[0].weight.qdata.zero_()
        torch.testing.assert_close(jitted(x), net(x), rtol=1e-5, atol=1e-5)


def test_what_has_no_integers_runs_as_torch_runs_it():
    net = quantized(lambda: ao.Float8WeightOnlyConfig())
    x = torch.randn(3, 128)
    with pytest.raises(TraceDeclined, match="weight is a torchao Float8Tensor; the ones that"):
        torchao_weight("0.weight", net[0].weight)
    with torch.no_grad():
        compiled = infopt.compile(net, (x,))
        assert "torchao Float8Tensor" in compiled.report.declined
        torch.testing.assert_close(compiled(x), net(x))
        torch._dynamo.reset()
        torch.testing.assert_close(torch.compile(net, backend="infopt")(x), net(x))
