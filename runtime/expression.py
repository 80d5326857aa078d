"""Size expressions: their code for the native executor, and their evaluation without one."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

from infopt.runtime.errors import SizeError
from infopt.runtime.plan import Expression

_CONST, _DIM, _SLOT = 0, 1, 2
# In the order of `enum Op` in csrc/sizes.h, from 3.
_OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
    "max": max,
    "min": min,
    "==": lambda a, b: int(a == b),
    "!=": lambda a, b: int(a != b),
    "<": lambda a, b: int(a < b),
    "<=": lambda a, b: int(a <= b),
    ">": lambda a, b: int(a > b),
    ">=": lambda a, b: int(a >= b),
}
_CODES = {name: code for code, name in enumerate(_OPERATORS, start=3)}


def encode(expressions: Sequence[Expression]) -> tuple[list[int], list[int]]:
    """The words of all expressions, and where each begins (one more at the end)."""
    words: list[int] = []
    starts = [0]
    for tokens in expressions:
        for token in tokens:
            if isinstance(token, int):
                words += (_CONST, token)
            elif token in _CODES:
                words.append(_CODES[token])
            else:
                words += (_DIM if token[0] == "d" else _SLOT, int(token[1:]))
        starts.append(len(words))
    return words, starts


def evaluate(expressions: Sequence[Expression], dims: Sequence[int]) -> list[int]:
    """The value of every slot. Raises SizeError naming the expression that cannot be evaluated."""
    slots: list[int] = []
    for tokens in expressions:
        stack: list[int] = []
        for token in tokens:
            if isinstance(token, int):
                stack.append(token)
            elif token in _OPERATORS:
                b, a = stack.pop(), stack.pop()
                if b == 0 and token in ("//", "%"):
                    raise SizeError(failure(tokens, dims))
                stack.append(_OPERATORS[token](a, b))
                if not -(2**63) <= stack[-1] < 2**63:
                    raise SizeError(failure(tokens, dims))
            else:
                stack.append((dims if token[0] == "d" else slots)[int(token[1:])])
        slots.append(stack[0])
    return slots


def failure(tokens: Expression, dims: Sequence[int]) -> str:
    """What to say of an expression that divides by zero, overflows, or is a negative size."""
    return (
        f"the size {' '.join(map(str, tokens))} divides by zero, leaves 64 bits or is "
        f"negative for the dims {list(dims)}"
    )
