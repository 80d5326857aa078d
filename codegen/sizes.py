"""Sizes as plan expressions: sympy over the dims becomes postfix code, each expression once."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from functools import lru_cache

import sympy
from torch.utils._sympy import functions as torch_sympy

from infopt.compiler.types import Size
from infopt.runtime.plan import Expression, Slot


class LoweringDeclined(Exception):
    """The graph cannot become a plan; torch runs it. The message is the reason."""


_RELATIONS = {
    sympy.Eq: "==",
    sympy.Ne: "!=",
    sympy.Lt: "<",
    sympy.Le: "<=",
    sympy.Gt: ">",
    sympy.Ge: ">=",
}
_FLOOR_DIVISIONS = tuple(
    getattr(torch_sympy, name)
    for name in ("FloorDiv", "CleanDiv", "IntTrueDiv")
    if hasattr(torch_sympy, name)
)
_REMAINDERS = tuple(
    getattr(torch_sympy, name) for name in ("Mod", "PythonMod") if hasattr(torch_sympy, name)
)


class Sizes:
    """The expression table of one plan."""

    def __init__(self, dims: Mapping[sympy.Symbol, int], hints: Mapping[sympy.Symbol, int]) -> None:
        self._dims = dims
        self._hints = {s: sympy.Integer(v) for s, v in hints.items()}
        self._slots: dict[object, Slot] = {}
        self._by_tokens: dict[Expression, Slot] = {}
        self._hint_of: dict[sympy.Expr, int] = {}
        self.expressions: list[Expression] = []

    def slot(self, value: Size | float) -> Slot:
        """The slot of a size; a float travels as its bit pattern. Raises LoweringDeclined."""
        key = (float, repr(value)) if isinstance(value, float) else value
        found = self._slots.get(key)
        if found is None:
            found = self._slots[key] = self._slot_of(self.tokens(value))
        return found

    def slots(self, values: tuple[Size, ...] | list[Size]) -> tuple[Slot, ...]:
        return tuple([self.slot(v) for v in values])

    def added(self, a: Slot, b: Slot) -> Slot:
        """The slot of the sum of two."""
        tokens = (*self.expressions[a], *self.expressions[b])
        if len(tokens) == 2 and all(isinstance(t, int) for t in tokens):
            return self._slot_of((sum(tokens),))  # type: ignore[arg-type]
        return self._slot_of((*tokens, "+"))

    def _slot_of(self, tokens: Expression) -> Slot:
        found = self._by_tokens.get(tokens)
        if found is None:
            found = self._by_tokens[tokens] = len(self.expressions)
            self.expressions.append(tokens)
        return found

    def tokens(self, value: Size | float) -> Expression:
        """Postfix code of a size."""
        if isinstance(value, float):
            return (struct.unpack("<q", struct.pack("<d", value))[0],)
        if isinstance(value, int):
            return (int(value),)
        tokens = tuple(self._postfix(value))
        if _depth(tokens) > 48:
            raise LoweringDeclined(f"the size {value} is too deep for a plan")
        return tokens

    def hint(self, value: Size) -> int:
        """The size at the values seen during tracing: for choices that are right either way."""
        if isinstance(value, int):
            return value
        known = self._hint_of.get(value)
        if known is None:
            known = self._hint_of[value] = int(value.xreplace(self._hints))
        return known

    def _postfix(self, e: sympy.Basic) -> list[int | str]:
        if e.is_Integer:
            return [int(e)]
        if e.is_Symbol:
            if e not in self._dims:
                raise LoweringDeclined(f"the size {e} cannot be read from an input")
            return [f"d{self._dims[e]}"]
        if isinstance(e, sympy.Add | sympy.Mul | sympy.Pow | sympy.Rational):
            return self._polynomial(e)
        if isinstance(e, sympy.Max | sympy.Min):
            return self._fold(e.args, "max" if isinstance(e, sympy.Max) else "min")
        name = type(e).__name__
        if name in ("Max", "Min"):
            return self._fold(e.args, name.lower())
        if isinstance(e, _FLOOR_DIVISIONS):
            return [*self._postfix(e.args[0]), *self._postfix(e.args[1]), "//"]
        if isinstance(e, _REMAINDERS):
            return [*self._postfix(e.args[0]), *self._postfix(e.args[1]), "%"]
        if name == "ModularIndexing":
            value, divisor, modulus = map(self._postfix, e.args)
            return [*value, *divisor, "//", *modulus, "%"]
        if name in ("CeilDiv", "CeilToInt", "ceiling"):
            numerator, denominator = e.args if len(e.args) == 2 else e.args[0].as_numer_denom()
            # ceil(a/b) = -((-a) // b)
            up = [0, *self._postfix(numerator), "-", *self._postfix(denominator), "//"]
            return [0, *up, "-"]
        if name in ("floor", "FloorToInt", "TruncToInt"):
            return self._polynomial(e.args[0])
        if name in ("ToFloat", "Identity"):
            return self._postfix(e.args[0])
        if name == "Where":
            return self._where(*e.args)
        if isinstance(e, sympy.Piecewise):
            return self._piecewise(e)
        for kind, symbol in _RELATIONS.items():
            if isinstance(e, kind):
                return [*self._postfix(e.args[0]), *self._postfix(e.args[1]), symbol]
        if e in (sympy.true, sympy.false):
            return [int(bool(e))]
        if isinstance(e, sympy.And | sympy.Or):
            return self._fold(e.args, "*" if isinstance(e, sympy.And) else "max")
        if isinstance(e, sympy.Not):
            return [1, *self._postfix(e.args[0]), "-"]
        raise LoweringDeclined(f"the size {e} ({name}) has no form in a plan")

    def _fold(self, terms: tuple[sympy.Basic, ...], symbol: str) -> list[int | str]:
        tokens = self._postfix(terms[0])
        for term in terms[1:]:
            tokens += [*self._postfix(term), symbol]
        return tokens

    def _polynomial(self, e: sympy.Basic) -> list[int | str]:
        """Sums, products and powers; with fractions inside, numerator // denominator."""
        numerator, denominator = e.as_numer_denom() if _has_fraction(e) else (e, sympy.S.One)
        tokens = self._whole(numerator)
        return tokens if denominator == 1 else [*tokens, *self._whole(denominator), "//"]

    def _whole(self, e: sympy.Basic) -> list[int | str]:
        if isinstance(e, sympy.Add):
            return self._fold(e.args, "+")
        if isinstance(e, sympy.Mul):
            return self._fold(e.args, "*")
        if isinstance(e, sympy.Pow):
            base, exponent = e.args
            if not (exponent.is_Integer and 0 < int(exponent) <= 16):
                raise LoweringDeclined(f"the size {e} has no form in a plan")
            return self._fold((base,) * int(exponent), "*")
        return self._postfix(e)

    def _where(self, condition: sympy.Basic, yes: sympy.Basic, no: sympy.Basic) -> list[int | str]:
        choose = self._postfix(condition)
        picked = [*choose, *self._postfix(yes), "*"]
        return [*picked, 1, *choose, "-", *self._postfix(no), "*", "+"]

    def _piecewise(self, e: sympy.Piecewise) -> list[int | str]:
        *first, (last, condition) = e.args
        if condition != sympy.true:
            raise LoweringDeclined(f"the size {e} has no value in some cases")
        for value, when in reversed(first):
            last = torch_sympy.Where(when, value, last)
        return self._postfix(last)


