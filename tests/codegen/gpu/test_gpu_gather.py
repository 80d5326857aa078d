"""Elements picked by index tensors on a GPU."""

import pytest
import torch

from infopt.codegen.gpu.interpret import interpret
from infopt.compiler.ops import aten
from tests.codegen.gpu.launched import check, compiles, every_arch, gpu, launches_of
from tests.gpu.interpreted import check as check_program

GATHER, SELECT = aten("gather.default"), aten("index_select.default")
USUAL = {"sparse_grad": False}


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool], ids=str
)
def test_elements(dtype):
    x = torch.randn(7, 9, 40).to(dtype)
    for d in (0, 1, -1):
        index = torch.randint(0, x.shape[d], (5,))
        check(SELECT, (x, index), {"dim": d})
        check(SELECT, (x.transpose(0, 2), (index % 9).int()), {"dim": 1})
        places = torch.randint(0, x.shape[d], (6, 8, 30))
        check(GATHER, (x, places), {"dim": d} | USUAL)
        check(GATHER, (x, places.transpose(0, 1)[:7, :6]), {"dim": d} | USUAL)


def test_ranks():
    line = torch.randn(11)
    check(SELECT, (line, torch.tensor([10, 0, 0])), {"dim": 0})
    check(GATHER, (line, torch.tensor([10, 0, 0])), {"dim": 0} | USUAL)
    x = torch.randn(2, 3, 2, 3, 2, 3)
    for d in range(6):
        check(SELECT, (x, torch.tensor([1, 0, 1, 1])), {"dim": d})
    check(SELECT, (x[0], torch.tensor([1, 0])), {"dim": 2})


def test_open_sizes():
    x = torch.randn(13, 40)
    check(SELECT, (x, torch.randint(0, 13, (5,))), {"dim": 0}, opened=13)
    check(SELECT, (x, torch.randint(0, 13, (5,))), {"dim": 0}, opened=5)


def test_index_tensors():
    x = torch.randn(4, 5, 6, 7)
    i, j = torch.tensor([[0, -1, 2]]), torch.tensor([[1], [-5]])
    for f in (
        lambda x, i, j: x[i],
        lambda x, i, j: x[:, i, j],
        lambda x, i, j: x[i, :, j],
        lambda x, i, j: x[i.int(), j.int(), i.int()],
        lambda x, i, j: x.transpose(0, 2)[:, :, i],
    ):
        made = check_program(f, x, i, j)
        assert made.device.launched["gather_elements"] == 1
    check_program(lambda x, i: x[:, i[0]], x, i, dynamic=True)


def test_places_that_do_not_exist():
    x, places = torch.randn(6, 3), torch.tensor([2, 6, -1, 2**40])
    launches, named = launches_of(SELECT, (x, places.clamp(0, 5)), {"dim": 0}, gpu())
    named["index"] = places
    interpret(launches, named)
    assert torch.equal(named["out"][0], x[2]) and named["out"][1:].isnan().all()
    launches, named = launches_of(SELECT, (x.long(), places.clamp(0, 5)), {"dim": 0}, gpu())
    named["index"] = places
    interpret(launches, named)
    assert not named["out"][1:].any()


@every_arch
def test_compiles(arch):
    for dtype in (torch.bfloat16, torch.bool):
        x = torch.empty(64, 32, 100, dtype=dtype, device="meta")
        index = torch.empty(64, 32, 100, dtype=torch.int64, device="meta")
        compiles(launches_of(GATHER, (x, index), {"dim": 1} | USUAL, gpu(arch))[0], arch)
        compiles(launches_of(SELECT, (x, index[0, 0]), {"dim": 0}, gpu(arch), opened=64)[0], arch)
