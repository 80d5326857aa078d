"""The cache of keys and values on a GPU: new rows go to their places, attention reads it there."""

from __future__ import annotations

from infopt.codegen.gpu.attention import FLASH_SPACE, attention_launches, on_gpu, power_of_two
from infopt.codegen.gpu.text import HEADER, launch
from infopt.codegen.kernel import Config
from infopt.codegen.kernels.attention import by_token
from infopt.codegen.kernels.kv_cache import (
    APPENDED,
    ATTENDED,
    appends,
    kv_append,
    kv_attention,
    kv_attention_legal,
)
from infopt.codegen.kernels.rows import ceil_div
from infopt.codegen.launch import Launch, Pointer
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType

SOURCE = (
    HEADER
    + '''

@triton.jit
def append_rows(x, starts, counts, out, heads, tokens, room, x_batch, x_head, x_stride,
                out_batch, out_head, out_stride, D: tl.constexpr, BLOCK_D: tl.constexpr,
                TOKENS: tl.constexpr):
    """TOKENS rows of one head of one sequence, behind those that the cache has of it."""
    batch = (tl.program_id(0) // heads).to(tl.int64)
    head = (tl.program_id(0) % heads).to(tl.int64)
    rows = (tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    place = tl.load(starts + batch) + rows
    new = (rows < tokens) & (rows < tl.load(counts + batch)) & (place >= 0) & (place < room)
    columns = tl.arange(0, BLOCK_D)
    inside = new[:, None] & (columns < D)[None, :]
    x += batch * x_batch + head * x_head
    out += batch * out_batch + head * out_head
    values = tl.load(x + rows[:, None] * x_stride + columns[None, :], mask=inside)
    tl.store(out + place[:, None] * out_stride + columns[None, :], values, mask=inside)
'''
)


@kv_append.kernel("gpu", legal=appends(None, 4), layouts=APPENDED, tokens=(4, 1, 16))
def _append(
    cfg: Config,
    target: Target,
    store: TensorType,
    x: TensorType,
    starts: TensorType,
    counts: TensorType,
) -> Launch:
    b, h, room, d = store.shape
    strides = {
        f"{name}_{what}": stride
        for name, type in (("x", x), ("out", cfg.out))
        for what, stride in zip(("batch", "head", "stride"), type.strides[:3], strict=True)
    }
    tensors = {"x": x, "starts": starts, "counts": counts, "out": cfg.out}
    return launch(
        SOURCE,
        "append_rows",
        grid=(b * h, ceil_div(x.shape[2], cfg.tokens)),
        **{name: Pointer(name, type.dtype) for name, type in tensors.items()},
        **{"heads": h, "tokens": x.shape[2], "room": room, **strides},
        **{"D": d, "BLOCK_D": power_of_two(d), "TOKENS": cfg.tokens},
    )


@kv_attention.kernel(
    "gpu", legal=on_gpu(kv_attention_legal), layouts=ATTENDED, out=by_token, **FLASH_SPACE
)
def _attention(
    cfg: Config,
    target: Target,
    q: TensorType,
    keys: TensorType,
    values: TensorType,
    starts: TensorType,
    *,
    scale: float,
    window: int,
    softcap: float,
) -> list[Launch]:
    names = ("q", "keys", "values", "")
    return attention_launches(
        cfg, target, q, keys, values, None, names, scale, True, window, None, starts, softcap
    )
