"""Models that torchao quantized, at both doors."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import infopt
from infopt.compiler.errors import TraceDeclined
from infopt.compiler.torchao_weight import torchao_weight

ao = pytest.importorskip("torchao.quantization")

GROUP = ao.PerGroup
INT4 = {"weight_dtype": torch.int4}
CONFIGS = {  # made of, the format it becomes, whether rows are rounded
    "int8": (lambda: ao.Int8WeightOnlyConfig(), "int8", False),
    "int8-dynamic": (lambda: ao.Int8DynamicActivationInt8WeightConfig(), "int8", True),
    "int4": (lambda: ao.IntxWeightOnlyConfig(**INT4, granularity=GROUP(32)), "int4-g32-f32", False),
    "int4-dynamic": (
        lambda: ao.Int8DynamicActivationIntxWeightConfig(**INT4, weight_granularity=GROUP(64)),
        "int4-g64-f32",
        True,
    ),
}


def quantized(config):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(128, 96), nn.GELU(), nn.Linear(96, 64)).eval()
    plain = copy.deepcopy(net)
    ao.quantize_(net[:1], config())
    with torch.no_grad():
        plain[0].weight.copy_(net[0].weight.dequantize())
    return net, plain


def distance(found, wanted):
    return ((found - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("name", CONFIGS)
def test_both_doors_run_on_its_integers(name):
    config, format, rounds = CONFIGS[name]
    net, plain = quantized(config)
    x = torch.randn(20, 128)
    with torch.no_grad():
        eager, exact = net(x), plain(x)
        compiled = infopt.compile(net, (x,), strict=True)
        torch._dynamo.reset()
        jitted = torch.compile(net, backend="infopt", options={"strict": True})
        for found, door in ((compiled(x), compiled), (jitted(x), jitted)):
            # rounding rows our way is as near to the weights' exact result as torchao's way is
            limit = 1.2 * distance(eager, exact) if rounds else 1e-6
            assert distance(found, exact if rounds else eager) <= limit
            assert f": {format}" in infopt.explain(door, "keep-quantized")
    assert type(net[0].weight).__module__.startswith("torchao")  # the model is as it was


def test_integers_changed_in_place_are_seen_by_torch_compile():
    net, _ = quantized(CONFIGS["int8"][0])
    x = torch.randn(3, 128)
    torch._dynamo.reset()
    with torch.no_grad():
        jitted = torch.compile(net, backend="infopt", options={"strict": True})
        jitted(x)
        net[0].weight.qdata.zero_()
        torch.testing.assert_close(jitted(x), net(x), rtol=1e-5, atol=1e-5)


def test_what_has_no_integers_runs_as_torch_runs_it():
    net, _ = quantized(lambda: ao.Float8WeightOnlyConfig())
    x = torch.randn(3, 128)
    with pytest.raises(TraceDeclined, match="weight is a torchao Float8Tensor; the ones that"):
        torchao_weight("0.weight", net[0].weight)
    with torch.no_grad():
        compiled = infopt.compile(net, (x,))
        assert "torchao Float8Tensor" in compiled.report.declined
        torch.testing.assert_close(compiled(x), net(x))
        torch._dynamo.reset()
        torch.testing.assert_close(torch.compile(net, backend="infopt")(x), net(x))
