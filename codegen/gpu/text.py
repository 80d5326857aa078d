"""Pieces of Triton text that several kernels share, and how a launch is written down."""

from __future__ import annotations

from infopt.codegen.launch import Argument, Launch, Work
from infopt.compiler.types import Size

HEADER = """\
import triton
import triton.language as tl
"""

TANH = '''

@triton.jit
def tanh(x):
    """By its series near 0, where the quotient of exponentials has no digits left."""
    square = x * x
    series = 1.0 + square * (-1.0 / 3 + square * (2.0 / 15 + square * (-17.0 / 315
        + square * (62.0 / 2835))))
    small = tl.exp(-2.0 * tl.abs(x))
    far = tl.where(x < 0, small - 1.0, 1.0 - small) / (1.0 + small)
    return tl.where(tl.abs(x) < 0.25, x * series, far)
'''

ACTIVATE = (
    TANH
    + '''

@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """An activation function of f32 values; NaN stays NaN."""
    if ACTIVATION == "relu":
        x = tl.where(x < 0, 0.0, x)
    elif ACTIVATION == "gelu":
        x = 0.5 * x * (1.0 + tl.math.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        x = x * sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif ACTIVATION == "silu":
        x = x * sigmoid(x)
    elif ACTIVATION == "quick_gelu":
        x = x * sigmoid(1.702 * x)
    elif ACTIVATION == "sigmoid":
        x = sigmoid(x)
    elif ACTIVATION == "tanh":
        x = tanh(x)
    elif ACTIVATION == "relu6":
        x = tl.where(x < 0, 0.0, tl.where(x > 6, 6.0, x))
    elif ACTIVATION == "hardswish":
        x = x * tl.where(x < -3, 0.0, tl.where(x > 3, 6.0, x + 3.0)) / 6
    return x
'''
)


def launch(
    source: str,
    entry: str,
    *,
    grid: tuple[Size, ...],
    warps: int = 4,
    stages: int = 3,
    exact: bool = False,
    work: Work | None = None,
    descriptors: int = 0,
    **named: Argument | str | bool | None,
) -> Launch:
    """A launch with every parameter of the function by name, in the function's order.

    Names in capitals and absent tensors are constants.
    """
    constants = {k: v for k, v in named.items() if v is None or k.isupper()}
    return Launch(
        source,
        entry,
        tuple(v for k, v in named.items() if k not in constants),  # type: ignore[misc]
        constants,  # type: ignore[arg-type]
        grid,
        warps,
        stages,
        exact,
        work,
        descriptors,
    )
