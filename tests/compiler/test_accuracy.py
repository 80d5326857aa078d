"""Accuracy contracts: what passes, what does not, and the reasons."""

import math

import pytest
import torch

from infopt.compiler.accuracy import Bounded, Close, Error, Exact, Moved, compare


def noisy(x: torch.Tensor, steps: float) -> torch.Tensor:
    return (x.double() * (1 + steps * torch.finfo(x.dtype).eps)).to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_allows_rounding_only(dtype: torch.dtype) -> None:
    x = torch.randn(100, dtype=dtype)
    assert Exact().accepts(x, x.clone()) is None
    assert Exact().accepts(x, noisy(x, 4)) is None
    reason = Exact().accepts(x, noisy(x, 1000))
    assert reason is not None and "rounding" in reason


def test_exact_allows_another_order_of_a_long_sum() -> None:
    a, b = torch.randn(64, 3072), torch.randn(3072, 64)
    other = sum(a[:, i : i + 64] @ b[i : i + 64] for i in range(0, 3072, 64))
    assert Exact().accepts(a @ b, other) is None


def test_exact_in_bf16_sees_one_wrong_element() -> None:
    x = torch.randn(256).bfloat16()
    assert Exact().accepts(x, noisy(x, 1)) is None
    y = x.clone()
    y[17] += 1
    assert Exact().accepts(x, y) is not None


def test_exact_refuses_the_tanh_form_of_gelu() -> None:
    x = torch.randn(1000)
    gelu = torch.nn.functional.gelu
    assert Exact().accepts(gelu(x), gelu(x, approximate="tanh")) is not None
    assert Close(5e-3, 5e-3).accepts(gelu(x), gelu(x, approximate="tanh")) is None


def test_a_float64_reference_excuses_what_is_not_worse() -> None:
    exact = torch.randn(2000, dtype=torch.float64)
    expected = (exact + 1e-4 * torch.randn(2000)).float()
    actual = (exact + 1e-4 * torch.randn(2000)).float()
    assert Exact().accepts(expected, actual) is not None
    assert Exact().accepts(expected, actual, exact) is None
    assert Exact().accepts(expected, actual + 1e-3, exact) is not None


def test_integers_and_bools_are_equal_or_wrong() -> None:
    x = torch.arange(10)
    assert Exact().accepts(x, x.clone()) is None
    assert "1 of 10" in str(Exact().accepts(x, x.clone().index_fill(0, torch.tensor([3]), 7)))
    assert Exact().accepts(x > 5, x > 4) is not None


@pytest.mark.parametrize("contract", [Exact(), Close(1.0, 1.0), Bounded("max_abs", 1e9)])
def test_nan_infinities_shape_and_dtype_must_agree(contract) -> None:
    x = torch.tensor([1.0, math.nan, math.inf, -math.inf])
    assert contract.accepts(x, x.clone()) is None
    for wrong in (torch.tensor([math.nan, 1.0, math.inf, -math.inf]), x.abs(), torch.zeros(4)):
        assert "in other places" in str(contract.accepts(x, wrong))
    assert "shape" in str(contract.accepts(x, x[:2]))
    assert "dtype" in str(contract.accepts(x, x.double()))


def test_empty_and_zero_tensors() -> None:
    assert Exact().accepts(torch.zeros(0, 3), torch.zeros(0, 3)) is None
    assert Exact().accepts(torch.zeros(5), torch.zeros(5)) is None
    assert Exact().accepts(torch.zeros(5), torch.full((5,), 1e-3)) is not None
    assert compare(torch.zeros(0), torch.zeros(0)) == Error()


def test_compare_measures() -> None:
    e = torch.tensor([3.0, 4.0])
    error = compare(e, torch.tensor([3.0, 4.5]))
    assert error.max_abs == 0.5 and error.max_rel == 0.125
    assert error.rms_rel == pytest.approx(0.1) and 0 < error.cosine < 0.01
    assert compare(e, e) == Error() and Exact().describe(e, e) == ""
    assert "0.5" in Exact().describe(e, torch.tensor([3.0, 4.5]))


def test_bounded() -> None:
    e = torch.randn(50)
    assert Bounded("rms_rel", 0.02).accepts(e, e * 1.01) is None
    assert Bounded("rms_rel", 0.001).accepts(e, e * 1.01) == "rms_rel is 0.01, the limit is 0.001"
    with pytest.raises(ValueError, match="cosine"):
        Bounded("psnr", 1.0)


STEPS = {torch.float32: (64, 16), torch.float64: (64, 16), torch.bfloat16: (8, 2)}
STEPS[torch.float16] = STEPS[torch.bfloat16]


@pytest.mark.parametrize("dtype", STEPS)
def test_where_exact_ends(dtype: torch.dtype) -> None:
    """On ones (R = 1): one element may be off by 2 a eps, all together by b eps."""
    largest, typical = STEPS[dtype]
    eps, ones = torch.finfo(dtype).eps, torch.ones(40_000, dtype=dtype)
    for steps, fits in ((2 * largest, True), (2 * largest + 1, False)):
        one = ones.clone()
        one[7] += steps * eps
        assert (Exact().accepts(ones, one) is None) == fits, steps
    for steps, fits in ((typical, True), (typical + 1, False)):
        assert (Exact().accepts(ones, ones + steps * eps) is None) == fits, steps


def test_denormal_differences_of_zeros_are_none() -> None:
    zeros, tiny = torch.zeros(4), torch.finfo(torch.float32).tiny
    assert Exact().accepts(zeros, zeros + tiny / 2) is None
    assert Exact().accepts(zeros, zeros + 4 * tiny) is not None


