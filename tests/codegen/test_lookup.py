"""Codes into tables: k-means, packing, what a table is chosen for."""

from __future__ import annotations

import pytest
import torch

from infopt.codegen.weight_formats.formats import FORMATS
from infopt.codegen.weight_formats.kmeans import centers
from infopt.codegen.weight_formats.lookup import Lookup

N, K = 12, 260


def heavy_tailed(n=N, k=K):
    torch.manual_seed(3)
    return torch.distributions.StudentT(4.0).sample((n, k))


def loss(values, weights, found):
    return ((values[..., None] - found[:, None, :]).square().amin(-1) * weights).sum(-1)


def test_centers_are_means_and_no_neighbour_is_better():
    """Lloyd's two conditions, by a plain loop; and less is lost than by the nearest of a grid."""
    values, weights = heavy_tailed(), torch.rand(N, K) + 0.1
    found = centers(values, weights, 8)
    assert (found.diff(dim=-1) > 0).all()
    nearest = (values[..., None] - found[:, None, :]).abs().argmin(-1)
    for row in range(N):
        for center in range(8):
            held = nearest[row] == center
            mean = (values[row][held] * weights[row][held]).sum() / weights[row][held].sum()
            torch.testing.assert_close(found[row, center], mean, rtol=1e-4, atol=1e-4)
    span = values.abs().amax(-1, keepdim=True)
    grid = torch.linspace(-1, 1, 8) * span
    assert (loss(values, weights, found) < 0.7 * loss(values, weights, grid)).all()


def test_a_weight_counts_as_often_as_it_says():
    values = heavy_tailed(4, 50)
    weights = torch.randint(1, 4, (4, 50)).float()
    for row in range(4):
        repeated = values[row].repeat_interleave(weights[row].long())[None]
        once = centers(repeated, torch.ones_like(repeated), 4)
        found = centers(values[row : row + 1], weights[row : row + 1], 4)
        bound = 1.1 * loss(repeated, torch.ones_like(repeated), once)
        assert loss(repeated, torch.ones_like(repeated), found) <= bound


@pytest.mark.parametrize("bits", [4, 3])
def test_packing_holds_every_code(bits):
    torch.manual_seed(4)
    format = Lookup(bits)
    table = torch.randint(-127, 128, (3, 1 << bits)).to(torch.int8).sort(-1).values
    codes = torch.randint(0, 1 << bits, (3, 150))
    integers = table.gather(-1, codes)
    values, _ = format.pack(integers, torch.ones(3, 1), table)
    assert values.shape == (3, (1 << bits) + 3 * 8 * bits) and values.dtype == torch.uint8
    assert torch.equal(format.integers(values, 150), integers)


def test_the_bits_of_three():
    """The layout as the class says it, bit by bit."""
    table = torch.arange(8, dtype=torch.int8)[None]
    codes = torch.randint(0, 8, (1, 64), generator=torch.Generator().manual_seed(0))
    block = Lookup(3).pack(codes.to(torch.int8), torch.ones(1, 1), table).values[0, 8:].tolist()
    for i in range(16):
        lane = sum(int(codes[0, 4 * i + j]) << 3 * j for j in range(4))
        half = block[16 + 4 * (i % 2) + i // 4] >> 4 * (i // 2 % 2) & 15
        assert block[i] == lane & 255 and half == lane >> 8


@pytest.mark.parametrize("group", [0, 64])
def test_tables_lose_less_than_integers_of_as_many_bytes(group):
    """Of rows of 1024, a table for 4 bits and groups of 64 are smaller than int4-g32."""
    weight, format = heavy_tailed(16, 1024), Lookup(4, group)
    integers = FORMATS["int4-g32" if group else "int4-g128"]
    assert format.bytes(16, 1024) <= integers.bytes(16, 1024) * 1.01

    def error(codec):
        return (codec.decode(*codec.encode(weight), 1024) - weight).norm()

    assert error(format) < 0.85 * error(integers)


@pytest.mark.parametrize("name", ["lut4", "lut3-g64"])
def test_importance_moves_the_table(name):
    format, weight, importance = FORMATS[name], heavy_tailed(), torch.rand(K) ** 6
    table, scales = format.fitted(weight, importance)
    weighted = format.pack(format.nearest(weight, scales, table), scales, table)

    def error(encoded):
        return ((format.decode(*encoded, K) - weight).square() * importance).sum()

    assert error(weighted) < 0.8 * error(format.encode(weight))


def test_the_same_weight_gives_the_same_bytes_whatever_is_beside_it():
    format, weight = FORMATS["lut4-g64"], heavy_tailed()
    whole, part = format.encode(weight), format.encode(weight[5:6].clone())
    assert torch.equal(whole.values[5:6], part.values)
    assert torch.equal(whole.scales[5:6], part.scales)


@pytest.mark.parametrize("distinct", [1, 2, 7])
def test_rows_of_few_values_lose_nothing(distinct):
    torch.manual_seed(5)
    held = torch.randn(6, distinct)
    values = held.gather(-1, torch.randint(0, distinct, (6, 90)))
    found = centers(values, torch.ones_like(values), 8)
    assert loss(values, torch.ones_like(values), found).max() < 1e-9
