"""The tensors that property tests draw are what their names say."""

from __future__ import annotations

import pytest
import torch

from infopt.compiler.certification.property_test import LAYOUTS, SIZES, VALUES, check_sample, tensor
from infopt.compiler.testing import graph_of, run_pass
from infopt.passes.canonicalize import Canonicalize
from infopt.passes.fuse_activation import FuseActivation


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(), (5,), (4, 6), (2, 3, 8)])
def test_layouts(layout: str, shape: tuple[int, ...]) -> None:
    found = tensor(shape, torch.float32, layout, "normal", 3)
    assert found.shape == shape
    dense = torch.empty(shape).stride()
    if layout == "dense" or not shape or (layout == "transposed" and len(shape) == 1):
        assert found.stride() == dense
    elif layout == "transposed":
        assert found.transpose(-1, -2).is_contiguous() and not found.is_contiguous()
    elif layout == "every second":
        assert found.stride(-1) == 2 and found.storage_offset() == 0
    else:
        assert found.stride(0) == 0 and torch.equal(found[0], found[-1])
    assert torch.equal(found, tensor(shape, torch.float32, layout, "normal", 3))
    assert not shape or not torch.equal(found, tensor(shape, torch.float32, layout, "normal", 4))


@pytest.mark.parametrize("values", VALUES)
def test_values(values: str) -> None:
    found = tensor((64, 64), torch.float32, "dense", values, 0)
    size = found.abs().mean()
    zeros = found == 0
    if values == "signed zeros":
        negative = torch.signbit(found) & zeros
        assert 0.6 < zeros.float().mean() < 0.8
        assert 0.4 < negative.float().mean() < 0.6 and bool((found[~zeros] > 0.5).all())
    elif values == "equal":
        assert bool((found == 0.75).all())
    else:
        low, high = {"normal": (0.7, 0.9), "small": (7e-4, 9e-4), "large": (21, 27)}[values]
        assert low < size < high and not zeros.any()


def test_other_dtypes() -> None:
    flags = tensor((64, 64), torch.bool, "dense", "normal", 0)
    assert flags.dtype == torch.bool and 0.4 < flags.float().mean() < 0.6
    whole = tensor((64, 64), torch.int32, "dense", "large", 0)
    assert whole.dtype == torch.int32 and whole.unique().tolist() == [-3, -2, -1, 0, 1, 2, 3]
    assert tensor((3,), torch.bfloat16, "dense", "normal", 0).dtype == torch.bfloat16
    assert SIZES[0] == 1 and {16, 17, 64} <= set(SIZES)


def test_a_sample_counts_the_sites() -> None:
    def build(o, x):
        return o.mul(o.sigmoid(x), x)

    x = torch.randn(4, 4)
    graph = graph_of(build, [x], FuseActivation())
    assert check_sample(FuseActivation(), graph, run_pass, [x]) == 1
    plain = graph_of(lambda o, x: o.tanh(x), [x], Canonicalize())
    assert check_sample(Canonicalize(), plain, run_pass, [x]) == 0
