"""A tensor whose elements are known modulo two primes: references run on it without rounding.

Beside its residues an element has a real value, which decides what a field cannot: comparisons,
maxima, indices, what is infinite. Both sides of a rewrite decide alike, so a difference of residues
is a difference of programs. Functions without an algebraic law (tanh, erf, sin ..) are random
functions of their arguments.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map

from infopt.compiler.residue import (
    HUGE,
    G,
    P,
    Q,
    bilinear,
    inverse,
    mixed,
    number,
    numbers,
    power,
)

aten = torch.ops.aten
Rule = Callable[..., Any]
RULES: dict[Any, Rule] = {}


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
        like = _like(func, args, given)
        floats = [t for t in tree_flatten(like)[0] if _is_float(t)]
        if not floats:  # decided by the real values
            return func(*tree_map(_real, args), **_real_keywords(given))
        if torch.Tag.pointwise in func.tags and isinstance(like, torch.Tensor):
            return _uninterpreted(func, like.dtype, args, given)
        raise NotExact(f"{func}")


def attention(
    q: Any, k: Any, v: Any, attn_mask: Any = None, dropout_p: float = 0.0,
    is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    """softmax(scale q kᵀ + mask) v, as torch defines it."""
    if dropout_p:
        raise NotExact("attention with dropout")
    if enable_gqa:
        times = q.shape[-3] // k.shape[-3]
        k, v = k.repeat_interleave(times, -3), v.repeat_interleave(times, -3)
    scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        scores = torch.where(attn_mask, scores, -math.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return torch.softmax(scores, -1) @ v


def lifted(value: Any) -> Residue:
    """A number, a plain tensor or a Residue as a Residue."""
    if isinstance(value, Residue):
        return value
    if isinstance(value, torch.Tensor):
        return Residue.of(value)
    return Residue.of(torch.tensor(value, dtype=torch.float64))


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def declare(function: Rule) -> Rule:
        RULES.update({getattr(aten, n): function for n in names})
        return function

    return declare


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _like(func: Any, args: tuple, given: dict) -> Any:
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


def _dtype(func: Any, args: tuple, given: dict) -> torch.dtype:
    held = [a for a in args if isinstance(a, torch.Tensor)]
    kinds = {a.dtype for a in held if a.dim()}
    if len(kinds) == 1 and all(a.dtype in kinds for a in held) and _is_float(held[0]):
        return kinds.pop()
    like = _like(func, args, given)
    return like.dtype if isinstance(like, torch.Tensor) else like[0].dtype


def _real(value: Any) -> Any:
    if isinstance(value, Residue):
        return value.value
    return value.to(torch.float64) if _is_float(value) else value


def _real_keywords(given: dict) -> dict:
    floats = (torch.float16, torch.bfloat16, torch.float32)
    held = tree_map(_real, given)
    return {k: torch.float64 if v in floats else v for k, v in held.items()}


def _uninterpreted(func: Any, dtype: torch.dtype, args: tuple, given: dict) -> Residue:
    """A random function of the arguments' residues, one per op and its other arguments."""
    real = func(*tree_map(_real, args), **_real_keywords(given))
    flat = tree_flatten((args, given))[0]
    tensors = [lifted(a).p for a in flat if isinstance(a, torch.Tensor)]
    rest = [a for a in flat if not isinstance(a, torch.Tensor | torch.dtype)]
    numbers_ = [number(float(a), P) if isinstance(a, int | float) else a for a in rest]
    seed = zlib.crc32(f"{func.overloadpacket} {numbers_}".encode())
    shaped = [t.expand(real.shape) for t in tensors]
    made = mixed(seed, *shaped)
    return Residue(real, made % P, mixed(seed + 1, *shaped) % Q, dtype)


# Moving elements: the same op on every part.

