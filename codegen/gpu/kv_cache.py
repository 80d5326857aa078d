"""The cache of keys and values on a GPU: new rows go to their places, attention reads it there."""

from __future__ import annotations

from infopt.codegen.gpu.attention import FLASH_SPACE, attention_launches, on_gpu
from infopt.codegen.gpu.kv_stores import append_launch
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
from infopt.codegen.launch import Launch
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType


@kv_append.kernel("gpu", legal=appends(None, 4), layouts=APPENDED, tokens=(4, 1, 16))
def _append(
    cfg: Config,
    target: Target,
    store: TensorType,
    x: TensorType,
    starts: TensorType,
    counts: TensorType,
) -> Launch:
    return append_launch(cfg, store, x, cfg.tokens, None, 0)


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
