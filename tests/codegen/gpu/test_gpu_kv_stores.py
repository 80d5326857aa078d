"""Caches in bytes and in pages on a GPU: rows find their places, attention reads them there."""

import pytest
import torch

from infopt.codegen.gpu.interpret import interpret
from infopt.codegen.kernels.kv_cache import as_bytes, kv_append_int8, kv_attention_int8
from infopt.codegen.kernels.kv_int4 import (
    RING,
    _from_pages,
    _parts,
    kv_append_int4,
    kv_attention_int4,
    wide_of,
)
from infopt.codegen.kernels.kv_paged import kv_append_paged, kv_attention_paged
from tests.codegen.gpu.launched import (
    check,
    compiles,
    emitter_of,
    every_arch,
    gpu,
    launches_of,
    most,
    type_of,
)

APPENDS = kv_append_int8, kv_append_int4, kv_append_paged
ATTENDS = kv_attention_int8, kv_attention_int4, kv_attention_paged
named = pytest.mark.parametrize
of_op = {"ids": lambda op: op.name}


def appended(op, args, attrs):
    launches, tensors = launches_of(op, args, attrs, gpu())
    tensors["out"].copy_(args[0])  # it is the store's own memory
    interpret(launches, tensors)
    return tensors["out"]


@named("op", APPENDS, **of_op)
def test_rows_find_their_places(op):
    for args, attrs in op.cases():
        assert torch.equal(appended(op, args, attrs), op.reference(*args, **attrs))


def test_bytes_of_special_values_and_ties():
    x = torch.randn(1, 1, 8, 24)
    x[0, 0, 0], x[0, 0, 1, 3], x[0, 0, 2, 5] = 0.0, float("nan"), float("inf")
    x[0, 0, 3] = torch.linspace(-127, 127, 24).round() + 0.5
    x[0, 0, 4], x[0, 0, 5] = 1e-42, 3e38
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        store = torch.zeros(1, 1, 9, 28, dtype=torch.int8)
        args = store, x.to(dtype), torch.tensor([1]), torch.tensor([8])
        assert torch.equal(appended(kv_append_int8, args, {}), kv_append_int8.reference(*args))


def test_what_lies_outside_is_left_out():
    x, starts = torch.ones(3, 1, 3, 16), torch.tensor([-2, 3, 2**40])
    store, counts = torch.zeros(3, 1, 4, 20, dtype=torch.int8), torch.tensor([9, 3, 3])
    found = appended(kv_append_int8, (store, x, starts, counts), {})
    assert (found != 0).any(-1)[:, 0].tolist() == [
        [True, False, False, False],
        [False, False, False, True],
        [False] * 4,
    ]
    table = torch.tensor([[0, 9], [2, -1], [1, 1]])  # of pages that are not there: 9, none, beyond
    pages = torch.zeros(1, 1, 6, 16)
    args = pages, x, torch.tensor([1, 1, 3]), counts, table
    expected = kv_append_paged.reference(*args, page=2)
    assert torch.equal(appended(kv_append_paged, args, {"page": 2}), expected)
    assert expected.sum() == 3 * 16


