"""Linear layers on a GPU: tiles, few rows, shares of k, epilogues."""

import pytest
import torch

from infopt.codegen.gpu.descriptors import ARCHITECTURES
from infopt.codegen.gpu.linear import TILES_SPACE
from infopt.codegen.kernels.linear import ACTIVATIONS, gated_linear, linear_act
from infopt.compiler.ops import aten
from tests.codegen.gpu.launched import check, compiles, every_arch, gpu, launches_of, most

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
LINEAR = aten("linear.default")
# The smallest tiles, so that a case has several: results do not depend on the choice.
SMALL = {"tile": "16x64x32 w4 s2", "few": "8x32 w4 s2", "persistent": "usual"}
SMALL["loads"] = "pointers"


def entries(launches):
    return [launch.entry for launch in launches]


def operands(m, n=50, k=70, dtype=torch.float32):
    return [t.to(dtype) for t in (torch.randn(m, k), torch.randn(n, k) / 8, torch.randn(n))]


@pytest.mark.parametrize("op", [linear_act, gated_linear], ids=lambda o: o.name)
def test_cases(op):
    for args, attrs in op.cases():
        check(op, args, attrs, choice=SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("op", [linear_act, gated_linear], ids=lambda o: o.name)
def test_cases_with_the_usual_tiles(op):
    for args, attrs in op.cases():
        check(op, args, attrs)


@DTYPES
@pytest.mark.parametrize("m", [1, 17, *most(2, 16, 70)])
def test_odd_sizes(m, dtype):
    x, w, b = operands(m, dtype=dtype)
    check(LINEAR, (x, w, b), {}, choice=SMALL)
    check(gated_linear, (x, w, w.flip(0), b, b + 1), {"activation": "silu"}, choice=SMALL)
    residual = torch.randn(m, 50).to(dtype)
    check(linear_act, (x, w, None, residual), {"activation": "none"}, choice=SMALL)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    x, w, b = operands(17)
    check(linear_act, (3 * x, w, b), {"activation": activation}, choice=SMALL)


def test_strided_operands():
    w = torch.randn(48, 32)
    for x in (
        torch.randn(5, 4, 64)[:, :, :32],
        torch.randn(32, 20).t(),
        torch.randn(1, 32).expand(20, 32),
        torch.randn(32),
        torch.randn(2, 1, 3, 32),
    ):
        check(LINEAR, (x, w), {}, choice=SMALL)
    check(LINEAR, (torch.randn(20, 32), torch.randn(48, 64)[:, :32]), {}, choice=SMALL)
    check(LINEAR, (torch.randn(20, 32), torch.randn(32, 48).t()), {}, choice=SMALL)
    residual = torch.randn(20, 96)[:, :48]
    check(linear_act, (torch.randn(20, 32), w, None, residual), {"activation": "relu"})


@pytest.mark.parametrize("m", [1, 7])
def test_shares_of_k(m):
    x, w, b = operands(m, n=20, k=1100)
    launches = check(LINEAR, (x, w, b), {}, choice=SMALL)
    assert entries(launches)[1:] == ["linear_sum"]
    launches = check(gated_linear, (x, w, w + 1, b, b), {"activation": "gelu"}, choice=SMALL)
    assert entries(launches)[1:] == ["linear_sum"]


def test_fewer_programs_than_tiles():
    x, w, b = operands(70)
    launches = check(LINEAR, (x, w, b), {}, choice={**SMALL, "persistent": True})
    assert launches[0].grid == (4,) and launches[0].constants["PERSISTENT"]


def test_one_program_for_all_sizes():
    seen = set()
    for m in (1, 2, 16, 17, 65, 0):
        x, w, b = operands(m)
        if m == 0:
            continue
        launches = check(LINEAR, (x, w, b), {}, opened=m)
        seen.add(tuple(entries(launches)))
    assert len(seen) == 1 and len(*seen) == 4
    x, w, b = operands(5)
    made, _ = launches_of(LINEAR, (x, w, b), {}, gpu(), opened=5)
    (s,) = {f for launch in made for g in launch.grid for f in getattr(g, "free_symbols", ())}
    for m, ran in ((0, []), (1, [0]), (2, [1]), (16, [1]), (17, [2]), (64, [2]), (65, [3])):
        grids = [[g.subs(s, m) if hasattr(g, "subs") else g for g in x.grid] for x in made]
        assert [i for i, grid in enumerate(grids) if 0 not in grid] == ran, m


def test_a_row_does_not_depend_on_its_batch():
    target = gpu(batch_invariant=True)
    x, w, b = operands(40)
    for m in (1, 5, 40):
        assert entries(check(LINEAR, (x[:m], w, b), {}, target)) == ["linear_tiles"]


def test_special_values():
    x, w, b = operands(3, n=32, k=40)
    x[0, 3], x[1, 5] = float("nan"), float("inf")
    for rows in (x, x[:1], x.repeat(7, 1)):
        check(LINEAR, (rows, w, b), {}, choice=SMALL)
        check(linear_act, (rows, w, b), {"activation": "relu"}, choice=SMALL)


@every_arch
@pytest.mark.parametrize("m", [1, 8, 33, 2000])
def test_compiles(arch, m):
    x, w, b = (
        torch.empty(s, dtype=torch.bfloat16, device="meta") for s in ((m, 512), (256, 512), (256,))
    )
    launches, _ = launches_of(LINEAR, (x, w, b), {}, gpu(arch))
    compiles(launches, arch)


@pytest.mark.slow
@every_arch
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", ["plain", "gated", "open"])
def test_every_schedule_compiles(arch, form, dtype):
    args = [
        torch.empty(s, dtype=dtype, device="meta") for s in ((4000, 4096), (4096, 4096), (4096,))
    ]
    ways = [(False, "pointers"), (True, "pointers")]
    if arch in ARCHITECTURES and dtype is torch.bfloat16:
        ways += [(way, "descriptors") for way in (False, True, "flat")]
    for tile in TILES_SPACE["tile"]:
        for persistent, loads in ways:
            choice = {"tile": tile, "few": "usual", "persistent": persistent, "loads": loads}
            if form == "gated":
                given = (gated_linear, (args[0], args[1], args[1]), {"activation": "silu"})
            else:
                given = (linear_act, (*args, args[0]), {"activation": "gelu"})
            opened = 4000 if form == "open" else None
            launches, _ = launches_of(*given, gpu(arch, cores=132), choice, opened)
            compiles(launches, arch)
    for few in TILES_SPACE["few"]:
        choice = SMALL | {"tile": "usual", "few": few}
        x = torch.empty(1, 4096, dtype=dtype, device="meta")
        attrs, target = {"activation": "gelu"}, gpu(arch, cores=132)
        launches, _ = launches_of(linear_act, (x, *args[1:]), attrs, target, choice)
        compiles(launches, arch)
