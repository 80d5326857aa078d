"""Parts of models as runs of statements: the shapes that the passes and kernels look for.

Each takes a drawing (program_draw.py) and appends statements to it; sizes coincide often.
"""

from __future__ import annotations

from typing import Any

import torch

SMALL = (1, 2, 3, 4, 5, 8, 16, 17)
Drawing = Any


def _float(d: Drawing, rank: int = 1) -> str | None:
    """A floating value of at least this rank with a last dim worth multiplying over."""
    return d.some("f", rank)


def _last(d: Drawing, name: str) -> tuple[int, ...]:
    return tuple(d.shape_of(name, c)[-1] for c in range(d.calls))


def _weight(d: Drawing, x: str, rows: tuple[int, ...]) -> str:
    """A weight [rows, last dim of x] of x's dtype."""
    shapes = tuple(zip(rows, _last(d, x), strict=True))
    return d.input(shapes, d.envs[0][x].dtype, "small")


def _vector(d: Drawing, like: str, sizes: tuple[int, ...]) -> str:
    return d.input(tuple((s,) for s in sizes), d.envs[0][like].dtype, "small")


def linear(d: Drawing) -> None:
    """A linear layer, with what often follows it."""
    x = _float(d)
    if x is None:
        return
    rows = _last(d, x) if d.chance(40) else (d.pick(SMALL),) * d.calls
    w = _weight(d, x, rows)
    if d.chance(60):
        y = d.emit("F.linear({0}, {1}, {2})", x, w, _vector(d, x, rows))
    else:
        y = d.emit(d.pick(("F.linear({0}, {1})", "{0} @ {1}.t()", "{0} @ {1}.mT")), x, w)
    if y and d.chance(60):
        after = ("F.gelu({0})", "{0}.relu()", "F.silu({0})", "{0} * 0.5", "{0}.tanh()")
        y = d.emit(d.pick(after), y)
    if y and _last(d, y) == _last(d, x) and d.chance(70):
        d.emit(d.pick(("{0} + {1}", "{1} + {0}", "{0} * {1}")), y, x)


def products(d: Drawing) -> None:
    """Matrix products of a value with itself or with a new input."""
    x = _float(d)
    if x is None:
        return
    rank = len(d.shape_of(x))
    if rank >= 2 and d.chance(40):
        codes = ("{0} @ {0}.mT", "{0}.mT @ {0}", "torch.matmul({0}, {0}.transpose(-1, -2))")
        d.emit(d.pick(codes), x)
        return
    columns = _last(d, x) if d.chance(50) else (d.pick(SMALL),) * d.calls
    dtype = d.envs[0][x].dtype
    shapes = tuple(zip(_last(d, x), columns, strict=True))
    if rank == 3 and d.chance(50):
        batched = tuple((d.shape_of(x, c)[0], *s) for c, s in enumerate(shapes))
        d.emit(d.pick(("torch.bmm({0}, {1})", "{0} @ {1}")), x, d.input(batched, dtype, "small"))
        return
    w = d.input(shapes, dtype, "small")
    if rank == 2 and d.chance(40):
        code = d.pick(("torch.addmm({2}, {0}, {1})", "torch.addmm({2}, {0}, {1}, beta=0.5)"))
        d.emit(code, x, w, _vector(d, x, columns))
    elif d.chance(20):
        d.emit("{0} @ {1}", x, _vector(d, x, _last(d, x)))
    else:
        d.emit(d.pick(("{0} @ {1}", "torch.matmul({0}, {1})")), x, w)


def norm(d: Drawing) -> None:
    """Layer and RMS norms, whole and written out, after an addition or not."""
    x = _float(d)
    if x is None:
        return
    if d.chance(40):
        x = d.emit("{0} + {1}", x, d.like(x, dtype=d.envs[0][x].dtype)) or x
    weight, bias = _vector(d, x, _last(d, x)), _vector(d, x, _last(d, x))
    whole = (
        "F.layer_norm({0}, {0}.shape[-1:], {1}, {2}, 1e-5)",
        "F.layer_norm({0}, {0}.shape[-1:], {1}, None, 1e-6)",
        "F.rms_norm({0}, {0}.shape[-1:], {1}, 1e-6)",
        "{1} * ({0} * torch.rsqrt({0}.pow(2).mean(-1, keepdim=True) + 1e-6))",
        "{0}.float() * torch.rsqrt({0}.float().pow(2).mean(-1, keepdim=True) + 1e-5) * {1}",
        "({0} - {0}.mean(-1, keepdim=True)) / ({0}.var(-1, unbiased=False, keepdim=True) + 1e-5)"
        ".sqrt() * {1} + {2}",
    )
    d.emit(d.pick(whole), x, weight, bias)


