"""The cache in pages on a GPU: a table says where each sequence's keys lie."""

from __future__ import annotations

from typing import Any

import torch

from infopt.codegen.gpu.kv_stores import append_launch, attention_launches, unreadable
from infopt.codegen.kernel import Config
from infopt.codegen.kernels.kv_cache import APPENDED, ATTENDED_WHOLE, FACTOR_BYTES
from infopt.codegen.kernels.kv_paged import (
    append_paged_legal,
    attention_paged_legal,
    by_token_paged,
    kv_append_paged,
    kv_attention_paged,
)
from infopt.codegen.kernels.rows import contiguous
from infopt.codegen.launch import Launch
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType


def _appends(
    target: Target, store: TensorType, x: TensorType, *rest: Any, **attrs: Any
) -> str | None:
    reason = append_paged_legal(target, store, x, *rest, **attrs)
    return reason or unreadable(store.dtype is torch.int8, x.shape[3])


@kv_append_paged.kernel(
    "gpu", legal=_appends, layouts=APPENDED | {"table": contiguous}, tokens=(4, 1, 16)
)
def _append(
    cfg: Config,
    target: Target,
    store: TensorType,
    x: TensorType,
    starts: TensorType,
    counts: TensorType,
    table: TensorType,
    *,
    page: int,
) -> Launch:
    return append_launch(cfg, store, x, cfg.tokens, table, page)


def _attends(
    target: Target, q: TensorType, keys: TensorType, values: TensorType, *rest: Any, **attrs: Any
) -> str | None:
    reason = attention_paged_legal(target, q, keys, values, *rest, **attrs)
    in_bytes = keys.dtype is torch.int8
    return reason or unreadable(in_bytes, q.shape[3], values.shape[3] - FACTOR_BYTES * in_bytes)


@kv_attention_paged.kernel(
    "gpu",
    legal=_attends,
    layouts=ATTENDED_WHOLE | {"table": contiguous},
    out=by_token_paged,
)
def _attention(
    cfg: Config,
    target: Target,
    q: TensorType,
    keys: TensorType,
    values: TensorType,
    starts: TensorType,
    table: TensorType,
    **attrs: Any,
) -> list[Launch]:
    return attention_launches(cfg, target, q, keys, values, table, **attrs)
