"""The open sizes of a program that torch traced."""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch import fx

from infopt.compiler.errors import TraceDeclined
from infopt.compiler.types import Dim


def dims_of(module: fx.GraphModule) -> tuple[Dim, ...]:
    """The dynamic sizes of a program: every symbol in the types of its placeholders."""
    dims: dict[sympy.Symbol, Dim] = {}
    for node in module.graph.nodes:
        if node.op != "placeholder":
            continue
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            sizes = [*value.shape, *value.stride()]
        else:
            sizes = [value] if isinstance(value, torch.SymInt) else []
        for size in sizes:
            if isinstance(size, torch.SymInt):
                for symbol in size.node.expr.free_symbols:
                    dims.setdefault(symbol, _dim(symbol, size.node.shape_env))
    return tuple(sorted(dims.values(), key=lambda d: d.name))


def _dim(symbol: sympy.Symbol, env: Any) -> Dim:
    seen = getattr(env, "backed_var_to_val", None) or env.var_to_val
    bounds = env.var_to_range.get(symbol)
    if symbol not in seen:
        raise TraceDeclined(f"the size {symbol} depends on data")
    lo, hi = (bounds.lower, bounds.upper) if bounds is not None else (0, None)
    lower = int(lo) if isinstance(lo, int | sympy.Integer) else 0
    upper = int(hi) if isinstance(hi, int | sympy.Integer) and hi < 2**62 else None
    return Dim(symbol, max(lower, 0), upper, int(seen[symbol]))
