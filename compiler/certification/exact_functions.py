"""Ops over exact arithmetic that are more than a field's: exp and what is made of it, norms,
attention."""

from __future__ import annotations

import math
from typing import Any

import torch

from infopt.compiler.certification.exact_tensor import WHOLE, NotExact, Residue, declared, lifted
from infopt.compiler.certification.residue import HUGE, G, P, Q, mixed, power


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


def _powers(x: Residue) -> torch.Tensor:
    """exp(x) modulo P."""
    # behind another exp: a random function of what is known
    exponent = mixed(7, x.p) % Q if x.q is None else x.q
    p = power(torch.full_like(exponent, G), exponent, P)
    return p * (x.value < -HUGE).logical_not()


@declared("exp")
def _exp(func: Any, x: Residue) -> Any:
    return Residue(x.value.exp(), _powers(x), None, x.dtype)


def _powers_beside(x: Residue, dim: int) -> Any:
    """exp(x) where only quotients along a dimension are wanted: of real values that would overflow
    alone, and then be no numbers any more."""
    most = x.value.amax(dim, keepdim=True)
    return Residue((x.value - most).exp(), _powers(x), None, x.dtype)


@declared("expm1")
def _expm1(func: Any, x: Residue) -> Any:
    return torch.exp(x) - 1


@declared("sigmoid")
def _sigmoid(func: Any, x: Residue) -> Any:
    return 1 / (1 + torch.exp(-x))


@declared("silu")
def _silu(func: Any, x: Residue) -> Any:
    return x * torch.sigmoid(x)


@declared("hardswish")
def _hardswish(func: Any, x: Residue) -> Any:
    return x * torch.clamp(x + 3, 0, 6) / 6


@declared("gelu")
def _gelu(func: Any, x: Residue, *, approximate: str = "none") -> Any:
    if approximate == "tanh":
        inner = (x + x * x * x * 0.044715) * math.sqrt(2 / math.pi)
        return x * 0.5 * (1 + torch.tanh(inner))
    return x * 0.5 * (1 + torch.erf(x * math.sqrt(0.5)))


@declared("_softmax", "_safe_softmax")
def _softmax(func: Any, x: Residue, dim: int, *_: Any, dtype: Any = None) -> Any:
    high = _powers_beside(x, dim)
    made = lifted(high / high.sum(dim, keepdim=True))
    return Residue(torch.softmax(x.value, dim), made.p, made.q, dtype or x.dtype)


@declared("_log_softmax")
def _log_softmax(func: Any, x: Residue, dim: int, *_: Any) -> Any:
    made = lifted(x - torch.log(_powers_beside(x, dim).sum(dim, keepdim=True)))
    return Residue(torch.log_softmax(x.value, dim), made.p, made.q, x.dtype)


@declared("native_layer_norm")
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


@declared("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm")
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


@declared("native_group_norm")
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


WHOLE |= {"scaled_dot_product_attention": attention, "rms_norm": rms_norm}
