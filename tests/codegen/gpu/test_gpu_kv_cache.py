"""The cache of keys and values on a GPU: rows find their places, attention stops where texts do."""

import pytest
import torch

from infopt.codegen.gpu.interpret import interpret
from infopt.codegen.kernels.kv_cache import kv_append, kv_attention
from tests.codegen.gpu.launched import check, compiles, every_arch, gpu, launches_of, most

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, *most(torch.bfloat16)], ids=str)
SMALL = {"block": "16x16 w4 s2"}  # so that a case has several blocks


def test_rows_find_their_places():
    for args, attrs in kv_append.cases():
        (launch,), named = launches_of(kv_append, args, attrs, gpu())
        store = args[0]
        named["out"].copy_(store)  # it is the store's own memory
        interpret([launch], named, {})
        assert torch.equal(named["out"], kv_append.reference(*args))


def test_what_lies_outside_is_left_out():
    store, x = torch.zeros(3, 1, 4, 16), torch.ones(3, 1, 3, 16)
    starts, counts = torch.tensor([-2, 3, 2**40]), torch.tensor([9, 3, 3])
    launches, named = launches_of(kv_append, (store, x, starts, counts), {}, gpu())
    named["out"].zero_()
    interpret(launches, named, {})
    assert named["out"].sum((1, 3)).tolist() == [[16, 0, 0, 0], [0, 0, 0, 16], [0, 0, 0, 0]]


def cached(tokens, room, starts, heads=4, kv_heads=2, d=16, dtype=torch.float32):
    q = torch.randn(len(starts), heads, tokens, d).to(dtype)
    k, v = (torch.randn(len(starts), kv_heads, room, d).to(dtype) for _ in range(2))
    return q, k, v, torch.tensor(starts)


@DTYPES
def test_cases(dtype):
    for (q, *rest), attrs in kv_attention.cases():
        if q.dtype is dtype:
            check(kv_attention, (q, *rest), attrs, choice=SMALL)


@pytest.mark.parametrize("window", [0, *most(1, 18, 40)])
@pytest.mark.parametrize("tokens", [1, 40])
def test_sequences_of_different_lengths(tokens, window):
    attrs = {"scale": 0.25, "window": window}
    check(kv_attention, cached(tokens, 97, [0, 16, 57]), attrs, choice=SMALL)


def test_shares_of_a_long_cache():
    args = cached(1, 700, [0, 300, 699], heads=2, kv_heads=1)
    for attrs in ({"scale": 0.25}, {"scale": 0.25, "window": 100}):
        launches = check(kv_attention, args, attrs, gpu(cores=64))
        assert [launch.entry for launch in launches] == ["flash_few", "flash_merge"]


@pytest.mark.parametrize("tokens", [1, *most(40)])
def test_what_no_row_sees_is_not_read(tokens):
    """Keys behind the text, blocks before the window: where they are NaN the result would be."""
    starts = [0, 90]
    q, keys, values, places = cached(tokens, 160, starts)
    attrs = {"scale": 0.25, "window": 16}
    launches, named = launches_of(
        kv_attention, (q, keys, values, places), attrs, gpu(cores=1), SMALL
    )
    expected = kv_attention.reference(q, keys, values, places, **attrs)
    for name in ("keys", "values"):
        for sequence, start in enumerate(starts):
            named[name][sequence, :, start + tokens :] = float("nan")
        named[name][1, :, :64] = float("nan")  # the first row's window begins at 75
    interpret(launches, named, {})
    torch.testing.assert_close(named["out"], expected)


def test_softcap():
    q, *rest = cached(3, 33, [0, 30])
    check(kv_attention, (q * 20, *rest), {"scale": 0.25, "softcap": 5.0}, choice=SMALL)


@every_arch
def test_machine_code(arch):
    starts = torch.empty(1, dtype=torch.int64, device="meta")
    for tokens, depth in ((1, 64), (512, 64), (512, 128)):
        for window, softcap in ((0, 0.0), (4096, 30.0)):
            q = torch.empty(1, 8, tokens, depth, dtype=torch.bfloat16, device="meta")
            k = torch.empty(1, 2, 8192, depth, dtype=torch.bfloat16, device="meta")
            attrs = {"scale": 0.125, "softcap": softcap, "window": window}
            launches, _ = launches_of(kv_attention, (q, k, k, starts), attrs, gpu(arch, cores=132))
            compiles(launches, arch)
            appended, _ = launches_of(
                kv_append, (k, k[:, :, :tokens], starts, starts), {}, gpu(arch)
            )
            compiles(appended, arch)