def _has_fraction(e: sympy.Basic) -> bool:
    if isinstance(e, sympy.Rational):
        return not e.is_Integer
    if isinstance(e, sympy.Pow):
        return bool(e.args[1].is_negative)
    return isinstance(e, sympy.Add | sympy.Mul) and any(map(_has_fraction, e.args))


def _depth(tokens: Expression) -> int:
    deepest = depth = 0
    for token in tokens:
        is_value = isinstance(token, int) or (token[0] in "ds" and token[1:].isdecimal())
        depth += 1 if is_value else -1
        deepest = max(deepest, depth)
    return deepest


def product(values: tuple[Size, ...] | list[Size]) -> Size:
    """The product of sizes."""
    whole = math.prod([v for v in values if isinstance(v, int)])
    if whole == 0:
        return 0
    result: Size = 1
    for value in values:
        if not isinstance(value, int):
            result = value if result == 1 else result * value
    return result if whole == 1 else whole * result


_same: dict[tuple[sympy.Expr, Size], bool] = {}


def same(a: Size, b: Size) -> bool:
    """True where two sizes are equal for all values of the dims."""
    if isinstance(a, int):
        if isinstance(b, int):
            return a == b
        a, b = b, a
    if a == b:
        return True
    key = (a, b)
    known = _same.get(key)
    if known is None:
        if len(_same) > 10000:
            _same.clear()
        known = _same[key] = sympy.expand(a - b) == 0
    return known


def same_stride(a: Size, b: Size) -> bool:
    """`same` for strides, where a size of 0 may count as 1: an empty tensor is never read."""
    return same(a, b) or same(_without_ones(a), _without_ones(b))


@lru_cache(10000)
def _without_ones(value: Size) -> Size:
    """The size with n for every max(1, n)."""
    if isinstance(value, int):
        return value
    return value.replace(_is_at_least_one, lambda e: next(n for n in e.args if n != 1))


def _is_at_least_one(e: sympy.Basic) -> bool:
    return type(e).__name__ == "Max" and len(e.args) == 2 and sympy.S.One in e.args
