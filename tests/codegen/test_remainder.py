"""Entries kept beside codes: which they are, what they hold, and kernels that add them."""

from __future__ import annotations

import pytest
import torch

from infopt.codegen.kernels.quantized_embedding import quantized_embedding
from infopt.codegen.kernels.quantized_linear import quantized_gated_linear, quantized_linear
from infopt.codegen.weight_formats.remainder import SparseEntries, added
from infopt.codegen.weight_formats.rounding import Moments
from infopt.codegen.weight_formats.weight_format import weight_format
from infopt.compiler.infer import Builder
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType
from infopt.passes.quantizing import no_kernel
from tests.codegen.kernel_call import every_level
from tests.codegen.test_quantized_kernels import distance, native


def test_entries_are_where_they_were():
    torch.manual_seed(0)
    rest = torch.randn(9, 70).bfloat16().float()
    entries = SparseEntries(0.05)
    kept = entries.largest(rest.abs())
    stored = entries.encode(rest, kept)
    assert stored.dtype == torch.int32 and len(stored) == entries.length(9, 70) == 10 + 32
    assert kept.sum() == 32 and rest[kept].abs().min() >= rest[~kept].abs().max()
    assert torch.equal(added(torch.zeros(9, 70), stored), rest.masked_fill(~kept, 0))


@pytest.mark.parametrize("name", ["int4-g32+1%", "lut4+0.5%", "lut3-g64+5%"])
@pytest.mark.parametrize("calibrated", [False, True])
def test_what_is_stored(name, calibrated):
    torch.manual_seed(1)
    weight, format, moments = torch.randn(24, 200), weight_format(name), None
    weight[torch.rand(24, 200) < 0.004] *= 15
    if calibrated:
        moments = Moments(200)
        moments.add(torch.randn(300, 200))
    found, plain = format.store(weight, moments), weight_format(format.dense.name)
    assert format.name == name
    assert (found.decoded - weight).norm() < 0.9 * (
        plain.store(weight, moments).decoded - weight
    ).norm()
    dense = format.dense.decode(found.values, found.scales, 200)
    assert torch.equal(found.decoded, added(dense, found.remainder))
    for kind, (shape, dtype) in format.types(24, 200).items():
        tensor = getattr(found, kind)
        assert (tuple(tensor.shape), tensor.dtype) == (shape, dtype)
    held = (found.values, found.scales, found.remainder)
    assert format.bytes(24, 200) == sum(t.nbytes for t in held)


@pytest.mark.parametrize("name", ["int4-g32+0%", "lut4+6%", "lut5", "lut4-g32", "+1%", "int4+x%"])
def test_names_that_mean_nothing(name):
    with pytest.raises(KeyError):
        weight_format(name)


# of the last but one, some rows have most entries, more than are taken at once
SIZES = [(1, 64, 16), (2, 100, 33), (5, 37, 19), (37, 130, 77), (2, 1000, 40), (20, 4160, 5)]


@every_level
@pytest.mark.parametrize("name", ["int4-g64+2%", "lut4+0.5%"])
@pytest.mark.parametrize("activations", ["none", "bf16"])
def test_kernels_add_them(level, name, activations):
    torch.manual_seed(2)
    format = weight_format(name)
    for m, k, n in SIZES:
        weight = torch.randn(n, k) / 8
        weight[3:11] *= 8
        x, w = torch.randn(m, k), format.store(weight)
        attrs = {"format": format.dense.name, "activations": activations}
        args = (x, w.values, w.scales, w.sums, torch.randn(n), torch.randn(m, n), w.remainder)
        found = native(quantized_linear, args, attrs, level)
        wanted = quantized_linear(*args, **attrs)
        limit = 1e-5 if activations == "none" else 4e-3
        assert distance(found, wanted) <= limit, (m, k, n)
        without = quantized_linear(*args[:-1], **attrs)
        assert distance(without, wanted) > limit  # else nothing is tested


@every_level
def test_gates_and_tables(level):
    torch.manual_seed(3)
    format = weight_format("int4-g32+3%")
    gate, up = (format.store(torch.randn(50, 100) / 8) for _ in range(2))
    for m in (3, 20):
        args = (torch.randn(m, 100), *gate[:3], *up[:3], None, None, gate[3], up[3])
        attrs = {"format": "int4-g32"}
        found = native(quantized_gated_linear, args, attrs, level)
        assert distance(found, quantized_gated_linear(*args, **attrs)) <= 1e-5
    args = (torch.tensor([[0, 49], [7, 7]]), *gate[:2], gate[3])
    attrs = {"format": "int4-g32", "width": 100}
    found = native(quantized_embedding, args, attrs, level)
    assert torch.equal(found, quantized_embedding(*args, **attrs))


def test_rows_in_bytes_have_no_kernel():
    o, format = Builder(), weight_format("int4-g32+1%")
    w = format.store(torch.randn(33, 64))
    args = [o.input(f"x{i}", TensorType.of(a)) for i, a in enumerate((torch.randn(5, 64), *w[:4]))]
    attrs = {"format": "int4-g32", "activations": "int8", "remainder": args.pop()}
    made = o.call(quantized_linear, *args, **attrs)
    assert no_kernel(made, Target.parse("cpu:avx2")) == "rows in bytes times a remainder"


def test_entries_to_measure_with_are_spread_evenly():
    entries = SparseEntries(0.03).evenly(50, 90)
    starts, columns = entries[:51], entries[51:]
    assert len(entries) == SparseEntries(0.03).length(50, 90) and starts[-1] == len(columns) == 135
    assert starts.diff().min() >= 2 and starts.diff().max() <= 3
    assert columns.min() >= 0 and columns.max() < 90
