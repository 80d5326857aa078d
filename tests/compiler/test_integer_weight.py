"""Integers for floats: matrices of groups, and rows rounded to bytes, calculated by hand."""

from __future__ import annotations

import math

import pytest
import torch

from infopt.compiler.integer_weight import (
    ROW_ROUNDINGS,
    byte_rows,
    integer_weight,
    quantize_rows,
    rounded_rows,
)


def test_every_group_has_its_factor() -> None:
    integers = torch.tensor([[1, -2, 3, 4, 5, -6], [-128, 127, 0, 1, 1, 1]], dtype=torch.int8)
    scales = torch.tensor([[0.5, 2.0], [1.0, 4.0]])
    expected = torch.tensor([[0.5, -1, 1.5, 8, 10, -12], [-128, 127, 0, 4, 4, 4]])
    found = integer_weight.reference(integers, scales)
    assert found.dtype == torch.float32 and torch.equal(found, expected)
    narrow = integer_weight.reference(integers, scales.bfloat16(), out=torch.bfloat16)
    assert torch.equal(narrow, expected.bfloat16())
    third = torch.full((2, 1), 1 / 3)  # a product is made in f32, then rounded once
    found = integer_weight.reference(integers, third, out=torch.float16)
    assert torch.equal(found, (integers.float() * third).half())


ROW = torch.tensor([[-1.0, 0.0, 0.5, 3.0]])
# rounding -> (step, zero point, codes) of ROW
BY_HAND = {
    "int8": (4 / 255, 64, [0, 64, 96, 255]),
    "int8-symmetric": (3 / 127.5, 128, [86, 128, 149, 255]),
    "int8-symmetric-reduced": (3 / 63.5, 128, [107, 128, 139, 191]),
    "int8-affine": (4 / 255, 64, [0, 64, 96, 255]),
    "int8-affine-per-token": (4 / 255, 64, [0, 64, 96, 255]),
    "int8-affine-reduced": (4 / 127, 96, [64, 96, 112, 191]),
}


@pytest.mark.parametrize("rounding", BY_HAND)
def test_rows_by_hand(rounding: str) -> None:
    """-1 is the lowest and 3 the highest; 0 is exact."""
    step, zero, codes = BY_HAND[rounding]
    found = quantize_rows(ROW, rounding)
    assert all(t.dtype == torch.float32 for t in found)
    assert found[0].tolist() == [codes] and found[2].item() == zero
    assert found[1].item() == pytest.approx(step, rel=1e-6)
    back = rounded_rows(ROW, rounding)
    assert torch.equal(back, (found[0] - found[2]) * found[1])
    assert back[0, 1] == 0 and (back - ROW).abs().max() <= step * 0.51
    assert torch.equal(byte_rows.reference(ROW, rounding=rounding), back)


def test_a_rounding_has_a_name_each() -> None:
    assert {*BY_HAND, "int8-static"} == set(ROW_ROUNDINGS)


@pytest.mark.parametrize("rounding", BY_HAND)
def test_the_range_of_a_row_contains_zero(rounding: str) -> None:
    high, low = torch.tensor([[2.0, 4.0]]), torch.tensor([[-4.0, -2.0]])
    for row in (high, low, torch.zeros(1, 2)):
        codes, steps, zeros = quantize_rows(row, rounding)
        assert codes.min() >= 0 and codes.max() <= 255 and 0 <= zeros <= 255
        expected = rounded_rows(row, rounding)
        assert torch.isfinite(expected).all() and steps >= 0
        assert (expected - row).abs().max() <= steps.item() * 0.51
    # the ends of both one-sided rows: 0 is an end
    if "symmetric" not in rounding:
        first, last = (64, 191) if "reduced" in rounding else (0, 255)
        assert quantize_rows(high, rounding)[2] == first
        assert quantize_rows(low, rounding)[2] == last


def test_the_least_step() -> None:
    """A row of next to nothing: torchao's classes stop at different steps."""
    tiny = torch.full((1, 2), 1e-30)
    eps, normal = torch.finfo(torch.float32).eps, torch.finfo(torch.float32).smallest_normal
    for rounding, least in (
        ("int8-symmetric", eps),
        ("int8-affine", eps),
        ("int8-affine-per-token", normal),
    ):
        assert quantize_rows(torch.zeros(1, 2), rounding)[1].item() == least
    assert quantize_rows(tiny, "int8-affine")[1].item() == eps
    assert quantize_rows(tiny, "int8-affine-per-token")[1].item() == pytest.approx(1e-30 / 255)
    assert rounded_rows(tiny, "int8")[0, 0] == pytest.approx(1e-30)
    assert rounded_rows(tiny * 1e-6, "int8").tolist() == [[0.0, 0.0]]  # below 1e-35


def test_steps_are_of_the_dtype_of_the_rows() -> None:
    row = ROW.bfloat16()
    for rounding in ("int8-affine", "int8-affine-per-token", "int8-symmetric"):
        step = quantize_rows(row, rounding)[1]
        assert step.dtype == torch.float32 and torch.equal(step, step.bfloat16().float())
    assert quantize_rows(row)[1].item() == pytest.approx(4 / 255, rel=1e-6)
    assert rounded_rows(row, "int8").dtype == torch.bfloat16


def test_one_step_for_all_rows() -> None:
    x = torch.tensor([[-10.0, 0.0, 0.26], [100.0, math.inf, math.nan]])
    codes, steps, zeros = quantize_rows(x, "int8-static", step=0.5, zero=10)
    assert codes.tolist() == [[0, 10, 11], [210, 255, 0]]
    assert steps.tolist() == [[0.5], [0.5]] and zeros.tolist() == [[10], [10]]
    back = byte_rows.reference(x, rounding="int8-static", step=0.5, zero=10)
    assert back.tolist() == [[-5.0, 0.0, 0.5], [100.0, 122.5, -5.0]]


def test_a_row_with_an_infinity_stands_for_nothing() -> None:
    x = torch.tensor([[1.0, math.inf], [1.0, math.nan], [1.0, 2.0]])
    found = rounded_rows(x, "int8")
    assert found[:2].isnan().all() and torch.allclose(found[2], x[2], rtol=0.01)
