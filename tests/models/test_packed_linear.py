"""Checkpoints in packed layouts: what they stand for, and that compiled they stay integers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import infopt
from infopt.models.packed_linear import AWQ_ORDER, with_packed_linears

K, N, GROUP = 128, 64, 32


def packed(codes, dim, bits=4):
    """Unsigned integers as int32 words along a dim, low bits first, as the layouts say."""
    rows = codes.movedim(dim, -1).unflatten(-1, (-1, 32 // bits)).to(torch.int64)
    words = sum(rows[..., i] << (bits * i) for i in range(32 // bits))
    return words.to(torch.int32).movedim(-1, dim).contiguous()


def gptq(bits=4, symmetric=True):
    codes = torch.randint(0, 2**bits, (K, N))
    zeros = torch.full((K // GROUP, N), 2 ** (bits - 1))
    if not symmetric:
        zeros = torch.randint(1, 2**bits, (K // GROUP, N))
    scales = (torch.rand(K // GROUP, N) / 50 + 0.01).half()
    groups = torch.arange(K) // GROUP
    matrix = ((codes - zeros[groups]) * scales.float()[groups]).T
    tensors = {"qweight": packed(codes, 0, bits), "qzeros": packed(zeros - 1, 1, bits)}
    tensors |= {"scales": scales, "g_idx": groups.int()}
    return tensors, matrix, {"quant_method": "gptq", "bits": bits, "group_size": GROUP}


def awq():
    codes, zeros = torch.randint(0, 16, (K, N)), torch.randint(4, 12, (K // GROUP, N))
    scales = (torch.rand(K // GROUP, N) / 50 + 0.01).half()
    matrix = ((codes.unflatten(0, (-1, GROUP)) - zeros[:, None]) * scales.float()[:, None]).flatten(
        0, 1
    )
    order = torch.tensor(AWQ_ORDER)
    stored = [t.unflatten(1, (-1, 8))[:, :, order].flatten(1) for t in (codes, zeros)]
    tensors = {"qweight": packed(stored[0], 1), "qzeros": packed(stored[1], 1), "scales": scales}
    return tensors, matrix.T, {"quant_method": "awq", "bits": 4, "group_size": GROUP}


def compressed(bits):
    integers = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (N, K))
    scales = (torch.rand(N, K // GROUP if bits == 4 else 1) / 50 + 0.01).bfloat16()
    matrix = (integers.unflatten(1, (scales.shape[1], -1)) * scales.float()[..., None]).flatten(1)
    if bits == 4:
        tensors = {"weight_packed": packed(integers + 8, 1), "weight_shape": torch.tensor([N, K])}
    else:
        tensors = {"weight": integers.to(torch.int8)}
    config = {"config_groups": {"group_0": {"weights": {"num_bits": bits}}}}
    return (
        {**tensors, "weight_scale": scales},
        matrix,
        {
            "quant_method": "compressed-tensors",
            **config,
        },
    )


LAYOUTS = {
    "gptq": (gptq, "int4-g32-f32"),
    "gptq-zeros": (lambda: gptq(4, False), "int8-g32-f32"),  # integers of 5 bits
    "gptq-8": (lambda: gptq(8), "int8-g32-f32"),
    "awq": (awq, "int8-g32-f32"),
    "pack-quantized": (lambda: compressed(4), "int4-g32"),
    "int-quantized": (lambda: compressed(8), "int8"),
}


def checkpoint(layout):
    torch.manual_seed(0)
    tensors, matrix, config = layout()
    model = nn.Sequential(nn.Linear(K, N), nn.GELU(), nn.Linear(N, 8)).eval()
    kept = {"2.weight": torch.randn(8, N), "2.bias": torch.randn(8), "0.bias": torch.randn(N)}
    stored = {f"0.{name}": t for name, t in tensors.items()}
    return with_packed_linears(model, stored | kept, config), matrix


@pytest.mark.parametrize("name", LAYOUTS)
def test_both_doors_run_on_the_integers(name):
    layout, format = LAYOUTS[name]
    model, matrix = checkpoint(layout)
    torch.testing.assert_close(model[0].matrix(), matrix)
    x = torch.randn(5, K)
    with torch.no_grad():
        wanted = model(x)
        compiled = infopt.compile(model, (x,), strict=True)
        torch._dynamo.reset()
        jitted = torch.compile(model, backend="infopt", options={"strict": True})
        for found, door in ((compiled(x), compiled), (jitted(x), jitted)):
            torch.testing.assert_close(found, wanted, rtol=2e-5, atol=2e-5)
            assert f": {format}" in infopt.explain(door, "keep-quantized")
    assert "aten" not in str(compiled.report.fallbacks)


def test_a_checkpoint_changed_in_place_is_seen_by_torch_compile():
    model, _ = checkpoint(gptq)
    x = torch.randn(3, K)
    torch._dynamo.reset()
    with torch.no_grad():
        jitted = torch.compile(model, backend="infopt", options={"strict": True})
        jitted(x)
        model[0].qweight.zero_()
        torch.testing.assert_close(jitted(x), model(x), rtol=2e-5, atol=2e-5)


def test_unknown_layouts_are_refused():
    with pytest.raises(ValueError, match="0: expected gptq, awq or compressed-tensors integers"):
        checkpoint(lambda: (gptq()[0], None, {"quant_method": "aqlm"}))
