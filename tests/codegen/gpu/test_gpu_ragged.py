"""Rows without padding on a GPU: where they are, the way back, attention within sequences."""

import pytest
import torch

from infopt.codegen.gpu import ragged as gpu_ragged
from infopt.codegen.gpu.attention import FLASH_SPACE
from infopt.codegen.gpu.interpret import interpret
from infopt.codegen.kernels.ragged import ragged_attention, row_index, row_starts, unpack_rows
from tests.codegen.gpu.launched import check, compiles, every_arch, gpu, launches_of

SMALL = {"block": "16x16 w4 s2"}  # a case has several blocks


def mask_of(*lengths, tokens):
    return torch.arange(tokens) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("op", [row_index, row_starts, unpack_rows], ids=lambda o: o.name)
def test_cases(op, monkeypatch):
    for args, attrs in op.cases():
        check(op, args, attrs)
    monkeypatch.setattr(gpu_ragged, "_MASK", 8)  # a row of a mask is several blocks
    for args, attrs in op.cases():
        check(op, args, attrs)


def test_attention_cases():
    for args, attrs in ragged_attention.cases():
        check(ragged_attention, args, attrs, choice=SMALL)


@pytest.mark.slow
def test_attention_cases_with_the_usual_blocks():
    for args, attrs in ragged_attention.cases():
        check(ragged_attention, args, attrs)


def test_fewer_rows_than_were_asked_for():
    mask = mask_of(3, 0, 2, tokens=5)
    check(row_index, (mask,), {"rows": 9})
    check(row_index, (mask.t(),), {"rows": 5})
    check(row_index, (~mask & mask,), {"rows": 2})


@pytest.mark.parametrize("dtype", [torch.float16, torch.int64, torch.bool], ids=str)
def test_elements_and_sizes(dtype):
    mask = mask_of(3, 1, 6, tokens=6)
    for width in ((1,), (5, 3), (2100,)):
        x = torch.randn(10, *width).to(dtype)
        check(unpack_rows, (x, mask, row_starts(mask)), {})
    check(unpack_rows, (x, mask, row_starts(mask)), {}, opened=6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention(dtype):
    starts = torch.tensor([0, 3, 3, 40, 41])  # the second sequence is empty, two rows are nobody's
    q, k, v = (torch.randn(43, h, d).to(dtype) for h, d in ((6, 20), (3, 20), (3, 33)))
    attrs = {"longest": 37, "scale": 0.3}
    check(ragged_attention, (q, k, v, starts), attrs, choice=SMALL)
    check(ragged_attention, (q[:, :3], k, v, starts), attrs, choice=SMALL)
    heads_first = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in (q, k, v)]
    check(ragged_attention, (*heads_first, starts), attrs, choice=SMALL)
    check(ragged_attention, (q, k, v, starts), attrs, choice=SMALL, opened=43)


def test_special_values_stay_in_their_sequence():
    starts, attrs = torch.tensor([0, 4, 9]), {"longest": 5, "scale": 1.0}
    q, k, v = (torch.randn(9, 2, 16) for _ in range(3))
    v[2], k[6, 0, 3] = float("nan"), float("inf")
    launches, named = launches_of(ragged_attention, (q, k, v, starts), attrs, gpu(), SMALL)
    interpret(launches, named)
    for begin, end in ((0, 4), (4, 9)):
        alone = [x[begin:end] for x in (q, k, v)]
        expected = ragged_attention(*alone, torch.tensor([0, end - begin]), **attrs)
        torch.testing.assert_close(named["out"][begin:end], expected, equal_nan=True)


def empty(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


def attention_args(depth, dtype=torch.bfloat16):
    q, k = empty(4000, 8, depth, dtype=dtype), empty(4000, 2, depth, dtype=dtype)
    return (q, k, k, empty(33, dtype=torch.int64)), {"longest": 512, "scale": 0.1}


@every_arch
def test_compiles(arch):
    mask, starts = empty(32, 512, dtype=torch.bool), empty(33, dtype=torch.int64)
    compiles(launches_of(row_index, (mask,), {"rows": 4000}, gpu(arch))[0], arch)
    compiles(launches_of(row_starts, (mask,), {}, gpu(arch))[0], arch)
    compiles(launches_of(unpack_rows, (empty(4000, 768), mask, starts), {}, gpu(arch))[0], arch)
    args, attrs = attention_args(64)
    compiles(launches_of(ragged_attention, args, attrs, gpu(arch))[0], arch)


@pytest.mark.slow
@every_arch
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("depth", [64, 128, 256])
def test_every_schedule_compiles(arch, dtype, depth):
    args, attrs = attention_args(depth, dtype)
    for block in FLASH_SPACE["block"]:
        if block == "usual" or dtype is torch.bfloat16:
            choice = {"block": block}
            made, _ = launches_of(ragged_attention, args, attrs, gpu(arch), choice)
            compiles(made, arch)
