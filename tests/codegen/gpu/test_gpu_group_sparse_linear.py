"""Weights kept in groups on a GPU: odd sizes, parts of groups, every activation, declines."""

import pytest
import torch

from infopt.codegen.gpu.group_sparse_linear import TILES_SPACE
from infopt.codegen.group_sparsity import largest
from infopt.codegen.kernels.group_sparse_linear import group_form, group_sparse_linear
from infopt.codegen.kernels.linear import ACTIVATIONS
from tests.codegen.gpu.launched import check, compiles, emitter_of, every_arch, gpu, launches_of
from tests.codegen.gpu.launched import type_of as typed

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


def operands(m, n, k, kept, dtype=torch.float32, rest=True):
    """x, groups of a weight, their columns, bias and residual."""
    form, w = group_form(gpu(), dtype), (torch.randn(n, k) / k**0.5).to(dtype)
    columns = largest(form.scores(w), kept)
    given = [torch.randn(m, k, dtype=dtype), form.packed(w, columns), columns]
    added = [torch.randn(n, dtype=dtype), torch.randn(m, n, dtype=dtype)]
    return [*given, *(added if rest else [None, None])]


@DTYPES
@pytest.mark.parametrize(("m", "n", "k", "kept"), [(1, 20, 50, 3), (70, 130, 133, 17)])
def test_odd_sizes(m, n, k, kept, dtype):
    check(group_sparse_linear, operands(m, n, k, kept, dtype), {"features": n})
    plain = operands(m, n, k, kept, dtype, rest=False)
    check(group_sparse_linear, plain, {"features": n, "activation": "relu"})


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    given = operands(17, 64, 40, 4)
    check(group_sparse_linear, given, {"features": 64, "activation": activation})


def test_groups_of_other_targets():
    """What a CPU takes runs too, if slowly: half of a tile is empty."""
    for args, attrs in group_sparse_linear.cases():
        check(group_sparse_linear, args, attrs)


def test_one_program_for_all_sizes():
    for m in (1, 40, 65):
        given = operands(m, 70, 48, 3)
        assert len(check(group_sparse_linear, given, {"features": 70}, opened=m)) == 1


def test_every_schedule():
    for rows in TILES_SPACE["rows"]:
        given = operands(40, 70, 48, 3, torch.bfloat16)
        check(group_sparse_linear, given, {"features": 70}, choice={"rows": rows})


def test_declines():
    x, values, columns, *_ = (typed(t) for t in operands(5, 20, 50, 3))
    attrs = {"features": 20, "activation": "none"}
    emitter = emitter_of(group_sparse_linear)
    assert emitter.reason_against(gpu(), (x, values, columns, None, None), attrs) is None
    for group in ((64, 3), (256, 8), (64, 32)):
        other = typed(torch.empty(1, 3, *group))
        told = emitter.reason_against(gpu(), (x, other, columns, None, None), attrs)
        assert told is not None and told.startswith(f"groups of {group[0]} x {group[1]}, expected")


def shapes(dtype, rest=True):
    def of(*size, dtype=dtype):
        return torch.empty(size, dtype=dtype, device="meta")

    added = [of(3072), of(4096, 3072)] if rest else [None, None]
    return [of(4096, 768), of(48, 48, 64, 8), of(48, 48, dtype=torch.int32), *added]


@every_arch
@DTYPES
def test_compiles(arch, dtype):
    attrs = {"features": 3072, "activation": "gelu"}
    compiles(launches_of(group_sparse_linear, shapes(dtype), attrs, gpu(arch))[0], arch)


@pytest.mark.slow
@every_arch
@DTYPES
def test_every_schedule_compiles(arch, dtype):
    attrs = {"features": 3072, "activation": "gelu"}
    for rows in TILES_SPACE["rows"]:
        given = launches_of(group_sparse_linear, shapes(dtype), attrs, gpu(arch), {"rows": rows})
        compiles(given[0], arch)