@pytest.mark.parametrize(
    "value, name", [(math.nan, "NaN"), (math.inf, "[+]inf"), (-math.inf, "-inf")]
)
def test_special_values_in_other_places_are_named(value: float, name: str) -> None:
    x = torch.tensor([1.0, 2.0, value])
    assert Exact().accepts(x, x.clone()) is None
    for contract in (Exact(), Close(1.0, 1.0), Bounded("max_abs", 9.0)):
        reason = contract.accepts(x, torch.tensor([1.0, 2.0, 3.0]))
        with pytest.raises(AssertionError, match=rf"^{name} in other places: at \(2,\) 3.0, exp"):
            raise AssertionError(reason)
    assert compare(x, x).max_abs == 0.0


def test_measures_of_a_difference() -> None:
    expected, actual = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 5.0])
    error = compare(expected, actual)
    assert error.max_abs == 1.0 and error.max_rel == 0.25 and error.pattern == ""
    assert error.rms_rel == pytest.approx(math.sqrt(0.5) / math.sqrt(12.5))
    assert error.cosine == pytest.approx(1 - 29 / (5 * math.sqrt(34)))
    nothing, something = torch.zeros(2), torch.ones(2)
    assert compare(nothing, nothing) == Error()
    error = compare(nothing, something)
    assert error.max_rel == error.rms_rel == math.inf and error.cosine == 1.0
    assert compare(torch.zeros(0), torch.zeros(0)) == Error()
    assert str(error) == "max 1, rms inf of the result's"


@pytest.mark.parametrize("dtype, count, factor", [
    (torch.float32, 4000, 2), (torch.float32, 999, 3), (torch.bfloat16, 4000, 3),
])  # fmt: skip
def test_how_much_worse_than_a_float64_run(dtype: torch.dtype, count: int, factor: int) -> None:
    exact = torch.ones(count, dtype=torch.float64)
    off = 0.25  # a step that every dtype has
    expected = (exact + off).to(dtype)
    for times, fits in ((factor, True), (factor + 0.25, False)):
        actual = (exact - off * times).to(dtype)
        assert (Exact().accepts(expected, actual, exact) is None) == fits
    assert Exact().accepts(expected, expected - 1, exact[:-1]) is not None


def test_a_difference_in_pattern_is_told_as_such() -> None:
    x = torch.ones(3)
    for other in (x[:2], x.double(), torch.tensor([1.0, 1.0, math.nan])):
        error = compare(x, other)
        assert str(error) == error.pattern != ""
        assert error.max_abs == error.max_rel == error.rms_rel == error.cosine == math.inf
        assert Exact().describe(x, other) == error.pattern
    assert str(compare(x, x[:2])) == "shape (2,), expected (3,)"
    assert str(compare(x, x.long())) == "dtype torch.int64, expected torch.float32"


def test_how_far_a_result_moved() -> None:
    result = torch.tensor([1.0, 2.0, math.inf, math.nan])
    others = [result + torch.tensor([0.5, 0.0, 0.0, 0.0]), result - torch.tensor([0.0, 1.5, 0, 0])]
    found = Moved.between(result, others)
    assert found.largest == 1.5 and found.rms == pytest.approx(math.sqrt((0.25 + 2.25) / 4))
    once = result.clone()
    once[0] = math.inf  # a place counts where it is finite in all of them
    assert Moved.between(result, [others[0], once]) == Moved(0.0, 0.0)
    assert Moved.between(torch.zeros(0), [torch.zeros(0)]) == Moved()


def test_what_is_all_cancellation_may_be_off_by_how_far_it_moves() -> None:
    """Four times that, for the largest difference and for the whole."""
    zeros, one = torch.zeros(100), torch.zeros(100)
    one[3] = 1e-3
    for moved, fits in (
        (Moved(0.2501e-3, 1.0), True), (Moved(0.2499e-3, 1.0), False),
        (Moved(1.0, 0.2501e-4), True), (Moved(1.0, 0.2499e-4), False),
    ):  # fmt: skip
        assert (Exact().accepts(zeros, one, moved=moved) is None) == fits, moved


def test_close_is_relative_and_absolute() -> None:
    e = torch.tensor([0.0, 100.0], dtype=torch.float64)
    contract = Close(rtol=0.01, atol=0.5)
    for difference, wrong in (([0.5, 0.0], 0), ([0.51, 0.0], 1), ([0.0, 1.5], 0), ([1.0, -1.6], 2)):
        reason = contract.accepts(e, e + torch.tensor(difference))
        assert reason is None if not wrong else reason.startswith(f"{wrong} of 2 elements outside")
    same = torch.tensor([math.nan, math.inf])
    assert contract.accepts(same, same.clone()) is None


@pytest.mark.parametrize("metric", ["max_abs", "max_rel", "rms_rel", "cosine"])
def test_a_bound_is_of_one_metric(metric: str) -> None:
    e, a = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 5.0])
    found = getattr(compare(e, a), metric)
    assert Bounded(metric, found).accepts(e, a) is None
    assert f"{metric} is " in str(Bounded(metric, found * 0.999).accepts(e, a))


def test_reasons_say_how_many_times_too_far() -> None:
    ones = torch.ones(10_000)
    one = ones.clone()
    one[0] += 1280 * torch.finfo(torch.float32).eps  # 10 times 2 * 64 steps
    assert "10 times what rounding explains in torch.float32" in str(Exact().accepts(ones, one))
    all_off = ones + 64 * torch.finfo(torch.float32).eps  # 4 times 16 steps
    assert "4 times what rounding explains" in str(Exact().accepts(ones, all_off))
