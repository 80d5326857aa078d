"""Thin factors on a GPU: two products and an MLP's four, odd sizes, ranks that do not fit."""

from itertools import pairwise

import pytest
import torch

from infopt.codegen.gpu.linear_chain import MOST_RANK, TILES_SPACE
from infopt.codegen.kernels.linear import ACTIVATIONS
from infopt.codegen.kernels.linear_chain import linear_chain
from tests.codegen.gpu.launched import check, compiles, emitter_of, every_arch, gpu, launches_of
from tests.codegen.gpu.launched import type_of as typed

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


def operands(m, widths, dtype=torch.float32, biases=True, device=None):
    """x, weights, biases and residual of a chain through these widths, in the op's order."""
    given = {"dtype": dtype, "device": device}
    count = len(widths) - 1
    weights = [torch.randn(n, k, **given) / k**0.5 for k, n in pairwise(widths)]
    added = [torch.randn(n, **given) if biases else None for n in widths[1:]]
    absent = [None] * (4 - count)
    residual = torch.randn(m, widths[-1], **given) if biases else None
    return [torch.randn(m, widths[0], **given), *weights, *absent, *added, *absent, residual]


def chain(*names):
    return {"functions": names}


def test_cases():
    for args, attrs in linear_chain.cases():
        gated = len(args) > 10
        if args[0].dtype is not torch.float32 and not gated:
            check(linear_chain, args, attrs)


@DTYPES
@pytest.mark.parametrize("m", [1, 33, 70])
def test_odd_sizes(m, dtype):
    check(linear_chain, operands(m, [50, 9, 77], dtype), chain("none", "gelu"))
    mlp = operands(m, [70, 13, 99, 5, 50], dtype, biases=m > 1)
    check(linear_chain, mlp, chain("none", "silu", "none", "relu"))


def test_ranks_that_two_blocks_hold():
    check(linear_chain, operands(33, [50, 130, 77], torch.bfloat16), chain("none", "gelu"))
    mlp = operands(33, [50, 130, 99, 200, 40], torch.bfloat16)
    check(linear_chain, mlp, chain("none", "silu", "none", "none"))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    given = operands(17, [40, 8, 40, 8, 40])
    check(linear_chain, given, chain(activation, activation, activation, "none"))


def test_one_program_for_all_sizes():
    for m in (1, 40, 65):
        assert len(check(linear_chain, operands(m, [48, 16, 96]), chain("none", "none"), opened=m))


def test_special_values():
    given = operands(20, [40, 12, 50, 7, 40])
    given[0][0, 3], given[0][1, 5] = float("nan"), float("inf")
    check(linear_chain, given, chain("none", "relu", "none", "none"))
    check(linear_chain, given, chain("sigmoid", "gelu", "none", "none"))


def test_declines():
    emitter = emitter_of(linear_chain)

    def reason(widths, dtype):
        attrs = chain(*["none"] * (len(widths) - 1))
        types = [typed(t) for t in operands(20, widths, dtype)]
        return emitter.reason_against(gpu(), types, attrs)

    assert reason([64, 8, 64, 8], torch.bfloat16) == "three products, expected two or four"
    gate = [*operands(20, [64, 8, 64], torch.bfloat16), None, torch.randn(64, 8).bfloat16()]
    told = emitter.reason_against(gpu(), [typed(t) for t in gate], chain("none", "silu"))
    assert told == "a gate among the products"
    for dtype, most in MOST_RANK.items():
        assert reason([64, most, 64], dtype) is None
        told = f"rank {most + 1} in {dtype}, of which the registers hold {most}"
        assert reason([64, most + 1, 64], dtype) == told


@every_arch
@pytest.mark.parametrize("rank", [16, 128, 192])
@pytest.mark.parametrize("count", [2, 4])
def test_compiles(arch, count, rank):
    widths = [768, rank, 3072, rank, 768][: count + 1]
    given = operands(4096, widths, torch.bfloat16, device="meta")
    attrs = chain(*["none", "gelu", "none", "none"][:count])
    compiles(launches_of(linear_chain, given, attrs, gpu(arch))[0], arch)


@pytest.mark.slow
@every_arch
@DTYPES
def test_every_schedule_compiles(arch, dtype):
    for tile in TILES_SPACE["tile"]:
        for widths in ([768, MOST_RANK[dtype], 700], [760, 8, 3072, MOST_RANK[dtype], 768]):
            given = operands(4096, widths, dtype, device="meta")
            attrs = chain(*["gelu"] * (len(widths) - 1))
            launches = launches_of(linear_chain, given, attrs, gpu(arch), {"tile": tile})[0]
            compiles(launches, arch)
