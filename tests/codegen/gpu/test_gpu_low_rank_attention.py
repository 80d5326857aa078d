"""Attention over thin factors on a GPU: keys and values rebuilt block by block."""

import pytest
import torch

from infopt.codegen.kernels.low_rank_attention import low_rank_attention
from tests.codegen.gpu.launched import check, compiles, every_arch, gpu, launches_of, most


def factors(dtype, t=40, s=40, rank=24, heads=2, kv_heads=2, depth=16):
    q, k, v = (torch.randn(1, n, rank).to(dtype) for n in (t, s, s))
    rows = (heads * depth, kv_heads * depth, kv_heads * depth)
    return q, k, v, *((torch.randn(n, rank) / 4).to(dtype) for n in rows)


PLAIN = {"heads": 2, "kv_heads": 2, "scale": 0.25}


@pytest.mark.slow
def test_cases():
    cases = list(low_rank_attention.cases())
    for args, attrs in cases[:3]:
        check(low_rank_attention, args, attrs)


@pytest.mark.slow
def test_all_cases():
    for args, attrs in low_rank_attention.cases():
        check(low_rank_attention, args, attrs)


@pytest.mark.parametrize("window", [18, *most(0, 1, 16, 31)])
def test_causal(window):
    attrs = PLAIN | {"causal": True, "window": window}
    check(low_rank_attention, factors(torch.float32), attrs)


@pytest.mark.parametrize("rank", [32, *most(1, 33, 70)])
def test_ranks(rank):
    check(low_rank_attention, factors(torch.float32, 20, 33, rank), PLAIN)


@every_arch
@pytest.mark.parametrize("dtype", [torch.bfloat16, *most(torch.float32, torch.float16)], ids=str)
def test_nothing_is_spilled(arch, dtype):
    for depth in (64, 128):
        args = factors(dtype, 512, 512, 192, 4, 4, depth)
        mask = torch.ones(1, 1, 1, 512, dtype=torch.bool)
        biases = [torch.randn(4 * depth).to(dtype) for _ in range(3)]
        attrs = {"heads": 4, "kv_heads": 4, "scale": 0.125}
        given = (*args, *biases, mask)
        compiles(launches_of(low_rank_attention, given, attrs, gpu(arch))[0], arch)


def test_heads_that_are_too_deep():
    args = factors(torch.bfloat16, depth=256)
    with pytest.raises(AssertionError, match="heads of 256, expected at most 128"):
        launches_of(low_rank_attention, args, PLAIN, gpu())
