"""Ops over exact arithmetic that move elements or choose between them: no residue is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map

from infopt.compiler.certification.exact_tensor import (
    RULES,
    Residue,
    aten,
    declared,
    dtype_of,
    is_float,
    lifted,
)

# Moving elements: the same op on every part.

_MOVES = (
    "view _unsafe_view reshape _reshape_alias permute t transpose expand slice select squeeze "
    "unsqueeze clone alias detach cat stack split split_with_sizes unbind index index_select "
    "gather embedding flip roll repeat tril triu diagonal unfold as_strided select_scatter "
    "slice_scatter lift_fresh scatter index_put contiguous narrow chunk pixel_shuffle "
    "pixel_unshuffle im2col diag_embed _conj swapaxes movedim"
)


_VIEWS = (aten.view, aten._unsafe_view)


@declared(*_MOVES.split())
def _moved(func: Any, *args: Any, **given: Any) -> Any:
    def lift(value: Any) -> Any:
        return lifted(value) if is_float(value) else value

    args, given = tree_map(lift, args), tree_map(lift, given)
    held = [a for a in tree_flatten((args, given))[0] if isinstance(a, Residue)]
    known = all(r.q is not None for r in held)
    dtype = dtype_of(func, args, given)

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


@declared("_to_copy")
def _to_copy(func: Any, x: Residue, *, dtype: Any = None, **given: Any) -> Any:
    """Exact arithmetic does not round."""
    dtype = dtype or x.dtype
    if not dtype.is_floating_point:
        return func(x.value, dtype=dtype)
    return Residue(x.value, x.p, x.q, dtype)


@declared("empty_like", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full")
def _made(func: Any, x: Residue, *args: Any, **given: Any) -> torch.Tensor:
    given.setdefault("dtype", x.dtype)
    return func(x.value, *args, **given)


def _chosen(condition: torch.Tensor, a: Any, b: Any, dtype: torch.dtype) -> Residue:
    x, y = lifted(a), lifted(b)
    q = None if x.q is None or y.q is None else torch.where(condition, x.q, y.q)
    real = torch.where(condition, x.value, y.value)
    return Residue(real, torch.where(condition, x.p, y.p), q, dtype)


@declared("where")
def _where(func: Any, condition: Any, a: Any, b: Any) -> Any:
    return _chosen(condition, a, b, dtype_of(func, (condition, a, b), {}))


@declared("masked_fill")
def _masked_fill(func: Any, x: Any, mask: Any, value: Any) -> Any:
    return _chosen(mask, value, x, x.dtype)


@declared("constant_pad_nd")
def _padded(func: Any, x: Residue, pad: Any, value: float = 0) -> Any:
    inside = func(torch.ones(x.shape, dtype=torch.bool), pad, False)
    q = None if x.q is None else func(x.q, pad)
    zeros = Residue(func(x.value, pad), func(x.p, pad), q, x.dtype)
    return _chosen(inside, zeros, value, x.dtype)


@declared("relu")
def _relu(func: Any, x: Residue) -> Residue:
    return _chosen((x.value > 0) | x.value.isnan(), x, 0.0, x.dtype)


@declared("abs")
def _abs(func: Any, x: Residue) -> Any:
    return _chosen(x.value >= 0, x, -x, x.dtype)


@declared("maximum", "fmax")
def _maximum(func: Any, a: Any, b: Any) -> Any:
    dtype = dtype_of(func, (a, b), {})
    return _chosen(lifted(a).value >= lifted(b).value, a, b, dtype)


@declared("minimum", "fmin")
def _minimum(func: Any, a: Any, b: Any) -> Any:
    dtype = dtype_of(func, (a, b), {})
    return _chosen(lifted(a).value <= lifted(b).value, a, b, dtype)


@declared("clamp", "hardtanh")
def _clamp(func: Any, x: Any, low: Any = None, high: Any = None) -> Any:
    if low is not None:
        x = _chosen(lifted(x).value >= lifted(low).value, x, low, x.dtype)
    if high is not None:
        x = _chosen(lifted(x).value <= lifted(high).value, x, high, x.dtype)
    return x


@declared("clamp_min")
def _clamp_min(func: Any, x: Any, low: Any) -> Any:
    return _clamp(func, x, low)


@declared("clamp_max")
def _clamp_max(func: Any, x: Any, high: Any) -> Any:
    return _clamp(func, x, None, high)


@declared("amax", "amin")
def _extreme(func: Any, x: Residue, dim: Any = (), keepdim: bool = False) -> Any:
    dims = sorted(d % max(x.dim(), 1) for d in dim) or list(range(x.dim()))
    rest = [d for d in range(x.dim()) if d not in dims]
    flat = lifted(x.permute([*rest, *dims]).reshape([x.shape[d] for d in rest] + [-1]))
    finder = torch.argmax if func.overloadpacket is aten.amax else torch.argmin
    found = torch.gather(flat, -1, finder(flat.value, -1, keepdim=True))
    shape = [1 if d in dims else x.shape[d] for d in range(x.dim())]
    return found.reshape(shape if keepdim else [x.shape[d] for d in rest])


def only_moves(func: Any) -> bool:
    """Whether the op rounds nothing: every number that it gives is one that it was given."""
    rule = RULES.get(func.overloadpacket)
    return rule is not None and rule.__module__ == __name__
