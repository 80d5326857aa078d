"""The cases and inputs that certify tries a pass with."""

from __future__ import annotations

import math

import torch

from infopt.compiler.certification.certify import _other_sizes
from infopt.compiler.certification.programs import Case, Program, cases_of, inputs_for
from infopt.compiler.certification.property_test import LAYOUTS, VALUES

SUM = Program(
    lambda o, x, y: o.add(x, y),
    (("rows", "width"), ("width",)),
    name="sum",
    example={"rows": 4, "width": 6},
)
COUNTS = {"rows": 2, "width": 3}


def test_fixed_cases_come_first() -> None:
    cases = list(cases_of(SUM, draws=0, seed=10, sizes=(9,), special=True))
    assert {c.layouts for c in cases} == {("dense", "dense")}
    dtypes = [c.dtype for c in cases[: len(SUM.drawn)]]
    assert dtypes == list(SUM.drawn)
    told = [(c.sizes, c.values, c.seed, c.dynamic) for c in cases[len(SUM.drawn) :]]
    distinct = cases[len(SUM.drawn)].sizes
    assert distinct["rows"] != distinct["width"] and 1 not in distinct.values()
    assert told == [
        (distinct, "normal", 17, ()),
        ({"rows": 3, "width": 3}, "normal", 13, ()),
        ({"rows": 1, "width": 1}, "normal", 11, ()),
        ({"rows": 9, "width": 9}, "normal", 19, ()),
        ({"rows": 4, "width": 6}, "normal", 15, ("rows", "width")),
        ({n: 8 + s for n, s in distinct.items()}, "special", 16, ()),
    ]


def test_drawn_cases_have_everything() -> None:
    fixed = len(list(cases_of(SUM, draws=0, seed=10, special=True)))
    drawn = list(cases_of(SUM, draws=400, seed=10, special=True))[fixed:]
    assert [c.seed for c in drawn] == list(range(110, 510))
    assert {c.values for c in drawn} == {*VALUES, "special"}
    assert {c.layouts for c in drawn} == {(a, b) for a in LAYOUTS for b in LAYOUTS}
    assert {c.dtype for c in drawn} == set(SUM.drawn)
    # every fourth may have open sizes
    opened = {c.dynamic for c in drawn[3::4]}
    assert opened == {(), ("rows",), ("width",), ("rows", "width")}
    assert {c.dynamic for n, c in enumerate(drawn) if n % 4 != 3} == {()}
    plain = list(cases_of(SUM, draws=400, seed=10))
    assert "special" not in {c.values for c in plain}
    assert drawn == list(cases_of(SUM, draws=400, seed=10, special=True))[fixed:]
    assert [c.sizes for c in drawn] != [
        c.sizes for c in list(cases_of(SUM, draws=400, seed=11, special=True))[fixed:]
    ]


def test_special_values_are_among_the_usual_ones() -> None:
    sizes = {"rows": 40, "width": 50}
    case = Case(sizes, torch.float32, ("dense", "dense"), "special", 3)
    found = inputs_for(SUM, case)[0]
    usual = inputs_for(SUM, Case(sizes, torch.float32, ("dense", "dense"), "normal", 3))[0]
    kept = torch.isclose(found, usual, rtol=0, atol=0)
    assert 0.7 < kept.float().mean() < 0.9
    rest = found[~kept]
    signed_zeros = rest[rest == 0]
    assert {math.inf, -math.inf} <= set(rest.tolist()) and rest.isnan().any()
    assert signed_zeros.numel() and signed_zeros.signbit().all()
    assert ((rest != 0) & (rest.abs() < torch.finfo(torch.float32).tiny)).any()
    torch.testing.assert_close(inputs_for(SUM, case)[0], found, rtol=0, atol=0, equal_nan=True)


def test_integers_are_counts() -> None:
    program = Program(SUM.build, SUM.shapes, (torch.int64, torch.bool), name="indices")
    indices, chosen = inputs_for(
        program, Case(COUNTS, torch.float32, ("dense", "dense"), "normal", 1)
    )
    assert indices.dtype is torch.int64 and (indices >= 0).all()
    assert chosen.dtype is torch.bool


def test_sizes_of_an_example_vary_where_the_program_allows_it() -> None:
    rows = torch.ones(1, 3, 5)
    family = Program.like(
        lambda o, x, y: o.reshape(o.mul(x, y), [3, y.shape[0]]), [rows, torch.ones(5)]
    )
    assert family.shapes == ((1, 3, "n5"), ("n5",)) and family.example == {"n5": 5}


def test_open_sizes_are_tried_at_other_ones() -> None:
    program = Program(lambda o, x: o.relu(x), (("n", "m"),))
    case = Case({"n": 3, "m": 5}, torch.float32, ("dense",), "normal", 0, dynamic=("n",))
    given = inputs_for(program, case)
    shapes = [[list(x.shape) for x in held] for held in _other_sizes(program, case, given)]
    assert shapes == [[[3, 5]], [[4, 5]], [[6, 5]], [[4, 5]]]
    fixed = Case(case.sizes, case.dtype, case.layouts, case.values, 0)
    assert list(_other_sizes(program, fixed, given)) == [given]
