"""Rotary embeddings, rows of tables, and their sum's norm on a GPU."""

import pytest
import torch

from infopt.codegen.kernels.embedding import embedding_norm
from infopt.codegen.kernels.rotary import rotary
from infopt.compiler.ops import aten
from tests.codegen.gpu.launched import check, compiles, every_arch, gpu, launches_of

EMBEDDING = aten("embedding.default")
USUAL = {"padding_idx": -1, "scale_grad_by_freq": False, "sparse": False}


@pytest.mark.parametrize("op", [rotary, embedding_norm], ids=lambda o: o.name)
def test_cases(op):
    for args, attrs in op.cases():
        check(op, args, attrs)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary(interleaved):
    attrs = {"interleaved": interleaved}
    q, k = torch.randn(2, 7, 4, 24).transpose(1, 2), torch.randn(2, 7, 2, 24).transpose(1, 2)
    for rotated in (24, 12, 2):
        cos, sin = torch.randn(2, 7, rotated), torch.randn(2, 7, rotated)
        check(rotary, (q, k, cos, sin), attrs)
        check(rotary, (q.bfloat16(), k.bfloat16(), cos[:1], sin[:1]), attrs)
        check(rotary, (q.bfloat16(), k.bfloat16(), cos.bfloat16(), sin.bfloat16()), attrs)
    q, k = q.contiguous(), k.contiguous()
    check(rotary, (q, k, cos, sin), attrs, opened=7, choice={"tokens": 1})


@pytest.mark.parametrize("index", [torch.int64, torch.int32], ids=str)
def test_embedding(index):
    table, ids = torch.randn(30, 20), torch.randint(0, 30, (4, 7)).to(index)
    check(EMBEDDING, (table, ids), USUAL)
    check(EMBEDDING, (table, ids.t()), USUAL)
    check(EMBEDDING, (torch.randn(30, 64)[:, :20].bfloat16(), ids[0]), USUAL)
    check(EMBEDDING, (table, ids), USUAL, opened=7)


def test_rows_that_a_table_does_not_have_are_nan():
    from infopt.codegen.gpu.interpret import interpret

    table, ids = torch.randn(30, 20), torch.tensor([3, 29, 0, 1])
    launches, named = launches_of(EMBEDDING, (table, ids), USUAL, gpu())
    named["indices"] = torch.tensor([3, 30, -1, 2**40])
    interpret(launches, named)
    assert torch.equal(named["out"][0], table[3]) and named["out"][1:].isnan().all()


def test_sums_of_tables():
    table, places = torch.randn(9, 33), torch.randn(5, 33)
    ids, kinds = torch.randint(0, 9, (3, 5)), torch.randint(0, 2, (3, 1))
    weight, attrs = torch.randn(33), {"eps": 1e-5}
    args = (ids, table, kinds, table[:2], None, places, weight, None)
    check(embedding_norm, args, attrs)
    check(embedding_norm, (ids.t().contiguous().t(), *args[1:]), attrs)
    check(embedding_norm, args, attrs, opened=5)
    check(embedding_norm, (ids, torch.randn(9, 40)[:, :33], *args[2:]), attrs)


@every_arch
def test_compiles(arch):
    q = torch.empty(2, 8, 64, 128, dtype=torch.bfloat16, device="meta")
    cos = torch.empty(1, 64, 128, device="meta")
    compiles(launches_of(rotary, (q, q, cos, cos), {"interleaved": False}, gpu(arch))[0], arch)
    table = torch.empty(1000, 768, dtype=torch.bfloat16, device="meta")
    ids = torch.empty(2, 64, dtype=torch.int64, device="meta")
    compiles(launches_of(EMBEDDING, (table, ids), USUAL, gpu(arch))[0], arch)
    args = (ids, table, ids, table, None, table[:64], table[0], table[0])
    compiles(launches_of(embedding_norm, args, {"eps": 1e-12}, gpu(arch))[0], arch)
