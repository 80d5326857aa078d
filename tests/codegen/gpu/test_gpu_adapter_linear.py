"""Low-rank adapters of rows on a GPU: blocks of one slot number, rows of none left alone."""

import pytest
import torch

from infopt.codegen.gpu.interpret import interpret
from infopt.codegen.kernels.adapter_linear import adapter_linear
from infopt.compiler.accuracy import Exact
from tests.codegen.gpu.launched import OPEN, compiles, every_arch, gpu, launches_of


def adapted(args, opened=None):
    launches, tensors = launches_of(adapter_linear, args, {}, gpu(), opened=opened)
    tensors["out"].copy_(args[0])  # it is y's own memory
    interpret(launches, tensors, {} if opened is None else {OPEN: opened})
    return tensors["out"]


def test_cases():
    for args, _ in adapter_linear.cases():
        double = [t.double() if t.is_floating_point() else t for t in args]
        expected, exact = adapter_linear.reference(*args), adapter_linear.reference(*double)
        reason = Exact().accepts(expected, adapted(args), exact)
        assert reason is None, f"{[tuple(t.shape) for t in args]}: {reason}"


def given(rows, tokens, k=36, n=70, dtype=torch.float32):
    y, x = torch.randn(rows, tokens, n, dtype=dtype), torch.randn(rows, tokens, k, dtype=dtype)
    a, b = torch.randn(3, 5, k, dtype=dtype), torch.randn(3, 5, n, dtype=dtype)
    return y, x, a, b, torch.tensor([5, 2, 0])


@pytest.mark.parametrize("tokens", [1, 37])
def test_rows_without_an_adapter_keep_their_bytes(tokens):
    args = (*given(5, tokens), torch.tensor([0, -1, 2, 7, 1]))
    found = adapted(args)
    assert torch.equal(found[1:4], args[0][1:4])
    torch.testing.assert_close(found, adapter_linear.reference(*args))


@pytest.mark.parametrize("rows", [1, 13])
def test_open_rows(rows):
    args = (*given(rows, 1), torch.arange(rows) % 4 - 1)
    found = adapted(args, opened=rows)
    torch.testing.assert_close(found, adapter_linear.reference(*args))


@every_arch
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiles(arch, dtype):
    for rows, tokens in ((8, 1), (4, 512)):
        args = [*given(rows, tokens, 512, 512, dtype), torch.zeros(rows, dtype=torch.int64)]
        meta = tuple(t.to("meta") for t in args)
        compiles(launches_of(adapter_linear, meta, {}, gpu(arch))[0], arch)
