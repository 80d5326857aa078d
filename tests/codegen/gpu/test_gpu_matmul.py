"""Products of two computed values on a GPU: batches, strides, addends, shares of k."""

import pytest
import torch

from infopt.codegen.gpu.linear import TILES_SPACE
from infopt.compiler.ops import aten
from tests.codegen.gpu.launched import check, compiles, every_arch, gpu, launches_of

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
MM, BMM, MATMUL = (aten(f"{name}.default") for name in ("mm", "bmm", "matmul"))
ADDMM, BADDBMM = aten("addmm.default"), aten("baddbmm.default")
# The smallest tiles, so that a case has several: results do not depend on the choice.
SMALL = {"tile": "16x32x32 w4 s2", "few": "usual", "persistent": "usual", "loads": "pointers"}
ONCE = {"beta": 1, "alpha": 1}


def entries(launches):
    return [launch.entry for launch in launches]


def random(*shape, dtype=torch.float32):
    return torch.randn(shape).to(dtype)


@DTYPES
def test_batches(dtype):
    a, b = random(2, 3, 20, 35, dtype=dtype), random(2, 3, 35, 41, dtype=dtype)
    (launch,) = check(MATMUL, (a, b), {}, choice=SMALL)
    assert launch.grid == (6 * 2 * 2, 1)
    check(BMM, (a[0], b[1]), {}, choice=SMALL)
    check(MATMUL, (a, b[:, :1]), {}, choice=SMALL)  # every head has the same second factor
    check(MATMUL, (a[:1, 0], b), {}, choice=SMALL)
    check(MATMUL, (a, b[0, 0]), {}, choice=SMALL)
    check(MATMUL, (a[0, 0], b), {}, choice=SMALL)


@DTYPES
def test_strides(dtype):
    q, k = (random(2, n, 3, 24, dtype=dtype).transpose(1, 2) for n in (20, 37))
    check(MATMUL, (q, k.transpose(2, 3)), {}, choice=SMALL)
    p, v = random(2, 3, 37, 20, dtype=dtype).transpose(2, 3), k
    check(MATMUL, (p, v), {}, choice=SMALL)
    check(MATMUL, (q[..., ::2], k.transpose(2, 3)[..., ::2, ::3]), {}, choice=SMALL)
    check(MATMUL, (q[:, :, :1].expand(2, 3, 20, 24), k.mT), {}, choice=SMALL)


def test_single_rows_and_columns():
    for m, k, n in ((1, 37, 1), (20, 1, 33), (1, 1, 1), (33, 5, 1)):
        check(MM, (random(m, k), random(k, n)), {}, choice=SMALL)
        check(BMM, (random(2, k, m).mT, random(2, n, k).mT), {}, choice=SMALL)


def test_a_transposed_matrix_makes_a_linear_layer():
    x, w = random(2, 20, 36), random(48, 36)
    assert entries(check(MATMUL, (x, w.t()), {}, choice=SMALL)) == ["linear_tiles"]
    assert entries(check(ADDMM, (random(48), x[0], w.t()), ONCE)) == ["linear_tiles"]
    assert entries(check(MM, (x.mT[0], w[:20].t().t()), {})) == ["product_tiles"]


@DTYPES
def test_addends(dtype):
    a, b = random(2, 20, 35, dtype=dtype), random(2, 35, 40, dtype=dtype)
    for scaled in (ONCE, {"beta": 0.5, "alpha": 2.0}):
        for added in (random(40, dtype=dtype), random(1, 40, dtype=dtype), (a @ b)[0]):
            check(ADDMM, (added, a[0], b[0]), scaled, choice=SMALL)
        for added in (a @ b, (a @ b)[:1], (a @ b)[:, :1], (a @ b).mT.contiguous().mT):
            check(BADDBMM, (added, a, b), scaled, choice=SMALL)


@pytest.mark.parametrize("m", [1, 7])
def test_shares_of_k(m):
    a, b = random(m, 1100), random(1100, 20)
    assert entries(check(MM, (a, b), {}))[1:] == ["linear_sum"]
    assert entries(check(ADDMM, (random(20), a, b), ONCE))[1:] == ["linear_sum"]
    assert entries(check(MATMUL, (a.view(1, m, -1), b), {}, gpu(batch_invariant=True))) == [
        "product_tiles"
    ]


def test_open_sizes():
    b = random(36, 33)
    for m in (1, 17, 70):
        assert len(check(MM, (random(m, 36), b), {}, opened=m)) == 2
    p, v = random(2, 3, 19, 19), random(2, 3, 19, 8)
    check(MATMUL, (p, v), {}, opened=19, choice=SMALL)
    check(MATMUL, (random(7, 3, 5, 6), random(7, 3, 6, 8)), {}, opened=7, choice=SMALL)


def test_special_values():
    a, b = random(2, 20, 36), random(2, 36, 33)
    a[0, 3, 2], b[1, 5, 4], b[1, 6, 4] = float("nan"), float("inf"), -float("inf")
    check(BMM, (a, b), {}, choice=SMALL)


def empty(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


@every_arch
@pytest.mark.parametrize("m", [8, 2000])
def test_compiles(arch, m):
    compiles(launches_of(MM, (empty(m, 512), empty(512, 256)), {}, gpu(arch))[0], arch)
    q, k = empty(2, 4, m, 64), empty(2, 4, 1000, 64)
    compiles(launches_of(MATMUL, (q, k.mT), {}, gpu(arch))[0], arch)


@pytest.mark.slow
@every_arch
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("k", [4096, 4000])
def test_every_schedule_compiles(arch, dtype, k):
    a, b = empty(4, 4000, k, dtype=dtype), empty(4, k, 4096, dtype=dtype)
    added = empty(4, 4000, 4096, dtype=dtype)
    turned = empty(4, k, 4000, dtype=dtype).mT, empty(4, 4096, k, dtype=dtype).mT
    target = gpu(arch, cores=132)
    for tile in TILES_SPACE["tile"]:
        choice = {"tile": tile, "few": "usual", "persistent": "usual", "loads": "pointers"}
        for x in (a, turned[0]):
            for y in (b, turned[1]):
                compiles(launches_of(BADDBMM, (added, x, y), ONCE, target, choice)[0], arch)
    few, _ = launches_of(MM, (a[0, :9], b[0]), {}, target)
    compiles(few, arch)
    compiles(launches_of(BMM, (a, b), {}, target, opened=4000)[0], arch)
