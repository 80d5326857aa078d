"""The cache in bytes on a GPU: a factor behind each row, applied as the row is read."""

from __future__ import annotations

from typing import Any

import torch

from infopt.codegen.gpu.kv_stores import append_launch, attention_launches, unreadable
from infopt.codegen.kernel import Config
from infopt.codegen.kernels.kv_cache import (
    APPENDED,
    ATTENDED_WHOLE,
    FACTOR_BYTES,
    appends,
    attention_int8_legal,
    by_token_int8,
    kv_append_int8,
    kv_attention_int8,
)
from infopt.codegen.launch import Launch
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType

_in_bytes = appends(torch.int8, 4)


def _append_legal(
    target: Target, store: TensorType, x: TensorType, *rest: Any, **attrs: Any
) -> str | None:
    return _in_bytes(target, store, x) or unreadable(True, x.shape[3])


@kv_append_int8.kernel("gpu", legal=_append_legal, layouts=APPENDED, tokens=(4, 1, 16))
def _append(
    cfg: Config,
    target: Target,
    store: TensorType,
    x: TensorType,
    starts: TensorType,
    counts: TensorType,
) -> Launch:
    return append_launch(cfg, store, x, cfg.tokens, None, 0)


def _legal(
    target: Target, q: TensorType, keys: TensorType, values: TensorType, *rest: Any, **attrs: Any
) -> str | None:
    reason = attention_int8_legal(target, q, keys, values, *rest, **attrs)
    return reason or unreadable(True, q.shape[3], values.shape[3] - FACTOR_BYTES)


@kv_attention_int8.kernel(
    "gpu",
    legal=_legal,
    layouts=ATTENDED_WHOLE,
    out=by_token_int8,
)
def _attention(
    cfg: Config,
    target: Target,
    q: TensorType,
    keys: TensorType,
    values: TensorType,
    starts: TensorType,
    **attrs: Any,
) -> list[Launch]:
    return attention_launches(cfg, target, q, keys, values, None, page=0, **attrs)
