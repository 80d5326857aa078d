"""Linear layers whose tiles are loaded by tensor descriptors."""

from dataclasses import replace

import pytest
import torch
from sympy import Symbol

from infopt.codegen.gpu.descriptors import ARCHITECTURES, MOST_ROWS, describable, grid_for
from infopt.codegen.kernels.linear import gated_linear, linear_act
from infopt.codegen.launch import DESCRIPTOR
from infopt.codegen.triton_compile import CannotCompile, compile_launch
from infopt.compiler.ops import aten
from infopt.compiler.types import substitute
from tests.codegen.gpu.launched import check, compiles, gpu, launches_of, most

LINEAR = aten("linear.default")
DESCRIBED = {
    "tile": "16x64x32 w4 s2", "few": "8x32 w4 s2", "persistent": False, "loads": "descriptors"
}  # fmt: skip
HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
described = pytest.mark.parametrize("arch", ARCHITECTURES)


def operands(m, n=50, k=72, dtype=torch.bfloat16):
    return [t.to(dtype) for t in (torch.randn(m, k), torch.randn(n, k) / 8, torch.randn(n))]


def tiles(launches):
    (made,) = (launch for launch in launches if launch.entry == "linear_tiles")
    return made


@HALVES
@pytest.mark.parametrize("persistent", [False, "flat", *most(True)])
def test_odd_sizes(dtype, persistent):
    """Neither rows, columns nor depth are whole tiles."""
    choice = DESCRIBED | {"persistent": persistent}
    x, w, b = operands(70, dtype=dtype)
    residual = torch.randn(70, 50).to(dtype)
    made = check(linear_act, (x, w, b, residual), {"activation": "gelu"}, choice=choice)
    assert tiles(made).descriptors == 2 and tiles(made).constants["DESCRIPTORS"]
    made = check(gated_linear, (x, w, w.flip(0), b, b), {"activation": "silu"}, choice=choice)
    assert tiles(made).descriptors == 3
    assert tiles(made).constants["FLAT"] == (persistent == "flat")


def test_what_lies_outside_is_not_read():
    """Rows of a wider tensor, whose other columns are no numbers; the last tile reaches there."""
    wide = torch.full((40, 96), float("nan"), dtype=torch.bfloat16)
    x, w = wide[:20, :40], wide[20:, :40]
    x.normal_(), w.normal_()
    assert tiles(check(LINEAR, (x, w), {}, choice=DESCRIBED)).descriptors


def test_open_rows():
    for m in (17, 65):
        x, w, b = operands(m)
        launches = check(LINEAR, (x, w, b), {}, choice=DESCRIBED, opened=m)
        assert tiles(launches).descriptors
    m = Symbol("m", integer=True, positive=True)
    assert substitute(grid_for(m, m), {m: MOST_ROWS}) == MOST_ROWS
    assert substitute(grid_for(m, 5), {m: MOST_ROWS + 1}) > 2**31 - 1  # no grid: refused


def test_a_row_does_not_depend_on_its_batch():
    x, w, b = operands(40)
    target = gpu(batch_invariant=True)
    whole = launches_of(LINEAR, (x, w, b), {}, target, DESCRIBED)[0]
    assert [launch.entry for launch in whole] == ["linear_tiles"]
    check(LINEAR, (x[:1], w, b), {}, target, DESCRIBED)


def test_where_there_are_none():
    bf16, sm90 = torch.bfloat16, gpu("sm90")
    s = Symbol("s", integer=True, positive=True)
    assert describable(s, 72, 72, bf16, sm90) and describable(5, 64, 72, bf16, gpu("sm100"))
    assert not describable(5, 64, 72, bf16, gpu("sm80"))
    assert not describable(5, 64, 72, bf16, gpu("gfx942"))
    assert not describable(5, 64, 68, bf16, sm90)  # rows at odd addresses
    assert not describable(5, 64, 8, bf16, sm90)  # rows that overlap
    assert not describable(5, 64, 64, torch.float32, sm90)
    assert not describable(5, s, 64, bf16, sm90) and not describable(5, 64, s, bf16, sm90)
    assert not describable(2**31, 64, 64, bf16, sm90)
    for x, w, b in (operands(20, k=70), operands(20, dtype=torch.float32)):
        made = tiles(check(LINEAR, (x, w, b), {}, choice=DESCRIBED))
        assert not made.descriptors and not made.constants["DESCRIPTORS"]


def test_without_descriptors_it_is_the_launch_by_pointers():
    x, w, b = operands(20)
    made = tiles(launches_of(LINEAR, (x, w, b), {}, gpu(), DESCRIBED)[0])
    plain = tiles(launches_of(LINEAR, (x, w, b), {}, gpu(), DESCRIBED | {"loads": "pointers"})[0])
    assert made.by_pointers() == plain and plain.by_pointers() is plain
    assert made.descriptor_bytes == DESCRIPTOR * 2 * made.grid[0] and not plain.descriptor_bytes


def test_loops_over_low_tiles_are_not_flat_where_they_spill():
    choice = DESCRIBED | {"tile": "64x64x64 w4 s4", "persistent": "flat"}
    for arch, flat in (("sm90", True), ("sm100", False)):
        made = tiles(launches_of(LINEAR, operands(2000, 256, 512), {}, gpu(arch), choice)[0])
        assert [made.constants[name] for name in ("PERSISTENT", "FLAT")] == [flat, flat]


@described
@pytest.mark.parametrize("persistent", [False, "flat"])
def test_compiles(arch, persistent):
    x, w, b = (
        torch.empty(s, dtype=torch.bfloat16, device="meta")
        for s in ((4000, 512), (256, 512), (256,))
    )
    choice = DESCRIBED | {"tile": "usual", "persistent": persistent}
    made = tiles(launches_of(LINEAR, (x, w, b), {}, gpu(arch), choice)[0])
    compiles([made], arch)
    code = compile_launch(made, arch)
    assert b"cp.async.bulk.tensor" in code.binary and code.hidden == 1
    plain = compile_launch(made.by_pointers(), arch)
    assert b"cp.async.bulk.tensor" not in plain.binary and plain.hidden == 2


def test_memory_that_nobody_brings():
    x, w, b = operands(2000, 256, 512)
    made = tiles(launches_of(LINEAR, (x, w, b), {}, gpu(), DESCRIBED | {"tile": "usual"})[0])
    with pytest.raises(CannotCompile, match=r"asks for 256 bytes of memory .* 1 descriptors have"):
        compile_launch(replace(made, descriptors=1, stages=2), "sm90")
