"""Merging tokens on a GPU: maps, rows and sizes of places, and the way back."""

import pytest
import torch

from infopt.codegen.gpu import token_rows as gpu_rows
from infopt.codegen.kernels.attention_received import attention_received
from infopt.codegen.kernels.token_maps import match_tokens, rank_tokens
from infopt.codegen.kernels.token_rows import merge_rows, merge_sizes, unmerge_rows
from tests.codegen.gpu.launched import check, compiles, every_arch, gpu, launches_of


@pytest.fixture(params=[1024, 8])
def several(request, monkeypatch):
    """Whether a map is one block, or several."""
    monkeypatch.setattr(gpu_rows, "_TOKENS", request.param)
    return request.param


@pytest.mark.parametrize(
    "op",
    [match_tokens, rank_tokens, merge_rows, merge_sizes, unmerge_rows],
    ids=lambda o: o.name,
)
def test_cases(op):
    for args, attrs in op.cases():
        check(op, args, attrs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_maps_that_lead_anywhere(dtype, several):
    """Places that many go to, tokens that go nowhere, rows that are no numbers."""
    place = torch.tensor([[0, 0, 2, -1, 1, 0, 2, 0, -1, 0], [2, 1, 0, 0, 0, 0, 0, 0, 0, -1]])
    size = torch.tensor([[0, 0, 3, 1, 0, 0, 0, 0, 0, 0], [1, 2, 3, 0, 0, 1, 1, 2, 1, 1]]).float()
    x = torch.randn(2, 10, 37).to(dtype)
    x[0, 3], x[0, 4, 2], x[1, 2, 5] = float("nan"), float("nan"), float("inf")
    for sizes in (None, size):
        check(merge_rows, (x, place, sizes), {"keep": 3})
        check(merge_sizes, (place, sizes), {"keep": 3})
    check(merge_rows, (x, place, size), {"keep": 3}, opened=10)
    check(unmerge_rows, (x[:, :3], place, x), {})
    check(unmerge_rows, (x[:, :3], place.clamp(min=0), None), {}, opened=10)


def test_elements_of_any_kind():
    place = torch.tensor([[0, 1, -1, 1]])
    for dtype in (torch.float16, torch.int64, torch.bool):
        y, old = (torch.randn(1, n, 5).to(dtype) for n in (2, 4))
        check(unmerge_rows, (y, place, old), {})


def test_equal_values_and_no_numbers():
    score = torch.tensor([[1.0, float("nan"), 2, 2, -float("inf"), float("inf"), 2, 1]])
    for keep in (1, 3, 5, 8):
        for first in (0, 2):
            check(rank_tokens, (score, None), {"keep": keep, "first": first})
            check(
                rank_tokens,
                (score.bfloat16(), (score != 1).float()),
                {"keep": keep, "first": first},
            )
    check(rank_tokens, (torch.ones(3, 70), None), {"keep": 40, "first": 0}, opened=70)
    metric = torch.randn(2, 9, 40)
    metric[0, 4], metric[1, 3, 2], metric[1, 6] = 0, float("nan"), float("inf")
    metric[1, 7] = metric[1, 1]  # of equal partners the first
    check(match_tokens, (metric, None), {"keep": 5, "first": 1})
    check(match_tokens, (torch.randn(1, 70, 20), None), {"keep": 35, "first": 0}, opened=70)


def empty(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


@every_arch
def test_compiles(arch):
    x, size = empty(32, 197, 768), empty(32, 197, dtype=torch.float32)
    place, keep = empty(32, 197, dtype=torch.int64), {"keep": 160}
    for op, args, attrs in (
        (match_tokens, (x[..., :64], size), keep | {"first": 1}),
        (rank_tokens, (size, size), keep | {"first": 1}),
        (merge_rows, (x, place, size), keep),
        (merge_sizes, (place, size), keep),
        (unmerge_rows, (x[:, :160], place, x), {}),
    ):
        compiles(launches_of(op, args, attrs, gpu(arch))[0], arch)


def test_attention_received():
    for args, attrs in attention_received.cases():
        check(attention_received, args, attrs)
    for dtype in (torch.float32, torch.bfloat16):
        q, k = (torch.randn(2, n, h, 24).to(dtype).transpose(1, 2) for n, h in ((40, 4), (71, 2)))
        bias = torch.randn(2, 71)
        bias[0, 30:], bias[1, :65] = -float("inf"), -float("inf")
        check(attention_received, (q, k, bias), {"scale": 3.0})
    check(attention_received, (q, k.contiguous(), bias), {"scale": 1.0}, opened=71)
    q[0, 0, 3], bias[1] = float("nan"), -float("inf")  # a head, and a sequence, without numbers
    check(attention_received, (q, k, bias), {"scale": 1.0})


@every_arch
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention_received_compiles(arch, dtype):
    for depth in (64, 256):
        q, bias = empty(8, 12, 197, depth, dtype=dtype), empty(8, 197, dtype=torch.float32)
        made, _ = launches_of(attention_received, (q, q, bias), {"scale": 0.1}, gpu(arch))
        compiles(made, arch)