@named("op", ATTENDS, **of_op)
@named("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cases(op, dtype):
    for args, attrs in op.cases():
        if args[0].dtype is dtype:
            check(op, args, attrs)


def cached(tokens, starts, heads=4, kv_heads=2, d=16, v=16, room=96, dtype=torch.float32):
    q = torch.randn(len(starts), heads, tokens, d).to(dtype)
    k, v = (torch.randn(len(starts), kv_heads, room, n).to(dtype) for n in (d, v))
    return q, k, v, torch.tensor(starts)


@named("window", [0, 20])
@named("tokens", [1, *most(40)])
def test_sequences_of_different_lengths_and_widths(tokens, window):
    q, k, v, starts = cached(tokens, [0, 16, 56], heads=6, d=20, v=36)
    attrs = {"scale": 0.25, "window": window}
    check(kv_attention_int8, (q, as_bytes(k), as_bytes(v), starts), attrs)
    table = torch.randperm(24).view(3, 8)
    k, v = (x[:1].repeat(1, 1, 3, 1) for x in (k, v))
    for of in (lambda x: x, as_bytes):
        check(kv_attention_paged, (q, of(k), of(v), starts, table), {"page": 12, **attrs})


def test_shares_of_a_long_cache():
    q, k, v, starts = cached(1, [0, 300, 699], heads=2, kv_heads=1, room=700)
    launches = check(
        kv_attention_int8, (q, as_bytes(k), as_bytes(v), starts), {"scale": 0.25}, gpu(cores=64)
    )
    assert [launch.entry for launch in launches] == ["attend_cached", "flash_merge"]


def test_what_no_row_sees_is_not_read():
    """Keys behind the text, blocks before the window: their factors are NaN."""
    q, k, v, starts = cached(1, [0, 90], room=160)
    stores = [as_bytes(x) for x in (k, v)]
    attrs = {"scale": 0.25, "window": 16}
    launches, tensors = launches_of(kv_attention_int8, (q, *stores, starts), attrs, gpu(cores=1))
    expected = kv_attention_int8.reference(q, *stores, starts, **attrs)
    for name in ("keys", "values"):
        tensors[name][0, :, 1:, -4:] = -1  # NaN
        tensors[name][1, :, 91:, -4:] = -1
        tensors[name][1, :, :64, -4:] = -1
    interpret(launches, tensors)
    torch.testing.assert_close(tensors["out"], expected)


@named("width", [18, 264])
def test_rows_that_it_cannot_read_are_declined(width):
    q, k, v, starts = cached(1, [0], d=width, v=width)
    given = [type_of(x) for x in (q, as_bytes(k), as_bytes(v), starts)]
    attrs = {"scale": 1.0, "window": 0, "softcap": 0.0}
    reason = emitter_of(kv_attention_int8).reason_against(gpu(), given, attrs)
    assert reason in (
        "rows of 18 bytes, expected a multiple of 4",
        "heads of 264, expected at most 256",
    )


def test_pages_of_special_values():
    """Ranges with NaN or an infinity stand for what the op says, equal and tiny ones are exact."""
    x = torch.randn(1, 1, 32, 64)
    x[0, 0, 3, 5], x[0, 0, 4, 40], x[0, 0, 9, 9] = float("nan"), float("inf"), -float("inf")
    x[0, 0, :, 50], x[0, 0, 11] = 2.0, 3.0
    x[0, 0, 12, 32:] = 1.0 + torch.arange(32) * 1e-7
    size = 2 * 20 * 64 + 64 * 64 * 4
    args = torch.zeros(1, 1, size, dtype=torch.uint8), x, torch.tensor([0]), torch.tensor([32])
    for per_token in (False, True):
        attrs = {"per_token": per_token}
        found, expected = (
            appended(kv_append_int4, args, attrs),
            kv_append_int4.reference(*args, **attrs),
        )
        for store in (found, expected):
            assert store[..., :1280].any()
        pages = [_from_pages(_parts(s, 64)[0], 64, per_token) for s in (found, expected)]
        torch.testing.assert_close(*pages, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(*(_parts(s, 64)[1] for s in (found, expected)), equal_nan=True)


def test_pages_and_rings_of_long_texts():
    """Shares, a window that ends within a page, heads of odd widths."""
    starts, counts = torch.tensor([0, 95, 350]), torch.tensor([1, 1, 1])
    stores = []
    for depth, per_token in ((20, False), (36, True)):
        x = torch.randn(3, 1, 360, depth)
        empty = torch.zeros(3, 1, 12 * 20 * wide_of(depth) + RING * depth * 4, dtype=torch.uint8)
        first = torch.zeros_like(starts), starts + counts
        stores.append(kv_append_int4.reference(empty, x, *first, per_token=per_token))
    q = torch.randn(3, 5, 1, 20)
    for attrs in ({}, {"window": 70}):
        launches = check(
            kv_attention_int4,
            (q, *stores, starts, counts),
            {"scale": 0.2, "width": 36, **attrs},
            gpu(cores=16),
        )
    assert [launch.entry for launch in launches] == ["attend_int4", "flash_merge"]


def empty(*shape, dtype=torch.int64):
    """Without data, for compiling."""
    return torch.empty(*shape, dtype=dtype, device="meta")


def every_form(arch, depth, dtype, tokens, window, softcap):
    """Launches over caches of 8192 tokens."""
    target, ones = gpu(arch, cores=132), empty(1)
    q, table = empty(1, 8, tokens, depth, dtype=dtype), empty(1, 512)
    usual, in_bytes = (
        empty(1, 2, 8192, depth, dtype=dtype),
        empty(1, 2, 8192, depth + 4, dtype=torch.int8),
    )
    int4 = empty(1, 2, 256 * 20 * wide_of(depth) + RING * depth * 4, dtype=torch.uint8)
    attrs = {"scale": 0.125, "softcap": softcap, "window": window}
    paged, wide = {"page": 16, **attrs}, {"width": depth, **attrs}
    for op, given, options in (
        (kv_attention_int8, (q, in_bytes, in_bytes, ones), attrs),
        (kv_attention_paged, (q, usual, usual, ones, table), paged),
        (kv_attention_paged, (q, in_bytes, in_bytes, ones, table), paged),
        (kv_attention_int4, (q, int4, int4, ones, ones), wide),
    ):
        yield launches_of(op, given, options, target)[0]


@every_arch
def test_machine_code(arch):
    depth, x = 128, empty(1, 2, 512, 128, dtype=torch.bfloat16)
    for tokens in (1, 512):
        for launches in every_form(arch, depth, torch.bfloat16, tokens, 4096, 0.0):
            compiles(launches, arch)
    ones, table, target = empty(1), empty(1, 512), gpu(arch)
    in_bytes = empty(1, 2, 8192, depth + 4, dtype=torch.int8)
    int4 = empty(1, 2, 256 * 20 * depth + RING * depth * 4, dtype=torch.uint8)
    for op, store, rest, attrs in (
        (kv_append_int8, in_bytes, (), {}),
        (kv_append_paged, in_bytes, (table,), {"page": 16}),
        (kv_append_int4, int4, (), {"per_token": False}),
        (kv_append_int4, int4, (), {"per_token": True}),
    ):
        compiles(launches_of(op, (store, x, ones, ones, *rest), attrs, target)[0], arch)


@pytest.mark.slow
@every_arch
@named("depth", [64, 128, 256])
@named("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_machine_code_of_every_form(arch, depth, dtype):
    for tokens in (1, 512):
        for launches in every_form(arch, depth, dtype, tokens, 4096, 30.0):
            compiles(launches, arch)
