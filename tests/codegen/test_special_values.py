"""NaN, infinities, signed zeros and denormals at every instruction-set level.

A result must be NaN, infinite or a zero of some sign where torch's is: either as torch computes
in the dtype, or in f64 rounded to it. (torch's own answer in the dtype may depend on the size:
gelu(inf) is inf for one f32 and NaN for eight.)
"""

import math

import pytest
import torch
import torch.nn.functional as F

import infopt
from infopt.compiler.target import LEVELS, Target

RUNNABLE = [level for level in LEVELS if level in Target.detect().features and level != "amx"]
INF, NAN = math.inf, math.nan
VALUES = [0.0, -0.0, 1.0, -1.0, INF, -INF, NAN, -NAN, 1e-38, -1e-38, 1e-40, -1e-40, 1e-45, 3e38]
VALUES += [-3e38, 88.7, 89.0, -104.0, -87.5, 2.5, 1e-20, -4.0, 6.0, -6.0, 1e10, -1e10, 2e19]

POINTWISE = {
    "gelu": lambda x: F.gelu(x),
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "sigmoid": lambda x: torch.sigmoid(x),
    "tanh": lambda x: torch.tanh(x),
    "exp": lambda x: torch.exp(x),
    "log": lambda x: torch.log(x),
    "erf": lambda x: torch.erf(x),
    "relu": F.relu,
    "sqrt": lambda x: torch.sqrt(x),
    "rsqrt": lambda x: torch.rsqrt(x),
    "double": lambda x: x + x,
    "half": lambda x: x * 0.5,
    "negative": lambda x: -x,
    "abs": lambda x: x.abs(),
    "reciprocal": lambda x: 1 / x,
    "square": lambda x: x**2,
    "clamp": lambda x: x.clamp(-1, 1),
    "where": lambda x: torch.where(x > 0, x, -x),
    "sin": lambda x: torch.sin(x),
    "log1p": lambda x: torch.log1p(x),
    "expm1": lambda x: torch.expm1(x),
    "hardswish": F.hardswish,
    "softplus": F.softplus,
}
ROWS = {
    "softmax": lambda x: torch.softmax(x, -1),
    "log_softmax": lambda x: torch.log_softmax(x, -1),
    "amax": lambda x: x.amax(-1),
    "amin": lambda x: x.amin(-1),
    "sum": lambda x: x.sum(-1),
    "mean": lambda x: x.mean(-1),
    "layer_norm": lambda x: F.layer_norm(x, x.shape[-1:]),
}


def classes(x: torch.Tensor, signs: bool = True) -> torch.Tensor:
    zero, negative = x == 0, torch.signbit(x) & signs
    kinds = [x.isnan(), x == INF, x == -INF, zero & ~negative, zero & negative]
    return sum((i + 1) * kind.int() for i, kind in enumerate(kinds))


def differing(functions: dict, x: torch.Tensor, level: str) -> dict[str, list]:
    """By function: the inputs or rows whose result is of another class than torch's."""

    def everything(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(f(x) for f in functions.values())

    compiled = infopt.compile(everything, (x,), target=f"cpu:{level}")
    assert not compiled.report.declined and not compiled.report.fallbacks
    wrong = {}
    for (name, function), found in zip(functions.items(), compiled(x), strict=True):
        likely = (function(x.clone()), function(x.double()).to(x.dtype))
        signs = functions is POINTWISE  # a sum of zeros has a sign that its order decides
        bad = torch.stack([classes(found, signs) != classes(y, signs) for y in likely]).all(0)
        if bad.any():
            at = bad.nonzero()[:5].tolist()
            wrong[name] = [(i, found[tuple(i)].item(), likely[0][tuple(i)].item()) for i in at]
    return wrong


def rows(dtype: torch.dtype) -> torch.Tensor:
    n = len(VALUES)
    special = [torch.tensor(VALUES)]
    for value in (INF, -INF, NAN):
        special.append(torch.tensor([1.0] * (n - 8) + [value] + [0.0] * 7))
        special.append(torch.full((n,), value))
    special += [torch.full((n,), 1e-40), torch.arange(n) * 1e-39, -torch.zeros(n)]
    return torch.stack(special).to(dtype)


OWN = Target.detect().level
CELLS = [
    pytest.param(level, dtype, marks=[] if level == OWN else pytest.mark.slow)
    for level in RUNNABLE
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
]


@pytest.mark.parametrize(("level", "dtype"), CELLS)
def test_pointwise(level: str, dtype: torch.dtype) -> None:
    assert differing(POINTWISE, torch.tensor(VALUES * 3).to(dtype), level) == {}


@pytest.mark.parametrize(("level", "dtype"), CELLS)
def test_rows(level: str, dtype: torch.dtype) -> None:
    assert differing(ROWS, rows(dtype), level) == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("level", RUNNABLE)
def test_a_linear_layer_keeps_rows_apart(level: str, dtype: torch.dtype) -> None:
    """Sixteen rows share a panel: what is not finite in one must not reach the others."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(40, 24).to(dtype)
    for count in (5, 20):
        x = torch.randn(count, 40).to(dtype)
        clean = infopt.compile(layer, (x,), target=f"cpu:{level}")
        expected = clean(x)
        for value in (INF, -INF, NAN):
            poisoned = x.clone()
            poisoned[2, 7] = value
            found = clean(poisoned)
            others = [i for i in range(count) if i != 2]
            assert torch.equal(found[others], expected[others])
            assert torch.equal(classes(found[2]), classes(layer(poisoned)[2]))


@pytest.mark.parametrize("level", RUNNABLE)
def test_denormals_of_bf16_are_stored(level: str) -> None:
    """Also where the processor's conversion to bf16 would take them for zero."""
    x = torch.arange(1, 100).to(torch.int16).view(torch.bfloat16)  # the smallest there are
    assert (x.float() > 0).all()
    compiled = infopt.compile(lambda x: (x * 1.0, x + x), (x,), target=f"cpu:{level}")
    once, twice = compiled(x)
    assert torch.equal(once.view(torch.int16), x.view(torch.int16))
    assert torch.equal(twice.view(torch.int16), (x + x).view(torch.int16))


@pytest.mark.parametrize("level", RUNNABLE)
def test_remainders_of_huge_numbers_are_those_of_one_number(level: str) -> None:
    """torch's vector loop says NaN where a quotient overflows, its scalar loop the remainder."""

    def remainders(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.remainder(x, 0.75), torch.fmod(x, 0.75)

    x = torch.tensor([3e38, -3e38, 1e30, 5.0, -5.0, 1e-40, INF, NAN] * 4)
    expected = zip(*[remainders(one) for one in x.split(1)], strict=True)
    run = infopt.compile(remainders, (x,), target=f"cpu:{level}")
    for found, wanted in zip(run(x), expected, strict=True):
        torch.testing.assert_close(found, torch.cat(wanted), rtol=0, atol=0, equal_nan=True)
