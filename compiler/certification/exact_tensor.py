"""A tensor whose elements are known modulo two primes: references run on it without rounding.

Beside its residues an element has a real value, which decides what a field cannot: comparisons,
maxima, indices, what is infinite. Both sides of a rewrite decide alike, so a difference of residues
is a difference of programs. Functions without an algebraic law (tanh, erf, sin ..) are random
functions of their arguments.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map

from infopt.compiler.certification.residue import (
    HUGE,
    P,
    Q,
    mixed,
    number,
    numbers,
)

aten = torch.ops.aten
Rule = Callable[..., Any]
RULES: dict[Any, Rule] = {}  # aten op -> what it does to residues; exact_*.py declare them
WHOLE: dict[str, Rule] = {}  # functions that torch takes apart, with writes in place, before a rule


class NotExact(Exception):
    """An op without a meaning over exact arithmetic here. The message names it."""


class Residue(torch.Tensor):
    """value: float64; p, q: int64 modulo P and Q; q is None behind exp, which takes one away."""

    value: torch.Tensor
    p: torch.Tensor
    q: torch.Tensor | None

    @staticmethod
    def __new__(
        cls, real: torch.Tensor, p: torch.Tensor, q: torch.Tensor | None, dtype: torch.dtype
    ) -> Residue:
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, real.shape, strides=real.stride(), dtype=dtype, device=real.device
        )
        special = ~torch.isfinite(real) | (real.abs() > HUGE)
        if bool(special.any()):  # infinities and NaN are one value each, however they came about
            codes = torch.where(special, real, 0.0)
            p = torch.where(special, numbers(codes, P), p)
            q = None if q is None else torch.where(special, numbers(codes, Q), q)
        made.value, made.p, made.q = real, p, q
        return made

    @classmethod
    def of(cls, value: torch.Tensor) -> Residue:
        """The numbers of a plain tensor."""
        real = value.to(torch.float64)
        return cls(real, numbers(value, P), numbers(value, Q), value.dtype)

    @classmethod
    def random(cls, real: torch.Tensor, seed: int) -> Residue:
        """Independent random residues beside these real values."""
        places = torch.arange(real.numel(), dtype=torch.int64).reshape(real.shape)
        p, q = mixed(seed, places) % P, mixed(seed + 1, places) % Q
        wide = real.to(torch.float64)
        # the strides of the values are those of the program's inputs
        held = [torch.empty_like(wide, dtype=torch.int64).copy_(v) for v in (p, q)]
        return cls(wide, held[0], held[1], real.dtype)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Residue({self.p.tolist()})"

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        given = kwargs or {}
        whole = WHOLE.get(getattr(func, "__name__", "").partition(".")[0])
        if whole is not None:
            return whole(*args, **given)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **given)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        given = kwargs or {}
        rule = RULES.get(func.overloadpacket)
        if rule is not None:
            return rule(func, *args, **given)
        if func._schema.is_mutable:
            raise NotExact(f"{func} writes in place")
        like = like_of(func, args, given)
        floats = [t for t in tree_flatten(like)[0] if is_float(t)]
        if not floats:  # decided by the real values
            return func(*tree_map(real_of, args), **real_keywords(given))
        if torch.Tag.pointwise in func.tags and isinstance(like, torch.Tensor):
            return uninterpreted(func, like.dtype, args, given)
        raise NotExact(f"{func}")


def lifted(value: Any) -> Residue:
    """A number, a plain tensor or a Residue as a Residue."""
    if isinstance(value, Residue):
        return value
    if isinstance(value, torch.Tensor):
        return Residue.of(value)
    return Residue.of(torch.tensor(value, dtype=torch.float64))


def declared(*names: str) -> Callable[[Rule], Rule]:
    def declare(function: Rule) -> Rule:
        RULES.update({getattr(aten, n): function for n in names})
        return function

    return declare


def is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def like_of(func: Any, args: tuple, given: dict) -> Any:
    """What the op gives for tensors of these types, without values."""

    def bare(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")

    keywords = {k: v for k, v in tree_map(bare, given).items() if k != "device"}
    try:
        return func(*tree_map(bare, args), **keywords)
    except Exception as error:
        raise NotExact(f"{func}: {error}") from error


def dtype_of(func: Any, args: tuple, given: dict) -> torch.dtype:
    held = [a for a in args if isinstance(a, torch.Tensor)]
    kinds = {a.dtype for a in held if a.dim()}
    if len(kinds) == 1 and all(a.dtype in kinds for a in held) and is_float(held[0]):
        return kinds.pop()
    like = like_of(func, args, given)
    return like.dtype if isinstance(like, torch.Tensor) else like[0].dtype


def real_of(value: Any) -> Any:
    if isinstance(value, Residue):
        return value.value
    return value.to(torch.float64) if is_float(value) else value


def real_keywords(given: dict) -> dict:
    floats = (torch.float16, torch.bfloat16, torch.float32)
    held = tree_map(real_of, given)
    return {k: torch.float64 if v in floats else v for k, v in held.items()}


def uninterpreted(func: Any, dtype: torch.dtype, args: tuple, given: dict) -> Residue:
    """A random function of the arguments' residues, one per op and its other arguments."""
    real = func(*tree_map(real_of, args), **real_keywords(given))
    flat = tree_flatten((args, given))[0]
    tensors = [lifted(a).p for a in flat if isinstance(a, torch.Tensor)]
    rest = [a for a in flat if not isinstance(a, torch.Tensor | torch.dtype)]
    numbers_ = [number(float(a), P) if isinstance(a, int | float) else a for a in rest]
    seed = zlib.crc32(f"{func.overloadpacket} {numbers_}".encode())
    shaped = [t.expand(real.shape) for t in tensors]
    made = mixed(seed, *shaped)
    return Residue(real, made % P, mixed(seed + 1, *shaped) % Q, dtype)
