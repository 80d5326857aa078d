"""Attention on a GPU: blocks of queries, few queries over shares of the keys."""

import pytest
import torch

from infopt.codegen.gpu.attention import FLASH_SPACE
from infopt.codegen.gpu.interpret import interpret
from infopt.codegen.kernels.attention import attention
from infopt.codegen.kernels.attention_sinks import attention_sinks
from infopt.compiler.ops import aten
from tests.codegen.gpu.launched import check, compiles, every_arch, gpu, launches_of, most

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
SDPA = aten("scaled_dot_product_attention.default")
SMALL = {"block": "16x16 w4 s2"}  # so that a case has several blocks
PLAIN = {"scale": 0.25, "causal": False}
CAUSAL = {"scale": 0.25, "causal": True}


def qkv(t, s, heads=4, kv_heads=2, d=16, dv=None, dtype=torch.float32):
    q = torch.randn(2, heads, t, d).to(dtype)
    k, v = (torch.randn(2, kv_heads, s, w).to(dtype) for w in (d, dv or d))
    return q, k, v


def entries(launches):
    return [launch.entry for launch in launches]


def test_cases():
    for args, attrs in attention.cases():
        check(attention, args, attrs, choice=SMALL)


@pytest.mark.slow
def test_cases_with_sinks():
    for args, attrs in attention_sinks.cases():
        check(attention_sinks, args, attrs, choice=SMALL)


def test_sinks():
    mask = torch.rand(2, 1, 20, 33) > 0.3
    mask[0, 0, 0] = False
    check(attention_sinks, (*qkv(20, 33), torch.randn(4) * 5, mask), PLAIN, choice=SMALL)
    check(attention_sinks, (*qkv(1, 33), torch.randn(4) * 5), PLAIN, choice=SMALL)
    q, k, v = qkv(1, 300, heads=2, kv_heads=1)
    launches = check(attention_sinks, (q, k, v, torch.randn(2)), PLAIN, gpu(cores=64))
    assert entries(launches) == ["flash_few", "flash_merge"]