_MOVES = (
    "view _unsafe_view reshape _reshape_alias permute t transpose expand slice select squeeze "
    "unsqueeze clone alias detach cat stack split split_with_sizes unbind index index_select "
    "gather embedding flip roll repeat tril triu diagonal unfold as_strided select_scatter "
    "slice_scatter lift_fresh scatter index_put contiguous narrow chunk pixel_shuffle "
    "pixel_unshuffle im2col diag_embed _conj swapaxes movedim"
)


_VIEWS = (aten.view, aten._unsafe_view)


@_rule(*_MOVES.split())
def _moved(func: Any, *args: Any, **given: Any) -> Any:
    def lift(value: Any) -> Any:
        return lifted(value) if _is_float(value) else value

    args, given = tree_map(lift, args), tree_map(lift, given)
    held = [a for a in tree_flatten((args, given))[0] if isinstance(a, Residue)]
    known = all(r.q is not None for r in held)
    dtype = _dtype(func, args, given)

    def part(name: str) -> list[torch.Tensor]:
        def of(value: Any) -> Any:
            return getattr(value, name) if isinstance(value, Residue) else value

        # the parts may lie in memory in other ways than the tensor of the program would
        move = aten.reshape if func.overloadpacket in _VIEWS else func
        made = move(*tree_map(of, args), **tree_map(of, given))
        return list(made) if isinstance(made, list | tuple) else [made]

    reals, ps = part("value"), part("p")
    qs: Sequence[torch.Tensor | None] = part("q") if known else [None] * len(ps)
    made = [Residue(*parts, dtype) for parts in zip(reals, ps, qs, strict=True)]
    single = len(func._schema.returns) == 1 and str(func._schema.returns[0].type) == "Tensor"
    return made[0] if single else made


@_rule("_to_copy")
def _to_copy(func: Any, x: Residue, *, dtype: Any = None, **given: Any) -> Any:
    """Exact arithmetic does not round."""
    dtype = dtype or x.dtype
    if not dtype.is_floating_point:
        return func(x.value, dtype=dtype)
    return Residue(x.value, x.p, x.q, dtype)