def attention(d: Drawing) -> None:
    """Attention from q, k, v [B, H, T, D], its sizes equal on purpose."""
    batch, heads = d.pick((1, 2, 3)), d.pick((1, 2, 4, 5))
    width = d.pick((heads, 4, 8, 16))
    tokens = d.pick(((heads,) * d.calls, (width,) * d.calls, (batch,) * d.calls, None))
    if tokens is None or d.dynamic:
        tokens = tuple(d.pick((heads, width, *SMALL)) for _ in range(d.calls))
    keys = tokens if d.chance(75) else tuple(d.pick(SMALL) for _ in range(d.calls))
    dtype = d.floats[0]
    if d.chance(50):
        q, k, v = (
            d.input(tuple((batch, heads, n, width) for n in lengths), dtype, "normal")
            for lengths in (tokens, keys, keys)
        )
    else:
        q, k, v = (_heads(d, batch, lengths, heads, width) for lengths in (tokens, keys, keys))
    if not (q and k and v):
        return
    if d.chance(40):
        codes = (
            "F.scaled_dot_product_attention({0}, {1}, {2})",
            "F.scaled_dot_product_attention({0}, {1}, {2}, is_causal=True)",
            "F.scaled_dot_product_attention({0}, {1}, {2}, scale=0.3)",
            "F.scaled_dot_product_attention({0}, {1}, {2}, attn_mask={3})",
        )
        mask = _mask(d, batch, heads, tokens, keys)
        out = d.emit(d.pick(codes), q, k, v, mask)
    else:
        out = _written_out(d, q, k, v, _mask(d, batch, heads, tokens, keys))
    if out and d.chance(60):
        d.emit("{0}.transpose(1, 2).reshape({0}.shape[0], {0}.shape[2], -1)", out)


def _heads(d: Drawing, batch: int, lengths: tuple[int, ...], heads: int, width: int) -> str | None:
    flat = d.input(tuple((batch, n, heads * width) for n in lengths), d.floats[0], "normal")
    codes = (
        "{0}.view({0}.shape[0], {0}.shape[1], <h>, <w>).transpose(1, 2)",
        "{0}.reshape({0}.shape[0], -1, <h>, <w>).permute(0, 2, 1, 3)",
    )
    code = d.pick(codes).replace("<h>", str(heads)).replace("<w>", str(width))
    return d.emit(code, flat, kind="exact")


def _mask(
    d: Drawing, batch: int, heads: int, tokens: tuple[int, ...], keys: tuple[int, ...]
) -> str:
    b, h = d.pick(((1, 1), (batch, 1), (batch, heads), (1, heads)))
    shapes = tuple((b, h, t, k) for t, k in zip(tokens, keys, strict=True))
    return d.input(shapes, d.pick((torch.bool, d.floats[0])), "normal")


def _written_out(d: Drawing, q: str, k: str, v: str, mask: str) -> str | None:
    product = ("{0} @ {1}.transpose(-1, -2)", "torch.matmul({0}, {1}.permute(0, 1, 3, 2))")
    scores = d.emit(d.pick(product), q, k)
    if scores:
        scale = ("{0} * 0.25", "{0} / 2.5", "{0} / ({0}.shape[-1] ** 0.5)", "{0}")
        scores = d.emit(d.pick(scale), scores)
    if scores and d.chance(50):
        boolean = d.envs[0][mask].dtype == torch.bool
        masked = (
            ("{0}.masked_fill({1}, -1e4)", "torch.where({1}, {0}, -1e3)")
            if boolean
            else ("{0} + {1}",)
        )
        scores = d.emit(d.pick(masked), scores, mask)
    if scores:
        soft = (
            "torch.softmax({0}, -1)",
            "{0}.softmax(dim=-1)",
            "F.softmax({0}.float(), -1).to({1}.dtype)",
        )
        weights = d.emit(d.pick(soft), scores, v)
        return d.emit("{0} @ {1}", weights, v) if weights else None
    return None


def gated(d: Drawing) -> None:
    """silu(x Wg) * (x Wu)."""
    x = _float(d)
    if x is None:
        return
    rows = (d.pick(SMALL),) * d.calls
    gate = d.emit("F.linear({0}, {1})", x, _weight(d, x, rows))
    up = d.emit("F.linear({0}, {1})", x, _weight(d, x, rows))
    if gate and up:
        d.emit(d.pick(("F.silu({0}) * {1}", "{1} * F.gelu({0})", "F.sigmoid({0}) * {1}")), gate, up)