@pytest.mark.parametrize("window", [18, *most(1, 2, 16, 31, 40, 100)])
def test_windows(window):
    """Blocks before every row's window, at its edge, inside it, on the diagonal."""
    attrs = CAUSAL | {"window": window}
    check(attention_sinks, (*qkv(52, 52, kv_heads=4), torch.randn(4)), attrs, choice=SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("window", [1, 2, 16, 31, 40, 100])
def test_windows_and_masks(window):
    attrs = CAUSAL | {"window": window}
    for t, s in ((3, 40), (40, 25)):
        args = qkv(t, s)
        check(attention, args, attrs, choice=SMALL)
        check(attention_sinks, (*args, torch.randn(4)), attrs, choice=SMALL)
    check(attention, (*args, torch.rand(40, 25) > 0.3), attrs, choice=SMALL)


def test_keys_before_the_window_are_not_read():
    """Whole blocks of them; where they are NaN the result would be."""
    q, k, v = (x[:1, :1] for x in qkv(64, 64))
    launches, named = launches_of(attention, (q, k, v), CAUSAL | {"window": 16}, gpu(), SMALL)
    expected = attention.reference(q, k, v, scale=0.25, causal=True, window=16)
    named["k"][:, :, :32] = named["v"][:, :, :32] = float("nan")
    interpret(launches, named, {})
    torch.testing.assert_close(named["out"][:, :, 48:], expected[:, :, 48:])
    assert named["out"][:, :, :32].isnan().all()


@DTYPES
@pytest.mark.parametrize("t", [5, *most(1, 20)])
def test_masks(t, dtype):
    q, k, v = qkv(t, 33, dtype=dtype)
    for mask in (
        None,
        torch.rand(2, 1, t, 33) > 0.3,
        torch.rand(4, 1, 33) > 0.3,
        torch.randn(t, 33).to(dtype),
        torch.randn(2, 4, t, 33).to(dtype).transpose(0, 1).contiguous().transpose(0, 1),
    ):
        check(attention, (q, k, v, mask), PLAIN, choice=SMALL)
        check(attention, (q, k, v, mask), CAUSAL, choice=SMALL)


def test_many_queries_and_few():
    few = {1: 16, 2: 8, 4: 4}  # rows are the queries of all heads of a key head
    for groups, limit in few.items():
        for t in (1, limit, limit + 1):
            q, k, v = qkv(t, 40, heads=4, kv_heads=4 // groups)
            launches = check(attention, (q, k, v), PLAIN, gpu(cores=1), SMALL)
            assert entries(launches) == ["flash_few" if t <= limit else "flash"]


@pytest.mark.parametrize("t", [3, *most(1)])
def test_shares_of_the_keys(t):
    q, k, v = qkv(t, 700, heads=2, kv_heads=1)
    target = gpu(cores=64)
    for attrs in (PLAIN, CAUSAL):
        launches = check(attention, (q, k, v), attrs, target)
        assert entries(launches) == ["flash_few", "flash_merge"]
    hidden = torch.zeros(2, 1, t, 700, dtype=torch.bool)
    hidden[:, :, :, 650:] = True
    check(attention, (q, k, v, hidden), PLAIN, target)
    check(attention, (q, k, v, hidden & False), PLAIN, target)


def test_depths_that_are_no_power_of_two():
    for d, dv in ((40, 40), (24, 48), (80, 16)):
        for t in (1, 20):
            check(attention, qkv(t, 33, d=d, dv=dv), PLAIN, choice=SMALL)


def test_strided_operands():
    split = torch.randn(2, 20, 3, 4, 16)
    q, k, v = (split[:, :, i].transpose(1, 2) for i in range(3))
    check(attention, (q, k, v), CAUSAL, choice=SMALL)
    check(attention, (q[:, :, :2], k[:, :2], v[:, :2]), PLAIN, choice=SMALL)


def test_queries_that_see_nothing():
    q, k, v = qkv(20, 33)
    mask = torch.rand(2, 1, 20, 33) > 0.3
    mask[:, :, 3] = False
    check(attention, (q, k, v, mask), PLAIN, choice=SMALL)
    q[0, 0, 0, 0] = float("nan")
    check(attention, (q, k, v, mask), PLAIN, choice=SMALL)


def test_open_sizes():
    seen = set()
    for t in (3, 7, 20):
        q, k, v = qkv(t, 33)
        seen.add(tuple(entries(check(attention, (q, k, v), PLAIN, choice=SMALL, opened=t))))
        q, k, v = qkv(t, t)
        check(attention, (q, k, v), CAUSAL, choice=SMALL, opened=t)
    assert seen == {("flash_few", "flash")}
    q, k, v = qkv(1, 90)
    launches = check(attention, (q, k, v), PLAIN, gpu(cores=64), opened=90)
    assert entries(launches) == ["flash_few", "flash_merge"]


def test_torchs_own():
    q, k, v = qkv(20, 33)
    usual = {"dropout_p": 0.0, "is_causal": False}
    check(SDPA, (q, k, v), {**usual, "enable_gqa": True}, choice=SMALL)
    check(SDPA, (q, k[:, :1], v[:, :1]), {**usual, "scale": 0.3}, choice=SMALL)


def test_what_is_declined():
    q, k, v = qkv(4, 4, d=300)
    with pytest.raises(AssertionError, match="heads of 300, expected at most 256"):
        check(attention, (q, k, v), PLAIN)


def shaped(t, s, d, heads=32, kv_heads=8, dtype=torch.bfloat16):
    sizes = ((2, heads, t, d), (2, kv_heads, s, d), (2, kv_heads, s, d))
    return [torch.empty(size, dtype=dtype, device="meta") for size in sizes]


def sinks_of(heads, dtype=torch.bfloat16):
    return torch.empty(heads, dtype=dtype, device="meta")


@every_arch
def test_compiles(arch):
    compiles(launches_of(attention, shaped(512, 512, 64), CAUSAL, gpu(arch))[0], arch)
    compiles(launches_of(attention, shaped(1, 4096, 128), PLAIN, gpu(arch, cores=132))[0], arch)


@pytest.mark.parametrize("arch", ["sm90", *most("sm80", "sm100", "gfx942")])
def test_a_window_and_sinks_compile(arch):
    args = (*shaped(512, 512, 64), sinks_of(32))
    compiles(launches_of(attention_sinks, args, CAUSAL | {"window": 128}, gpu(arch))[0], arch)


@pytest.mark.slow
@every_arch
@pytest.mark.parametrize("d", [32, 64, 80, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_schedule_compiles(arch, d, dtype):
    wide = torch.empty(2, 1, 512, 512, dtype=dtype, device="meta")
    mask = wide.to(torch.bool)
    for block in FLASH_SPACE["block"] if dtype is torch.bfloat16 and d <= 128 else ("usual",):
        for given, attrs in (((), CAUSAL), ((), PLAIN), ((wide,), PLAIN), ((mask,), CAUSAL)):
            args = (*shaped(512, 512, d, dtype=dtype), *given)
            compiles(launches_of(attention, args, attrs, gpu(arch), {"block": block})[0], arch)
        window = CAUSAL | {"window": 100}
        for given in ((), (mask,)):
            args = (*shaped(512, 512, d, dtype=dtype), sinks_of(32, dtype), *given)
            launches = launches_of(attention_sinks, args, window, gpu(arch), {"block": block})
            compiles(launches[0], arch)
    args = (*shaped(1, 512, d, dtype=dtype), mask[:, :, :1])
    compiles(launches_of(attention, args, PLAIN, gpu(arch, cores=132))[0], arch)
