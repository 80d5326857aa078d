"""Programs of many kinds, for passes that have no pattern to make programs from."""

from __future__ import annotations

from typing import Any

import torch

from infopt.compiler.certification.programs import Program

_X = ("rows", "width")
_BATCH = ("batch", "rows", "width")


def _mlp(o: Any, x: Any, w: Any, b: Any, v: Any) -> Any:
    return o.add(o.linear(o.gelu(o.linear(x, w, b)), v), x)


def _gates(o: Any, x: Any, y: Any) -> Any:
    return o.mul(x, o.sigmoid(x)), o.mul(o.silu(y), x), o.mul(o.sigmoid(y), y)


def _chains(o: Any, x: Any) -> Any:
    return o.relu(o.relu(x)), o.neg(o.neg(x)), o.abs(o.abs(x)), o.relu(o.neg(x)), o.tanh(o.relu(x))


def _sums(o: Any, x: Any, y: Any) -> Any:
    doubled = o.add(o.mul(x, 2.0), o.mul(y, 2.0))
    return doubled, o.mul(x, 1.0), o.sub(o.add(x, y), y), o.add(x, 0.0), o.sub(x, x), o.div(x, 2.0)


def _powers(o: Any, x: Any) -> Any:
    return o.pow(x, 2.0), o.mul(x, x), o.sqrt(o.abs(x)), o.exp(x), o.erf(x), o.tanh(x)


def _products(o: Any, x: Any, w: Any, v: Any) -> Any:
    y = o.matmul(x, o.permute(w, [1, 0]))
    return y, o.linear(x, w), o.linear(x, v), o.add(o.linear(x, w), o.linear(x, v))


def _views(o: Any, x: Any) -> Any:
    batch, rows, width = x.shape
    flat = o.reshape(x, [batch * rows, width])
    turned = o.permute(o.permute(x, [0, 2, 1]), [0, 2, 1])
    parts = [o.slice(x, 1, 0, 1), o.slice(x, 1, 1, None)]
    return flat, turned, o.cat(parts, 1), o.reshape(flat, [batch, rows, width]), o.relu(parts[0])


def _casts(o: Any, x: Any) -> Any:
    wide = o.call("aten.to.dtype", x, torch.float64)
    return o.call("aten.to.dtype", wide, torch.float32), wide, o.call("aten.clone.default", x)


def _reductions(o: Any, x: Any) -> Any:
    mean = o.call("aten.mean.dim", x, [-1], True)
    return (
        o.softmax(x, -1), mean, o.call("aten.sum.dim_IntList", x, [0], False), o.amax(x, [-1]),
        o.sub(x, mean), o.log_softmax(x, -1),
    )  # fmt: skip


def _norms(o: Any, x: Any, y: Any, w: Any, b: Any) -> Any:
    width = x.shape[-1]
    return o.layer_norm(o.add(x, y), [width], w, b, 1e-5), o.layer_norm(x, [width], None, None)


def _attention(o: Any, q: Any, k: Any, v: Any) -> Any:
    scores = o.mul(o.matmul(q, o.permute(k, [0, 1, 3, 2])), 0.5)
    written_out = o.matmul(o.softmax(scores, -1), v)
    return written_out, o.scaled_dot_product_attention(q, k, v)


def _masks(o: Any, x: Any, y: Any, mask: Any) -> Any:
    chosen = o.call("aten.where.self", mask, x, y)
    kept = o.call("aten.where.self", o.gt(x, 0), x, y)
    return chosen, kept, o.logical_not(o.logical_not(mask)), o.maximum(x, y)


_HEADS = ("batch", 2, "rows", 4)

GALLERY = (
    Program(_chains, (_X,), name="chains"),
    Program(_gates, (_X, _X), name="gates"),
    Program(_sums, (_X, _X), name="sums"),
    Program(_powers, (_X,), name="powers"),
    Program(_mlp, (_X, ("hidden", "width"), ("hidden",), ("width", "hidden")), name="mlp"),
    Program(_views, (_BATCH,), name="views"),
    Program(_reductions, (_X,), name="reductions"),
    Program(_norms, (_BATCH, _BATCH, ("width",), ("width",)), name="norms"),
    Program(_attention, (_HEADS, _HEADS, _HEADS), name="attention"),
    Program(_products, (_BATCH, ("out", "width"), ("out", "width")), name="products"),
    Program(_masks, (_X, _X, _X), (None, None, torch.bool), name="masks"),
    Program(_casts, (_X,), name="casts"),
)