@_rule("empty_like", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full")
def _made(func: Any, x: Residue, *args: Any, **given: Any) -> torch.Tensor:
    given.setdefault("dtype", x.dtype)
    return func(x.value, *args, **given)


def _chosen(condition: torch.Tensor, a: Any, b: Any, dtype: torch.dtype) -> Residue:
    x, y = lifted(a), lifted(b)
    q = None if x.q is None or y.q is None else torch.where(condition, x.q, y.q)
    real = torch.where(condition, x.value, y.value)
    return Residue(real, torch.where(condition, x.p, y.p), q, dtype)


@_rule("where")
def _where(func: Any, condition: Any, a: Any, b: Any) -> Any:
    return _chosen(condition, a, b, _dtype(func, (condition, a, b), {}))


@_rule("masked_fill")
def _masked_fill(func: Any, x: Any, mask: Any, value: Any) -> Any:
    return _chosen(mask, value, x, x.dtype)


@_rule("constant_pad_nd")
def _padded(func: Any, x: Residue, pad: Any, value: float = 0) -> Any:
    inside = func(torch.ones(x.shape, dtype=torch.bool), pad, False)
    q = None if x.q is None else func(x.q, pad)
    zeros = Residue(func(x.value, pad), func(x.p, pad), q, x.dtype)
    return _chosen(inside, zeros, value, x.dtype)


@_rule("relu")
def _relu(func: Any, x: Residue) -> Residue:
    return _chosen((x.value > 0) | x.value.isnan(), x, 0.0, x.dtype)


@_rule("abs")
def _abs(func: Any, x: Residue) -> Any:
    return _chosen(x.value >= 0, x, -x, x.dtype)


@_rule("maximum", "fmax")
def _maximum(func: Any, a: Any, b: Any) -> Any:
    dtype = _dtype(func, (a, b), {})
    return _chosen(lifted(a).value >= lifted(b).value, a, b, dtype)


@_rule("minimum", "fmin")
def _minimum(func: Any, a: Any, b: Any) -> Any:
    dtype = _dtype(func, (a, b), {})
    return _chosen(lifted(a).value <= lifted(b).value, a, b, dtype)


@_rule("clamp", "hardtanh")
def _clamp(func: Any, x: Any, low: Any = None, high: Any = None) -> Any:
    if low is not None:
        x = _chosen(lifted(x).value >= lifted(low).value, x, low, x.dtype)
    if high is not None:
        x = _chosen(lifted(x).value <= lifted(high).value, x, high, x.dtype)
    return x


@_rule("hardswish")
def _hardswish(func: Any, x: Residue) -> Any:
    return x * torch.clamp(x + 3, 0, 6) / 6


@_rule("clamp_min")
def _clamp_min(func: Any, x: Any, low: Any) -> Any:
    return _clamp(func, x, low)


@_rule("clamp_max")
def _clamp_max(func: Any, x: Any, high: Any) -> Any:
    return _clamp(func, x, None, high)


@_rule("amax", "amin")
def _extreme(func: Any, x: Residue, dim: Any = (), keepdim: bool = False) -> Any:
    dims = sorted(d % max(x.dim(), 1) for d in dim) or list(range(x.dim()))
    rest = [d for d in range(x.dim()) if d not in dims]
    flat = lifted(x.permute([*rest, *dims]).reshape([x.shape[d] for d in rest] + [-1]))
    finder = torch.argmax if func.overloadpacket is aten.amax else torch.argmin
    found = torch.gather(flat, -1, finder(flat.value, -1, keepdim=True))
    shape = [1 if d in dims else x.shape[d] for d in range(x.dim())]
    return found.reshape(shape if keepdim else [x.shape[d] for d in rest])


# Field arithmetic.


def _each(
    func: Any, args: tuple, given: dict, real: torch.Tensor, of: Callable[..., torch.Tensor]
) -> Residue:
    """of(prime, *parts) modulo both primes."""
    values = [lifted(a) for a in args]
    dtype = _dtype(func, args, given)
    p = of(P, *(v.p for v in values)) % P
    if any(v.q is None for v in values):
        return Residue(real, p, None, dtype)
    return Residue(real, p, of(Q, *(v.q for v in values)) % Q, dtype)


@_rule("add", "sub", "rsub")
def _sum_of_two(func: Any, a: Any, b: Any, *, alpha: Any = 1) -> Any:
    sign = 1 if func.overloadpacket is aten.add else -1
    if func.overloadpacket is aten.rsub:
        x, y = lifted(b), lifted(a)
    else:
        x, y = lifted(a), lifted(b)
    dtype = _dtype(func, (a, b), {"alpha": alpha})
    scales = [number(float(alpha), prime) * sign for prime in (P, Q)]
    real = x.value + y.value * alpha * sign
    q = None if x.q is None or y.q is None else (x.q + y.q * scales[1]) % Q
    return Residue(real, (x.p + y.p * scales[0]) % P, q, dtype)


@_rule("mul")
def _mul(func: Any, a: Any, b: Any) -> Any:
    real = lifted(a).value * lifted(b).value
    return _each(func, (a, b), {}, real, lambda prime, x, y: x * y)


@_rule("div")
def _div(func: Any, a: Any, b: Any, *, rounding_mode: Any = None) -> Any:
    if rounding_mode is not None:
        kept = {"rounding_mode": rounding_mode}
        return _uninterpreted(func, _dtype(func, (a, b), kept), (a, b), kept)
    real = lifted(a).value / lifted(b).value
    return _each(func, (a, b), {}, real, lambda prime, x, y: x * inverse(y, prime))


@_rule("reciprocal")
def _reciprocal(func: Any, x: Any) -> Any:
    return _each(func, (x,), {}, 1 / x.value, lambda prime, v: inverse(v, prime))


@_rule("neg")
def _neg(func: Any, x: Residue) -> Any:
    return _each(func, (x,), {}, -x.value, lambda prime, v: -v)


@_rule("square")
def _square(func: Any, x: Residue) -> Any:
    return _each(func, (x,), {}, x.value.square(), lambda prime, v: v * v)


@_rule("pow")
def _pow(func: Any, x: Any, exponent: Any) -> Any:
    if not isinstance(exponent, int | float) or not isinstance(x, Residue):
        return _uninterpreted(func, _dtype(func, (x, exponent), {}), (x, exponent), {})
    if exponent == int(exponent) and abs(exponent) < 64:
        n = int(abs(exponent))
        made = _each(func, (x, exponent), {}, x.value**n, lambda prime, v, _: power(v, n, prime))
        return made if exponent >= 0 else torch.reciprocal(made)
    if abs(exponent) == 0.5:
        return torch.sqrt(x) if exponent > 0 else torch.rsqrt(x)
    return _uninterpreted(func, x.dtype, (x, exponent), {})


@_rule("rsqrt")
def _rsqrt(func: Any, x: Residue) -> Any:
    return torch.reciprocal(torch.sqrt(x))


@_rule("addcmul")
def _addcmul(func: Any, x: Any, a: Any, b: Any, *, value: float = 1) -> Any:
    return x + a * b * value


@_rule("addcdiv")
def _addcdiv(func: Any, x: Any, a: Any, b: Any, *, value: float = 1) -> Any:
    return x + a / b * value


@_rule("sum", "mean", "cumsum")
def _reduced(func: Any, x: Residue, *args: Any, dtype: Any = None, **given: Any) -> Any:
    total = aten.sum if func.overloadpacket is aten.mean else func.overloadpacket
    if args and args[0] is None:  # of all dims
        args = (list(range(x.dim())), *args[1:])
    real = func(x.value, *args, **given)
    count = x.numel() // max(real.numel(), 1) if total is aten.sum else 1
    made_dtype = dtype or x.dtype
    mean = func.overloadpacket is aten.mean

    def of(prime: int, v: torch.Tensor) -> torch.Tensor:
        whole = total(v, *args, **given) % prime
        return whole * pow(max(count, 1), -1, prime) % prime if mean else whole

    q = None if x.q is None else of(Q, x.q)
    return Residue(real, of(P, x.p), q, made_dtype)


def _product(func: Any, a: Any, b: Any, apply: Callable) -> Residue:
    x, y = lifted(a), lifted(b)
    p = bilinear(apply, x.p, y.p, P)
    q = None if x.q is None or y.q is None else bilinear(apply, x.q, y.q, Q)
    return Residue(apply(x.value, y.value), p, q, torch.promote_types(x.dtype, y.dtype))


@_rule("mm", "bmm", "mv", "dot", "matmul", "linear")
def _matmul(func: Any, a: Any, b: Any, *bias: Any) -> Any:
    made = _product(func, a, b, func.overloadpacket)
    return made + bias[0] if bias and bias[0] is not None else made


@_rule("addmm", "addmv", "baddbmm")
def _addmm(func: Any, c: Any, a: Any, b: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
    return c * beta + torch.matmul(a, b) * alpha


@_rule("convolution")
def _convolution(func: Any, x: Any, w: Any, bias: Any, *rest: Any) -> Any:
    made = _product(func, x, w, lambda a, b: func(a, b, None, *rest))
    return made if bias is None else made + bias.reshape(-1, *[1] * (x.dim() - 2))


# exp and what is made of it, norms, and other functions of several ops.


@_rule("exp")
def _exp(func: Any, x: Residue) -> Any:
    # behind another exp: a random function of what is known
    exponent = mixed(7, x.p) % Q if x.q is None else x.q
    p = power(torch.full_like(exponent, G), exponent, P)
    lowest = (x.value < -HUGE).logical_not()
    return Residue(x.value.exp(), p * lowest, None, x.dtype)


@_rule("expm1")
def _expm1(func: Any, x: Residue) -> Any:
    return torch.exp(x) - 1


@_rule("sigmoid")
def _sigmoid(func: Any, x: Residue) -> Any:
    return 1 / (1 + torch.exp(-x))


@_rule("silu")
def _silu(func: Any, x: Residue) -> Any:
    return x * torch.sigmoid(x)


@_rule("gelu")
def _gelu(func: Any, x: Residue, *, approximate: str = "none") -> Any:
    if approximate == "tanh":
        inner = (x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)
        return x * 0.5 * (1 + torch.tanh(inner))
    return x * 0.5 * (1 + torch.erf(x * math.sqrt(0.5)))


@_rule("_softmax", "_safe_softmax")
def _softmax(func: Any, x: Residue, dim: int, *_: Any, dtype: Any = None) -> Any:
    high = torch.exp(x)
    made = lifted(high / high.sum(dim, keepdim=True))
    return Residue(torch.softmax(x.value, dim), made.p, made.q, dtype or x.dtype)


@_rule("_log_softmax")
def _log_softmax(func: Any, x: Residue, dim: int, *_: Any) -> Any:
    made = lifted(x - torch.log(torch.exp(x).sum(dim, keepdim=True)))
    return Residue(torch.log_softmax(x.value, dim), made.p, made.q, x.dtype)


@_rule("native_layer_norm")
def _layer_norm(func: Any, x: Any, shape: Any, weight: Any, bias: Any, eps: float) -> Any:
    dims = list(range(x.dim() - len(shape), x.dim()))
    mean = x.mean(dims, keepdim=True)
    centered = x - mean
    scale = torch.rsqrt((centered * centered).mean(dims, keepdim=True) + eps)
    made = centered * scale
    made = made if weight is None else made * weight
    return (made if bias is None else made + bias), mean, scale


def rms_norm(x: Any, shape: Any, weight: Any = None, eps: float | None = None) -> Any:
    """x / sqrt(mean(x²) + eps) * weight over the last dims, as torch defines it."""
    dims = list(range(x.dim() - len(shape), x.dim()))
    step = torch.finfo(x.dtype).eps if eps is None else eps
    scale = torch.rsqrt((x * x).mean(dims, keepdim=True) + step)
    return x * scale if weight is None else x * scale * weight


@_rule("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm")
def _batch_norm(func: Any, x: Any, w: Any, b: Any, mean: Any, var: Any, *rest: Any) -> Any:
    training, eps = (rest[0], rest[2]) if len(rest) == 3 else (False, rest[1])
    if training:
        raise NotExact("batch norm in training")
    shape = [-1, *[1] * (x.dim() - 2)]
    made = (x - mean.reshape(shape)) * torch.rsqrt(var.reshape(shape) + eps)
    made = made if w is None else made * w.reshape(shape)
    made = made if b is None else made + b.reshape(shape)
    empty = torch.empty(0)
    return made, empty, empty


@_rule("native_group_norm")
def _group_norm(
    func: Any, x: Any, w: Any, b: Any, n: int, c: int, hw: int, groups: int, eps: float
) -> Any:
    flat = x.reshape(n, groups, -1)
    mean = flat.mean(-1, keepdim=True)
    centered = flat - mean
    scale = torch.rsqrt((centered * centered).mean(-1, keepdim=True) + eps)
    shape = [1, -1, *[1] * (x.dim() - 2)]
    made = (centered * scale).reshape(x.shape)
    made = made if w is None else made * w.reshape(shape)
    return (made if b is None else made + b.reshape(shape)), mean, scale


# What torch would take apart with writes in place, before a rule is asked.
WHOLE: dict[str, Rule] = {"scaled_dot_product_attention": attention, "rms_norm": rms_norm}
