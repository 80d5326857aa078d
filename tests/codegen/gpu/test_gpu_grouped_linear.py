"""Linear layers of groups of rows on a GPU: groups of any size, weights in both layouts."""

import pytest
import torch

from infopt.codegen.gpu.grouped_linear import TILES_SPACE
from infopt.codegen.kernels.grouped_linear import grouped_linear
from tests.codegen.gpu.launched import check, compiles, every_arch, gpu, launches_of, most

SMALL = {"tile": "16x32x32 w4 s2"}  # a case has several tiles: results do not depend on the choice


def ends(*values):
    return torch.tensor(values, dtype=torch.int32)


def test_cases():
    for args, attrs in grouped_linear.cases():
        check(grouped_linear, args, attrs, choice=SMALL)


@pytest.mark.slow
def test_cases_with_the_usual_tiles():
    for args, attrs in grouped_linear.cases():
        check(grouped_linear, args, attrs)


@pytest.mark.parametrize("m", [1, 40, *most(2, 16, 100)])
def test_open_rows(m):
    w = torch.randn(3, 20, 36)
    made = check(grouped_linear, (torch.randn(m, 36), w, ends(0, m // 2, m)), {}, opened=m)
    assert len(made) == 2  # few rows for each group, or many


def test_a_row_does_not_depend_on_its_batch():
    target = gpu(batch_invariant=True)
    w = torch.randn(2, 20, 36)
    for m in (2, 70):
        launches = check(grouped_linear, (torch.randn(m, 36), w, ends(1, m)), {}, target)
        assert [each.constants["BLOCK_K"] for each in launches] == [16]


@every_arch
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("m", [8, 4096])
def test_compiles(arch, m, turned):
    x = torch.empty(m, 512, dtype=torch.bfloat16, device="meta")
    w = torch.empty(32, *((512, 256) if turned else (256, 512)), dtype=x.dtype, device="meta")
    given = (x, w.transpose(1, 2) if turned else w, ends(*[0] * 32).to("meta"))
    compiles(launches_of(grouped_linear, given, {}, gpu(arch))[0], arch)


@pytest.mark.slow
@every_arch
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_schedule_compiles(arch, dtype):
    for k in (512, 500):
        x = torch.empty(4096, k, dtype=dtype, device="meta")
        w = torch.empty(128, 768, k, dtype=dtype, device="meta")
        for tile in TILES_SPACE["tile"]:
            given = (x, w, ends(*[0] * 128).to("meta"))
            compiles(launches_of(grouped_linear, given, {}, gpu(arch), {"tile": tile})[0], arch)
