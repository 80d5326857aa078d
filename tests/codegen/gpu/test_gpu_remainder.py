"""Entries kept beside a stored weight on a GPU, and rows of stored tables."""

import pytest
import torch

from infopt.codegen.gpu.interpret import interpret
from infopt.codegen.kernels.quantized_embedding import quantized_embedding
from infopt.codegen.kernels.quantized_linear import quantized_gated_linear, quantized_linear
from infopt.codegen.weight_formats.formats import FORMATS
from infopt.codegen.weight_formats.weight_format import weight_format
from tests.codegen.gpu.launched import OPEN, check, compiles, every_arch, gpu, launches_of, most

SMALL = {"block": "32x32 w4 s2"}
# some rows have no entries, some have more than are taken at once
SIZES = [(1, 64, 16), (5, 500, 19), (140, 70, 12)]


def heavy(n, k):
    weight = torch.randn(n, k) / 8
    weight[3:11] *= 8
    return weight


def close(found, wanted, limit):
    return (found - wanted).norm() <= limit * wanted.norm()


def entries(launches):
    return [launch.entry for launch in launches]


@pytest.mark.parametrize("name", ["int4-g64+4%", *most("lut4+0.5%", "fp8-e4m3-g32+1%")])
@pytest.mark.parametrize("activations", ["none", "bf16"])
def test_they_are_added(name, activations):
    format = weight_format(name)
    attrs = {"format": format.dense.name, "activations": activations}
    for m, k, n in SIZES:
        x, w = torch.randn(m, k), format.store(heavy(n, k))
        bias, residual = torch.randn(n), torch.randn(m, n)
        args = (x, *w[:3], bias, residual, w.remainder)
        launches, named = launches_of(quantized_linear, args, attrs, gpu(cores=1), SMALL)
        interpret(launches, named)
        assert ("turn_rows" in entries(launches)) == (m > 16)
        wanted = quantized_linear(*args, **attrs)
        limit = 1e-5 if activations == "none" else 4e-3
        assert close(named["out"], wanted, limit), (m, k, n)
        without = quantized_linear(*args[:-1], **attrs)
        assert not close(without, wanted, limit)  # else nothing is tested


def test_once_though_k_is_cut_and_in_both_sides_of_a_gate():
    format, attrs = weight_format("lut3-g64+1%"), {"format": "lut3-g64", "activations": "none"}
    gate, up = format.store(heavy(20, 576)), format.store(heavy(20, 576))
    for m, last in ((2, "linear_sum"), (20, "quantized_tiles")):
        x = torch.randn(m, 576).bfloat16()
        args = (x, *gate[:3], *up[:3], None, None, gate.remainder, up.remainder)
        launches = check(quantized_gated_linear, args, attrs, choice=SMALL)
        assert entries(launches).count("entry_products") == 2 and entries(launches)[-1] == last
        args = (x, *gate[:3], None, None, gate.remainder)
        assert entries(check(quantized_linear, args, attrs, choice=SMALL))[-1] == last


def test_open_sizes_strided_rows_nan_and_rows_that_do_not_depend_on_others():
    format, attrs = weight_format("int4-g32+1%"), {"format": "int4-g32", "activations": "none"}
    w = format.store(heavy(20, 200))
    rest = (*w[:3], None, None, w.remainder)
    for m in (3, 33):
        x = torch.randn(m, 200)
        x[1, 7] = float("nan")
        check(quantized_linear, (x, *rest), attrs, gpu(cores=1), SMALL, opened=m)
        check(quantized_linear, (torch.randn(m, 300)[:, :200], *rest), attrs, choice=SMALL)
    found = []
    x = torch.randn(33, 200)
    for rows in (33, 3):
        target = gpu(batch_invariant=True)
        launches, named = launches_of(quantized_linear, (x[:rows], *rest), attrs, target, SMALL)
        interpret(launches, named)
        found.append(named["out"])
    assert torch.equal(found[0][:3], found[1])


def test_rows_of_tables_over_the_ops_cases():
    for args, attrs in quantized_embedding.cases():
        assert entries(check(quantized_embedding, args, attrs)) == ["stored_rows"]


@pytest.mark.parametrize("format", FORMATS)
def test_rows_of_tables(format):
    for width in (1, 33, 200):
        values, scales = FORMATS[format].encode(torch.randn(41, width))
        ids = torch.tensor([[0, 40, 7], [7, 1, 12]])
        for out, given in (
            (torch.float32, ids),
            (torch.bfloat16, ids.int().t()),
            (torch.float32, ids[0, 0]),
        ):
            attrs = {"format": format, "width": width, "out": out}
            check(quantized_embedding, (given, values, scales), attrs)


@pytest.mark.parametrize("name", ["int4-g32+5%", "lut3+5%", "fp8-e5m2-g64+5%"])
def test_rows_of_tables_with_entries(name):
    format = weight_format(name)
    w = format.store(heavy(41, 200))
    assert w.remainder[:42].diff().max() > 32  # more than are taken at once
    args = (torch.tensor([[0, 40, 7], [7, 1, 12]]), *w[:2], w.remainder)
    for out in (torch.float32, torch.bfloat16):
        attrs = {"format": format.dense.name, "width": 200, "out": out}
        launches, named = launches_of(quantized_embedding, args, attrs, gpu(), opened=3)
        interpret(launches, named, {OPEN: 3})
        assert entries(launches) == ["stored_rows", "stored_entries"]
        assert torch.equal(named["out"], quantized_embedding(*args, **attrs))
    plain = quantized_embedding(*args[:-1], **attrs)
    assert not torch.equal(plain, quantized_embedding(*args, **attrs))


@pytest.mark.parametrize("remainder", [False, True])
def test_rows_that_a_table_does_not_have_are_nan(remainder):
    w = weight_format("int4-g32+3%").store(heavy(30, 100))
    args = (torch.tensor([3, 29, 0, 1]), *w[:2], *([w.remainder] if remainder else []))
    attrs = {"format": "int4-g32", "width": 100}
    launches, named = launches_of(quantized_embedding, args, attrs, gpu())
    named["ids"] = torch.tensor([3, 30, -1, 2**40])
    interpret(launches, named)
    assert torch.equal(named["out"][0], quantized_embedding(*args, **attrs)[0])
    assert named["out"][1:].isnan().all()


@every_arch
def test_compiles(arch):
    types = weight_format("lut4+1%").types(4096, 4096)
    w = {kind: torch.empty(s, dtype=d, device="meta") for kind, (s, d) in types.items()}
    ids = torch.empty(3, 7, dtype=torch.int64, device="meta")
    attrs = {"format": "lut4", "width": 4096, "out": torch.bfloat16}
    args = (ids, w["values"], w["scales"], w["remainder"])
    compiles(launches_of(quantized_embedding, args, attrs, gpu(arch))[0], arch)
    attrs = {"format": "lut4", "activations": "none", "out": torch.bfloat16}
    for m in (1, 512):
        x = torch.empty(m, 4096, dtype=torch.bfloat16, device="meta")
        args = (x, w["values"], w["scales"], w["sums"], None, None, w["remainder"])
        compiles(launches_of(quantized_linear, args, attrs, gpu(arch, cores=132))[0], arch)
