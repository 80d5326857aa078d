"""Rows of stored tables against their reference, on every level."""

from __future__ import annotations

import pytest
import torch

from infopt.codegen.kernel import find_emitter
from infopt.codegen.kernels.quantized_embedding import quantized_embedding
from infopt.codegen.weight_formats.formats import FORMATS
from infopt.compiler.infer import Builder
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType
from tests.codegen.kernel_call import every_level
from tests.codegen.test_quantized_kernels import native

LEFT_OUT = ("lut4-g128", "lut3", "fp8-e4m3-g64", "fp8-e4m3-g128", "fp8-e5m2", "fp8-e5m2-g128")


@every_level
@pytest.mark.parametrize("format", [f for f in FORMATS if f not in LEFT_OUT])
@pytest.mark.parametrize("width", [1, 33, 64, 200])
def test_equals_the_reference(level, format, width):
    torch.manual_seed(width)
    values, scales = FORMATS[format].encode(torch.randn(41, width))
    ids = torch.tensor([[0, 40, 7], [7, 1, 12]])
    for out in (torch.float32, torch.bfloat16):
        for given in (ids, ids.int(), ids[0, 0]):
            attrs = {"format": format, "width": width, "out": out}
            want = quantized_embedding(given, values, scales, **attrs)
            found = native(quantized_embedding, (given, values, scales), attrs, level)
            assert torch.equal(found, want)


@every_level
@pytest.mark.parametrize("wrong", [-1, 5])
def test_ids_outside_the_table_are_an_error(level, wrong):
    values, scales = FORMATS["int8"].encode(torch.randn(5, 8))
    attrs = {"format": "int8", "width": 8, "out": torch.float32}
    with pytest.raises(IndexError, match="index out of range in self"):
        native(quantized_embedding, (torch.tensor([0, wrong]), values, scales), attrs, level)
    with pytest.raises(IndexError):
        quantized_embedding(torch.tensor([0, wrong]), values, scales, **attrs)


def test_other_dtypes_have_no_kernel():
    o = Builder()
    values, scales = FORMATS["int8"].encode(torch.randn(5, 8))
    ids = torch.tensor([1])
    nodes = [o.input(n, TensorType.of(t)) for n, t in (("i", ids), ("v", values), ("s", scales))]
    node = o.call(quantized_embedding, *nodes, format="int8", width=8, out=torch.float64)
    emitter, reason = find_emitter(node, Target.parse("cpu:scalar"))
    assert emitter is None and "torch.float64" in reason