def rotary(d: Drawing) -> None:
    """x cos + rotate(x) sin over the halves of the last dim."""
    x = _float(d, 2)
    if x is None:
        return
    dtype = d.envs[0][x].dtype
    cos, sin = (d.like(x, (-2, -1), dtype=dtype, values="small") for _ in range(2))
    half = "{0}.shape[-1] // 2"
    turned = d.emit(
        f"torch.cat((-{{0}}[..., {half}:], {{0}}[..., :{half}]), dim=-1)", x, kind="exact"
    )
    if turned:
        d.emit("{0} * {1} + {2} * {3}", x, cos, turned, sin)


def indexing(d: Drawing) -> None:
    """Gathers, scatters and embeddings; indices in range, negative ones too."""
    x = d.some("fib", 1)
    if x is None:
        return
    rank = len(d.shape_of(x))
    dim = d.pick(range(rank))
    first = d.chance(40)
    dim = 0 if first else dim
    bounds = tuple(d.shape_of(x, c)[dim] for c in range(d.calls))
    if min(bounds) == 0:
        return
    if d.chance(40):  # indices of x's own shape
        index = d.like(x, dtype=torch.int64, values="index", bounds=bounds)
        codes = ("torch.gather({0}, <d>, {1})", "torch.take_along_dim({0}, {1}, <d>)")
        d.emit(d.pick(codes).replace("<d>", str(dim)), x, index, kind="exact")
        if d.chance(30):
            code = "{0}.scatter_add(<d>, {1}, {0})".replace("<d>", str(dim))
            d.emit(code, x, index)
        return
    if d.chance(35):  # each element at most once
        index = d.input(tuple((max(b - 1, 1),) for b in bounds), torch.int64, "permutation", bounds)
        codes = (
            "{0}.index_fill(<d>, {1}, 1)",
            "{0}.index_copy(<d>, {1}, {0}.index_select(<d>, {1}) * 2)",
            "{0}.index_add(<d>, {1}, {0}.index_select(<d>, {1}))",
        )
        d.emit(d.pick(codes).replace("<d>", str(dim)), x, index, kind="exact")
        written = ("{0}[{1}] = 1", "{0}[{1}] = {0}[{1}] * 2", "{0}[{1}] *= 2")
        if dim == 0 and d.chance(50):
            d.emit(d.pick(written), x, index, kind="exact", bound=False)
        return
    shape = d.pick(((5,), (1,), (2, 3), (7,), ()))
    dtype = d.pick((torch.int64, torch.int64, torch.int32))
    index = d.input((shape,) * d.calls, dtype, "index", bounds)
    codes = ["{0}.index_select(<d>, {1}.reshape(-1))"]
    if dim == 0:
        codes += ["{0}[{1}]", "{0}[{1} - 1]", "{0}[{1}] * 2"]
        codes += ["F.embedding({1}, {0})"] if rank == 2 else []
        codes += ["{0}[{1}, ..., 0]", "{0}[{1}, {1}]"] if rank > 1 and dtype == torch.int64 else []
    if dim == rank - 1:
        codes += ["{0}[..., {1}]"]
    d.emit(d.pick(codes).replace("<d>", str(dim)), x, index, kind="exact")


def masking(d: Drawing) -> None:
    """masked_fill and where with a mask of the value's shape, or of its last dims."""
    x = d.some("fib", 1)
    if x is None:
        return
    rank = len(d.shape_of(x))
    mask = d.like(x, range(d.pick(range(rank)), rank), dtype=torch.bool)
    codes = (
        "{0}.masked_fill({1}, 0)",
        "{0}.masked_fill({1}, float('-inf')).softmax(-1)",
        "torch.where({1}, {0}, 1)",
        "torch.where({1}, {0}, {0} * 2)",
        "{0} * {1}",
        "{0}.masked_fill(~{1}, 3)",
        "{0}.masked_fill_({1}, 1)",
    )
    code = d.pick(codes)
    d.emit(code, x, mask, kind="free" if "softmax" in code else "exact")


def pooling(d: Drawing) -> None:
    """Mean over the tokens that a mask keeps, then unit length."""
    x = _float(d, 2)
    if x is None:
        return
    shape = d.shape_of(x)
    mask = d.like(x, range(len(shape) - 1), dtype=torch.int64)
    code = "({0} * ({1} > 0).unsqueeze(-1)).sum(-2) / ({1} > 0).sum(-1, keepdim=True).clamp(min=1)"
    y = d.emit(code, x, mask)
    if y and d.chance(50):
        d.emit("F.normalize({0}, p=2, dim=-1)", y)


PARTS = (
    linear,
    linear,
    products,
    norm,
    norm,
    attention,
    attention,
    gated,
    rotary,
    indexing,
    indexing,
    indexing,
    masking,
    pooling,
)
