"""Pointwise regions: torch's values bit by bit, for every dtype, layout and size."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from infopt.codegen.build import find_compiler
from infopt.codegen.load import program
from infopt.runtime.plan import NativeStep
from tests.codegen.traced import bits_equal, check, compare, graph_of, lowered, program_of, ulps

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
SPECIAL = (
    0.0,
    -0.0,
    float("nan"),
    float("inf"),
    -float("inf"),
    1.0,
    -1.0,
    0.5,
    -0.5,
    1.5,
    2.5,
    -2.5,
    1e-3,
    -7.25,
    100.0,
)

EXACT = {
    "add": lambda a, b: a + b,
    "add number": lambda a, b: a + 1.3,
    "add int": lambda a, b: a + 3,
    "sub": lambda a, b: a - b,
    "sub alpha": lambda a, b: torch.sub(a, b, alpha=2),
    "rsub": lambda a, b: 2 - a,
    "mul": lambda a, b: a * b,
    "mul number": lambda a, b: a * 0.1,
    "mul int": lambda a, b: a * 7,
    "div": lambda a, b: a / b,
    "div number": lambda a, b: a / 3.7,
    "neg": lambda a, b: -a,
    "abs": lambda a, b: a.abs(),
    "sign": lambda a, b: a.sign(),
    "square": lambda a, b: a.square(),
    "reciprocal": lambda a, b: a.reciprocal(),
    "relu": lambda a, b: a.relu(),
    "leaky_relu": lambda a, b: F.leaky_relu(a, 0.1),
    "hardtanh": lambda a, b: F.hardtanh(a),
    "hardswish": lambda a, b: F.hardswish(a),
    "hardsigmoid": lambda a, b: F.hardsigmoid(a),
    "floor": lambda a, b: a.floor(),
    "ceil": lambda a, b: a.ceil(),
    "trunc": lambda a, b: a.trunc(),
    "round": lambda a, b: a.round(),
    "pow 2": lambda a, b: a**2,
    "pow 3": lambda a, b: a**3,
    "pow -1": lambda a, b: a**-1,
    "pow 0": lambda a, b: a**0,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "ge": lambda a, b: a >= b,
    "eq number": lambda a, b: a == 1,
    "lt number": lambda a, b: a < 0.5,
    "logical_and": lambda a, b: torch.logical_and(a, b),
    "logical_not": lambda a, b: torch.logical_not(a),
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "not": lambda a, b: ~a,
    "and number": lambda a, b: a & 3,
    "isnan": lambda a, b: a.isnan(),
    "isinf": lambda a, b: a.isinf(),
    "where": lambda a, b: torch.where(a > b, a, b),
    "where number": lambda a, b: torch.where(a > b, a, 0.1),
    "masked_fill": lambda a, b: a.masked_fill(b > 0, -3.3),
    "minimum": lambda a, b: torch.minimum(a, b),
    "maximum": lambda a, b: torch.maximum(a, b),
    "clamp": lambda a, b: a.clamp(-1, 1),
    "clamp min": lambda a, b: a.clamp(min=-1.3),
    "clamp tensors": lambda a, b: torch.clamp(a, b, b + 1),
    "floor_divide": lambda a, b: a // 3,
    "floor_divide negative": lambda a, b: a // -3,
    "remainder": lambda a, b: a % 5,
    "remainder negative": lambda a, b: a % -5,
    "fmod": lambda a, b: torch.fmod(a, 5),
    "floor_divide tensor": lambda a, b: torch.floor_divide(a, b),
    "remainder tensor": lambda a, b: torch.remainder(a, b),
    "addcmul": lambda a, b: torch.addcmul(a, a, b, value=0.3),
}
# Within two rounding steps of torch, or this close where cancellation leaves no meaningful steps.
CLOSE = {
    "exp": lambda a, b: a.exp(),
    "log": lambda a, b: a.log(),
    "sqrt": lambda a, b: a.sqrt(),
    "rsqrt": lambda a, b: a.rsqrt(),
    "tanh": lambda a, b: a.tanh(),
    "erf": lambda a, b: a.erf(),
    "sigmoid": lambda a, b: a.sigmoid(),
    "silu": lambda a, b: F.silu(a),
    "gelu": lambda a, b: F.gelu(a),
    "gelu tanh": lambda a, b: F.gelu(a, approximate="tanh"),
    "sin": lambda a, b: a.sin(),
    "cos": lambda a, b: a.cos(),
    "log1p": lambda a, b: a.log1p(),
    "expm1": lambda a, b: a.expm1(),
    "pow": lambda a, b: a.abs() ** 1.7,
    "softplus": lambda a, b: F.softplus(a),
    "elu": lambda a, b: F.elu(a),
    "mish": lambda a, b: F.mish(a),
    "log_sigmoid": lambda a, b: F.logsigmoid(a),
}


def values(dtype, n=37):
    if dtype.is_floating_point:
        return torch.cat([torch.tensor(SPECIAL), torch.randn(n) * 3]).to(dtype)
    if dtype is torch.bool:
        return torch.randint(0, 2, (n + len(SPECIAL),)).bool()
    info = torch.iinfo(dtype)
    ends = torch.tensor([info.min, info.max, 0, 1, 2], dtype=dtype)
    body = torch.randint(max(info.min, -1000), min(info.max, 1000), (n + len(SPECIAL) - 5,))
    return torch.cat([ends, body.to(dtype)])


def possible(table, a, b):
    """The functions torch itself computes for these dtypes."""
    found = {}
    for name, f in table.items():
        try:
            f(a, b)
        except (RuntimeError, TypeError):
            continue
        found[name] = f
    return found


@pytest.mark.parametrize("dtype", [*FLOATS, *INTS, torch.bool], ids=str)
def test_every_dtype_bit_by_bit(dtype):
    a, b = values(dtype), values(dtype).flip(0)
    table = possible(EXACT, a, b)
    made = lowered(graph_of(lambda a, b: tuple(f(a, b) for f in table.values()), (a, b)))
    for name, found in zip(table, program(made, 2)([a, b]), strict=True):
        expected = table[name](a, b)
        assert bits_equal(found, expected), f"{name}: {found} instead of {expected}"
    assert made.report.native_nodes > 3 * made.report.aten_nodes, made.report


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_functions_within_two_steps(dtype):
    a, b = values(dtype), values(dtype).flip(0)
    made = lowered(graph_of(lambda a, b: tuple(f(a, b) for f in CLOSE.values()), (a, b)))
    for name, found in zip(CLOSE, program(made, 2)([a, b]), strict=True):
        expected = CLOSE[name](a, b)
        same = (found - expected).abs()
        near = bool((same[same.isfinite()] <= torch.finfo(dtype).eps * 8).all())
        finite = a.isfinite()  # torch's gelu of infinity is NaN
        nan = torch.equal(found[finite].isnan(), expected[finite].isnan())
        assert ulps(found, expected) <= 2 or (near and nan), (
            f"{name}: {found} instead of {expected}"
        )
    assert not made.report.aten, made.report


@pytest.mark.parametrize("source", [*FLOATS, *INTS, torch.bool], ids=str)
def test_conversions(source):
    targets = [*FLOATS, *INTS, torch.bool]
    if source.is_floating_point:
        x = torch.tensor(
            [0.0, -0.0, 1.5, -1.5, 127.9, 255.2, -3.99, 1e4, -1e4, 65519.0, 7e4, 3e9]
        ).to(source)
    else:
        x = values(source)
    check(lambda x: tuple(x.to(t) for t in targets), x)


def test_promotion():
    f, i, h = torch.randn(7), torch.randint(-5, 5, (7,)), torch.randn(7).bfloat16()
    check(
        lambda f, i, h: (f + i, i * f, h + f, i + h, i / 2, i * 0.5, h * i, i > 0.5, h < f, i == f),
        f,
        i,
        h,
    )
    z = torch.tensor(2.5, dtype=torch.float64)
    check(
        lambda f, i, z: (f * z, i * z, f + z, torch.where(f > 0, f, z), f.masked_fill(i > 0, z)),
        f,
        i,
        z,
    )


def test_broadcasting_and_views():
    x, y, z = torch.randn(3, 4, 5), torch.randn(5), torch.randn(3, 1, 5)
    check(lambda x, y, z: (x + y) * z - x.transpose(0, 1).transpose(0, 1), x, y, z)
    check(lambda x: x + x.transpose(0, 2).contiguous().transpose(0, 2), x)
    check(lambda x: (x * 2).transpose(0, 1).unsqueeze(1) + 1, x)
    check(lambda x: (x + 1) + (x + 1).flip(0), x)
    check(lambda x: (x * 3)[1:] + (x * 3)[:-1], x)
    m = torch.randn(6, 6)
    check(lambda m: (m + 1) * (m + 1).t() + (m.t() * 2), m)
    check(lambda m: (m + 1).expand(3, 6, 6) * 2, m)
    check(lambda m: (m * 2).reshape(4, 9) + 1, m)
    check(lambda m: (m * 2).t().reshape(4, 9) + 1, m)


def test_no_cycle_through_another_kernel():
    x, w = torch.randn(16, 16), torch.randn(16, 16)

    def f(x, w):
        a = x * 2
        return (a @ w) + a, a.cumsum(0) * a + 1

    check(f, x, w, close=(1e-4, 1e-4))


def test_one_region_for_a_chain_and_its_side_results():
    made = check(lambda x: (x * 2 + 1, x * 2), torch.randn(5, 6))
    assert len([s for s in made.plan.steps if isinstance(s, NativeStep)]) == 1
    assert len(made.plan.steps) == 1


def test_equal_regions_compile_once():
    def f(x, y):
        for _ in range(6):
            x = F.linear((x * 2 + 1).tanh(), y)
        return x

    made = lowered(graph_of(f, (torch.randn(5, 8), torch.randn(8, 8))))
    regions = [s for s in made.plan.steps if isinstance(s, NativeStep) and s.library == "graph"]
    assert len(regions) == 6 and len({s.kernel for s in regions}) == 1


def test_integers_and_functions_do_not_share_loops():
    x, i = torch.randn(300), torch.randint(0, 9, (300,))
    check(lambda x, i: (x.exp() * (i + 1), (i * 2).float().sigmoid()), x, i, most_ulps=3)


def test_fills_and_counts():
    x = torch.randn(4, 5)

    def f(x):
        n = torch.arange(5)
        causal = torch.arange(4).unsqueeze(1) >= n
        return (
            x.masked_fill(~causal, -1),
            n,
            torch.full((2, 3), 7),
            torch.zeros_like(x) + n,
            torch.arange(2, 9, 3),
        )

    check(f, x)
    g = lambda x: x + torch.arange(x.shape[1], dtype=torch.float32) * x.shape[0]  # noqa: E731
    made = program_of(g, (x,), dynamic=True)
    for shape in ((2, 3), (7, 33), (300, 5)):
        compare(made, g, (torch.randn(shape),))


def test_sizes_as_numbers():
    made = program_of(lambda x: x * x.shape[0] + x.shape[1], (torch.randn(4, 5),), dynamic=True)
    compare(made, lambda x: x * x.shape[0] + x.shape[1], (torch.randn(9, 2),))


def test_many_sizes_of_one_program():
    def f(x, y):
        return (x + y).relu() * 2, (x * y).transpose(0, 1) + 1

    made = program_of(f, (torch.randn(5, 6, 7), torch.randn(6, 7)), dynamic=True)
    for a, b, c in ((2, 3, 4), (9, 6, 7), (5, 2, 3), (3, 200, 100)):
        compare(made, f, (torch.randn(a, b, c), torch.randn(b, c)))


dims = st.lists(st.integers(0, 5), min_size=0, max_size=4)


@settings(max_examples=25)
@given(dims, st.data())
def test_any_layout(shape, data):
    def tensor(dtype):
        here = [n if data.draw(st.integers(0, 3)) else 1 for n in shape]
        here = here[data.draw(st.integers(0, len(here))) :]
        steps = [data.draw(st.integers(1, 2)) for _ in here]
        order = data.draw(st.permutations(range(len(here))))
        big = torch.randn([here[d] * steps[d] for d in order]).mul(4).to(dtype)
        inverse = [order.index(d) for d in range(len(order))]
        x = big.permute(inverse)
        return x[tuple(slice(None, None, s) for s in steps)] if here else x

    a, b = (
        tensor(torch.float32),
        tensor(data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.int64]))),
    )
    try:
        a + b
    except RuntimeError:
        return
    check(lambda a, b: ((a + b) * 2, (a * 1.5).unsqueeze(0), b + 1), a, b)
