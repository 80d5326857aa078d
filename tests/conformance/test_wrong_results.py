"""Public cases in which a compiled program silently differed from eager; each carries its thread.

`pt#N` is pytorch/pytorch issue N. Where dynamo itself is wrong (case 19), the case says so by
asking for what `backend="eager"` gives.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.conformance.harness import check, compare, compiled, observe

CASES: list[Any] = []


def case(number: int, thread: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def register(body: Callable[[], None]) -> Callable[[], None]:
        CASES.append(pytest.param(body, id=f"{number}-{thread}-{body.__name__}"))
        return body

    return register


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


# ---- mutation and aliasing -----------------------------------------------------------------------


@case(2, "pt#108963")
def index_add_beside_its_source() -> None:
    def fn(source):
        return torch.zeros(1).index_add(0, torch.tensor([0]), source, alpha=2) / 2, source

    check(fn, (torch.tensor([3.0]),))


@case(3, "pt#139789")
def inputs_overlap_in_the_second_call_only() -> None:
    def fn(x, y):
        x.mul_(2)
        return x + y

    base = torch.arange(8.0)
    check(fn, (torch.arange(6.0), torch.arange(6.0) + 10), (base[:6], base[2:]))


@case(4, "pt#195422")
def inplace_after_an_inactive_dropout_reaches_the_input() -> None:
    def fn(x):
        y = F.dropout(x, 0.5, training=False)
        y += y
        return y

    check(fn, (torch.arange(6.0),))


@case(5, "pt#198101")
def a_read_stays_before_the_write_to_its_base() -> None:
    def fn(x):
        y = x.view(torch.int32) * 2
        y.sub_(-4)
        x[:, 2:5] = 2
        return y.view(torch.int64)

    check(fn, (torch.arange(24, dtype=torch.int64).reshape(3, 8),))


@case(6, "pt#152425")
def write_through_an_expanded_scalar() -> None:
    def fn(x):
        a = x.expand((4,))
        a[-1] = 3
        return a

    check(fn, (torch.tensor(1.0),))


@case(7, "pt#198102")
def inplace_on_unfold_leaves_uncovered_elements() -> None:
    def fn(x):
        v = x.unfold(1, 1, 5)
        v.add_(v)
        return x

    check(fn, (torch.arange(1.0, 25.0).reshape(2, 12),))


@case(20, "pt#138908")
def augmented_assignment_with_duplicate_indices() -> None:
    def fn(y, index):
        y[index] += y[index]
        return y

    for length in (4, 7):
        check(
            fn, (torch.arange(1.0, 9.0), torch.tensor([1, 1, 3, 5, 2, 2, 0][:length])), dynamic=True
        )


@case(29, "pt#104984")
def weights_changed_in_place_between_calls() -> None:
    model = torch.nn.Sequential(
        torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.Linear(32, 8)
    ).eval()
    run, x = compiled(model), randn(4, 16)
    changes = (
        lambda p: None,
        lambda p: p.mul_(1.5),
        lambda p: p.copy_(torch.ones_like(p)),
        lambda p: setattr(p, "data", p.data * 0.25),
    )
    with torch.no_grad():
        for change in changes:
            for parameter in model.parameters():
                change(parameter)
            compare(observe(model, (x,)), observe(run, (x,)))


# ---- bits, rounding and number ranges ------------------------------------------------------------


@case(1, "pt#105264")
def uint8_wraps_before_it_is_widened() -> None:
    check(lambda x: (x + x).to(torch.int16), (torch.full((37,), 128, dtype=torch.uint8),))


@case(8, "pt#194347")
def minimum_and_maximum_of_signed_zeros() -> None:
    for size in (1, 32, 37):
        zeros = torch.full((size,), -0.0)
        for x, y in ((zeros, -zeros), (-zeros, zeros)):
            check(lambda x, y: (torch.minimum(x, y), torch.maximum(x, y)), (x, y), rule="bitwise")


@case(9, "pt#195675")
def clamp_refuses_bounds_outside_the_dtype() -> None:
    check(lambda x: torch.clamp(x, -3.4e39, 3.4e39), (randn(8),))


@case(10, "pt#189808")
def sign_bit_of_the_square_root_of_minus_one() -> None:
    check(torch.sqrt, (torch.full((32,), -1.0),), rule="bitwise")
    check(lambda x: torch.sqrt(x) + 0, (torch.full((3,), -1.0),), rule="bitwise")


@case(14, "pt#181568")
def explicit_cast_to_bfloat16_is_kept() -> None:
    def fn(x, w, b):
        return (x @ w).to(torch.bfloat16) + b

    # whole numbers make the product exact in any order; above 256 the cast rounds
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randint(-9, 10, s, generator=generator).float() for s in ((33, 64), (64, 48)))
    check(fn, (x * 3 + 1, w * 3 + 1, randn(48)))
    check(fn, (x * 3 + 1, w * 3 + 1, randn(48, dtype=torch.bfloat16)))


@case(23, "pt#113151")
def asinh_of_large_negative_numbers() -> None:
    check(torch.asinh, (torch.tensor([-1e10, -1e20, -3e38, -1e4, 1e20, -math.inf, 0.5] * 5),))


@case(24, "pt#174172")
def copysign_with_a_negative_zero_scalar() -> None:
    check(lambda x: torch.copysign(x, -0.0), (randn(37),), rule="bitwise")


@case(25, "pt#194547")
def normal_sample_keeps_the_dtype_of_loc() -> None:
    def fn(loc, scale):
        return torch.distributions.Normal(loc, scale, validate_args=False).sample()

    inputs = (torch.zeros(4, dtype=torch.float16), torch.ones(4))
    expected, actual = observe(fn, inputs), observe(compiled(fn), inputs)
    # only the stream of random numbers may differ
    assert [t.dtype for t in actual.leaves] == [t.dtype for t in expected.leaves]
    assert [t.shape for t in actual.leaves] == [t.shape for t in expected.leaves]


@case(26, "pt#185702")
def special_functions_of_a_slice_stacked_last() -> None:
    def fn(x):
        s = x[..., 16]
        return torch.stack([torch.lgamma(s), torch.erf(s), torch.xlogy(s, s)], dim=-1)

    check(fn, (randn(3, 5, 33).abs() + 0.1,))


@case(27, "pt#196681")
def reductions_over_permuted_axes_with_tails() -> None:
    def fn(x):
        p = x.permute(1, 2, 0)
        return p.sum((0, 2)), p.amax((0, 1)), p.sum((1, 2)), p.amax(2)

    for shape in ((18, 33, 34), (33, 18, 34), (34, 33, 18), (17, 16, 15)):
        check(fn, (randn(*shape),))


@case(28, "pt#191499")
def extremes_of_eight_bit_integers() -> None:
    row = torch.arange(37)
    check(lambda x: torch.amin(x, dim=-1), ((row + 100).to(torch.uint8)[None],))
    check(lambda x: torch.amax(x, dim=-1), ((-row - 20).to(torch.int8)[None],))
    check(lambda x: (x.amin(-1), x.amax(-1), x.amax()), ((-row - 20).to(torch.int16)[None],))


@case(32, "denormals")
def denormals_are_not_flushed() -> None:
    check(lambda x: x * 0.5, (torch.full((37,), 1e-40),), rule="bitwise")


@case(33, "int8 matmul")
def int8_products_accumulate_exactly() -> None:
    def fn(x, w):
        return torch._int_mm(x, w), x.int() @ w.int()

    full = torch.full((32, 4096), 127, dtype=torch.int8)
    check(fn, (full, full.T), (full, -full.T))


@case(34, "float to int")
def float_to_int32_out_of_range_as_eager() -> None:
    special = torch.tensor([3e9, -3e9, math.inf, -math.inf, math.nan, 2.5, -2.5, 0.0])
    check(lambda x: x.to(torch.int32), (special.repeat(4),), (special[:5],))


# ---- layout --------------------------------------------------------------------------------------


@case(13, "pt#174963")
def as_strided_of_a_roll_of_channels_last() -> None:
    def fn(x):
        return torch.as_strided(torch.roll(x, -1, 0), (5, 10), (4, 1))

    check(fn, (randn(2, 3, 4, 5).to(memory_format=torch.channels_last),))


@case(16, "pt#190765")
def flip_of_a_repeat_interleave_with_dynamic_sizes() -> None:
    def fn(p):
        return torch.flip(torch.repeat_interleave(torch.flatten(p + 1), 2), [0])

    check(fn, (randn(2, 2),), (randn(3, 4),), dynamic=True)


@case(21, "pt#183771")
def strides_of_nearest_interpolation_in_5d() -> None:
    def fn(x):
        return F.interpolate(x, scale_factor=2, mode="nearest")

    check(
        fn, (randn(2, 4, 5, 6, 3).permute(0, 4, 1, 2, 3),), (randn(2, 3, 4, 5, 6).transpose(2, 4),)
    )


@case(22, "pt#168381")
def layout_of_index_select_after_permute() -> None:
    def fn(x, index):
        y = torch.index_select(x.permute(1, 0, 2).unsqueeze(0), 2, index)
        return y, y + 1

    check(fn, (randn(4, 5, 6), torch.tensor([3, 1, 1])))


@case(31, "empty and single")
def empty_scalar_and_single_sizes_through_one_function() -> None:
    def fn(x):
        return torch.relu(x * 2 + 1), x.sum()

    shapes = ((0,), (1,), (0, 3), (3, 0), (1, 1), (), (1, 7), (7, 1), (2, 0, 5), (4, 4))
    check(fn, *[(randn(*shape),) for shape in shapes])
    check(fn, *[(randn(*shape),) for shape in shapes], dynamic=True)


# ---- attention -----------------------------------------------------------------------------------


@case(11, "pt#195320")
def attention_with_a_permuted_key() -> None:
    def divided(q, k, v):
        return torch.matmul(q, k.permute(0, 2, 3, 1)).div(8.0).softmax(-1).matmul(v)

    def multiplied(q, k, v):
        q, v = (x.permute(0, 2, 1, 3) for x in (q, v))
        return torch.matmul(q, k.permute(0, 2, 3, 1)).mul(0.125).softmax(-1).matmul(v)

    for batch, heads, tokens, width in ((1, 8, 8, 64), (2, 8, 8, 16), (2, 4, 8, 16)):
        head_major, token_major = (batch, heads, tokens, width), (batch, tokens, heads, width)
        k = randn(*token_major, seed=2)
        check(divided, (randn(*head_major, seed=1), k, randn(*head_major, seed=3)))
        check(multiplied, (randn(*token_major, seed=1), k, randn(*token_major, seed=3)))


@case(12, "pt#174049 pt#151098")
def attention_with_an_unusual_scale() -> None:
    def plain(q, k, v):
        return torch.softmax(q @ k.transpose(-2, -1) * (1 / 3), dim=-1) @ v

    def divided(q, k, v, mask):
        return torch.softmax(q @ k.transpose(-2, -1) / 3 + mask, dim=-1) @ v

    q, k, v = (randn(2, 4, 10, 16, seed=s) for s in (1, 2, 3))
    mask = torch.zeros(2, 1, 10, 10).masked_fill(torch.arange(10) > 6, -math.inf)
    check(plain, (q, k, v))
    check(divided, (q, k, v, mask))


def attention_block(x, w_qkv, w_out, heads):
    b, t, d = x.shape
    q, k, v = F.linear(x, w_qkv).chunk(3, -1)
    q, k, v = (y.view(b, t, heads, d // heads).transpose(1, 2) for y in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v)
    written_out = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(d // heads), -1) @ v
    return F.linear(y.transpose(1, 2).reshape(b, t, d), w_out), y, written_out


@case(35, "attention T == H")
def attention_with_as_many_tokens_as_heads() -> None:
    w_qkv, w_out = randn(3 * 96, 96, seed=1) / 8, randn(96, 96, seed=2) / 8
    for tokens in (11, 12, 13):
        check(attention_block, (randn(2, tokens, 96), w_qkv, w_out, 12))


@case(36, "attention equal sizes")
def attention_with_every_pair_of_sizes_equal() -> None:
    unequal = {"B": 2, "T": 5, "H": 3, "D": 8}
    names = list(unequal)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            sizes = unequal | {second: unequal[first]}
            width = sizes["H"] * sizes["D"]
            weights = randn(3 * width, width, seed=1) / 8, randn(width, width, seed=2) / 8
            check(attention_block, (randn(sizes["B"], sizes["T"], width), *weights, sizes["H"]))


# ---- errors, guards and tracing ------------------------------------------------------------------


@case(15, "pt#177630")
def matmul_of_different_dtypes_is_refused() -> None:
    check(torch.matmul, (randn(2, 3, 4, dtype=torch.float16), randn(2, 4, 5)))


@case(17, "pt#111952")
def index_out_of_range_is_refused() -> None:
    check(lambda x, i: x[i] * 2, (randn(5), torch.tensor([1, 7])), (randn(5), torch.tensor([-6])))


class Scaled:
    factor = 2.0


@case(18, "pt#176851")
def class_attribute_changed_between_calls() -> None:
    if torch.__version__ < "2.13":
        pytest.skip("dynamo keeps the first value, for every backend")

    def fn(x):
        return x * Scaled.factor

    run, x = compiled(fn), randn(6)
    try:
        for factor in (2.0, 3.0, 2.0):
            Scaled.factor = factor
            compare(observe(fn, (x,)), observe(run, (x,)))
    finally:
        Scaled.factor = 2.0


@case(19, "pt#196467")
def tensor_of_a_size_is_what_dynamo_makes_of_it() -> None:
    def fn(x):
        return torch.Tensor(x.size())

    # eager allocates a tensor of that shape; dynamo's graph holds the sizes as data, for every
    # backend
    x = randn(2, 3)
    by_dynamo = observe(compiled(fn, backend="eager"), (x,))
    assert by_dynamo.leaves[0].shape != observe(fn, (x,)).leaves[0].shape
    compare(by_dynamo, observe(compiled(fn), (x,)))


@case(30, "pt#100977")
def grad_mode_is_guarded() -> None:
    linear = torch.nn.Linear(4, 4)
    eager, run, x = copy.deepcopy(linear), compiled(linear), randn(2, 4)
    for grad in (False, True, False):
        with torch.set_grad_enabled(grad):
            compare(observe(eager, (x,)), observe(run, (x,)))
    eager(x).sum().backward()
    run(x).sum().backward()
    torch.testing.assert_close(linear.weight.grad, eager.weight.grad)


@pytest.mark.parametrize("body", CASES)
def test_wrong_result(body: Callable[[], None]) -> None:
    body()


def test_every_case_is_there() -> None:
    numbers = sorted(int(str(parameter.id).split("-", 1)[0]) for parameter in CASES)
    assert numbers == list(range(1, 37))
