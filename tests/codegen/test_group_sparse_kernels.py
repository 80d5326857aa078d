"""Weights kept in groups against torch in float64, on every level this machine runs."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infopt.codegen.group_sparsity import GroupForm, dense_weight, fitted, largest
from infopt.codegen.kernel import emitters
from infopt.codegen.kernels.group_sparse_linear import group_form, group_sparse_linear
from infopt.codegen.weight_formats.rounding import Moments
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType
from tests.codegen.product_kernels import (
    ACTIVATIONS,
    BF16,
    F16,
    F32,
    NAME,
    ROW,
    assert_close,
    ceil_div,
    guarded,
    linear_scratch,
    panel_stride,
    random,
    to_panels,
)

DTYPES = pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=NAME.get)


def run(kernels, m, n, k, dtype, kept, *, panels=2, chunk=48, activation=0, bias=None,
        residual=None, out=F32, few=False):  # fmt: skip
    """One layer with `kept` groups of each block, and what is expected."""
    form = GroupForm(8, 2 if dtype is BF16 else 1)
    held = BF16 if dtype is BF16 else F32
    x, w = random(m, k, dtype=dtype, offset=1), (random(n, k) / k**0.5).to(dtype)
    blocks, groups = form.counts(n, k)
    columns = largest(torch.rand(blocks, groups, dtype=torch.float64), min(kept, groups))
    values = random(*form.packed(w, columns).shape, dtype=dtype, offset=1)
    values.copy_(form.packed(w, columns))
    b = random(n, dtype=bias, offset=1) if bias else None
    added = random(m, n + 1, dtype=residual, offset=1)[:, :n] if residual else None
    wide, check = guarded(m, n + 5, dtype=out, offset=1)
    given = x if few else to_panels(x, held)
    stride = k if few else panel_stride(k, held)
    numbers = [m, n, k, columns.shape[1], chunk, panels, activation, ROW.get(bias, 0), 0, 0]
    numbers += [ROW.get(residual, 0), n + 1, ROW[out], n + 5, stride, ROW[dtype]]
    name = f"few_{NAME[dtype]}" if few else f"{NAME[held]}_{NAME[dtype]}"
    tasks = ceil_div(n, chunk) * (1 if few else ceil_div(ceil_div(m, 16), panels))
    scratch = 4 * m * (ceil_div(k, 32) * 32 + 32) if few else linear_scratch(k, panels, False)
    kernels.run(
        f"group_sparse_{name}",
        [given, values, None, b, None, None, added, wide[:, :n], columns],
        *(numbers, tasks, scratch),
    )
    check()
    assert wide[:, n:].isnan().all(), "wrote into the gap between rows"
    expected = x.double() @ dense_weight(values, columns, n, k).double().T
    expected = ACTIVATIONS[activation](expected if b is None else expected + b.double())
    return wide[:, :n], expected if added is None else expected + added.double()


@DTYPES
def test_odd_sizes(kernels, dtype):
    torch.manual_seed(1)
    for m, n, k, kept in (
        (1, 1, 1, 1),
        (17, 31, 33, 5),
        (40, 95, 16, 16),
        (33, 9, 127, 60),
        (96, 100, 64, 1),
        (15, 50, 7, 3),
    ):
        for panels in (1, 2, 8):
            found, expected = run(kernels, m, n, k, dtype, kept, panels=panels)
            assert_close(found, expected, F32, k)


@DTYPES
def test_beyond_one_cut(kernels, dtype):
    """Panels are cut along k; a block may have no group at all in one of the cuts."""
    torch.manual_seed(2)
    for kept in (1, 700, 2501):
        found, expected = run(kernels, 50, 60, 2501, dtype, kept, panels=3)
        assert_close(found, expected, F32, 2501)


@DTYPES
@pytest.mark.parametrize("few", [False, True], ids=["panels", "few"])
def test_epilogues(kernels, dtype, few):
    torch.manual_seed(3)
    m = 7 if few else 37
    for activation in range(len(ACTIVATIONS)):
        for out in (F32, dtype):
            rest = {"bias": dtype, "residual": dtype, "activation": activation, "out": out}
            found, expected = run(kernels, m, 50, 40, dtype, 11, few=few, **rest)
            assert_close(found, expected, out, 40)


@DTYPES
def test_few_rows(kernels, dtype):
    torch.manual_seed(4)
    for m in range(1, 10):
        for n, k, kept in ((1, 1, 1), (24, 33, 7), (50, 64, 8), (200, 301, 130)):
            found, expected = run(kernels, m, n, k, dtype, kept, chunk=16, few=True)
            assert_close(found, expected, F32, k)


@DTYPES
@settings(
    max_examples=40, deadline=None, database=None, derandomize=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(
    m=st.integers(1, 70), n=st.integers(1, 130), k=st.integers(1, 200), kept=st.integers(1, 200),
    panels=st.sampled_from([1, 3, 8]), chunk=st.sampled_from([48, 96]), few=st.booleans(),
)  # fmt: skip
def test_drawn_sizes(kernels, dtype, m, n, k, kept, panels, chunk, few):
    m = min(m, 8) if few else m
    found, expected = run(kernels, m, n, k, dtype, kept, panels=panels, chunk=chunk, few=few)
    assert_close(found, expected, F32, k)


def test_what_no_group_names_is_not_read(kernels):
    """Columns of x that no block keeps may hold anything."""
    torch.manual_seed(5)
    for dtype in (F32, BF16, F16):
        form = GroupForm(8, 2 if dtype is BF16 else 1)
        x = random(20, 40, dtype=dtype)
        columns = torch.tensor([[0, 3, 5]], dtype=torch.int32)
        values = random(1, 3, 8, form.width, dtype=dtype)
        x[:, 20:] = float("nan")
        held = BF16 if dtype is BF16 else F32
        y, _ = guarded(20, 8, dtype=F32)
        numbers = [20, 8, 40, 3, 48, 2, 0, 0, 0, 0, 0, 0, ROW[F32], 8, panel_stride(40, held), 0]
        kernels.run(
            f"group_sparse_{NAME[held]}_{NAME[dtype]}",
            [to_panels(x, held), values, None, None, None, None, None, y, columns],
            *(numbers, 1, linear_scratch(40, 2, False)),
        )
        weight = dense_weight(values, columns, 8, 40)[:, :20]
        assert_close(y, x[:, :20].double() @ weight.double().T, F32, 40)


def test_packed_form():
    """Groups at the ends of rows and columns are part empty."""
    form = GroupForm(4, 2)
    w = torch.arange(1.0, 31).reshape(6, 5)
    every = largest(form.scores(w), 3)
    assert form.counts(6, 5) == (2, 3) and every.tolist() == [[0, 1, 2]] * 2
    assert torch.equal(dense_weight(form.packed(w, every), every, 6, 5), w)
    columns = torch.tensor([[2], [0]], dtype=torch.int32)
    values = form.packed(w, columns)
    assert values[0, 0].tolist() == [[5, 0], [10, 0], [15, 0], [20, 0]]
    assert values[1, 0].tolist() == [[21, 22], [26, 27], [0, 0], [0, 0]]
    # the third group of the second block has the larger weights, but the first what is larger
    spread = torch.tensor([9.0, 9, 1, 1, 1])
    assert largest(form.scores(w, spread), 1).tolist() == [[0], [0]]


def test_fitted_weights_are_the_least_squares():
    torch.manual_seed(6)
    form, w = GroupForm(4, 2), torch.randn(10, 13)
    x = torch.randn(4000, 13) @ torch.randn(13, 13) + 3 * torch.randn(13)
    moments = Moments(13)
    moments.add(x)
    columns = largest(form.scores(w), 3)
    found, bias = fitted(w, columns, form, moments)
    mask = dense_weight(torch.ones(3, 3, 4, 2), columns, 10, 13)
    assert (found[mask == 0] == 0).all()

    def error(weight, bias=0.0):
        return ((x @ weight.T + bias - x @ w.T).norm() / (x @ w.T).norm()).item()

    cut = w * mask
    own = torch.cat([x[:, mask[0] > 0], torch.ones(len(x), 1)], 1).double()
    wanted = (x @ w[:4].T).double()
    best = (own @ torch.linalg.lstsq(own, wanted).solution - wanted).norm()
    first = (x @ found[:4].T + bias[:4]).double() - wanted
    assert best <= first.norm() < 1.01 * best  # damped
    assert error(found, bias) < error(cut, (w - cut) @ x.mean(0)) < error(cut)


def test_declines():
    (emitter,) = (e for e in emitters(group_sparse_linear.name) if e.kind == "cpu")
    target = Target.parse("cpu:avx512")

    def reason(values, columns, features=20, k=30, dtype=F32):
        types = [TensorType.dense((5, k), dtype), TensorType.dense(values, dtype)]
        types += [TensorType.dense(columns, torch.int32), None, None]
        return emitter.reason_against(target, types, {"features": features, "activation": "none"})

    assert reason((3, 7, 8, 1), (3, 7)) is None
    assert reason((3, 7, 8, 2), (3, 7), dtype=BF16) is None
    assert reason((3, 7, 8, 2), (3, 7)) == "groups of 8 x 2, expected 8 x 1"
    assert reason((2, 7, 16, 1), (2, 7)) == "groups of 16 x 1, expected 8 x 1"
    assert "of 28 features" in reason((3, 7, 8, 1), (3, 7), 28)
    assert "of 20 features" in reason((3, 7, 8, 1), (3, 6))
    assert reason((3, 7, 8), (3, 7)).startswith("values ")
    assert group_form(Target.parse("cuda:sm90"), BF16) == GroupForm(64, 8)
