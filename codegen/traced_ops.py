"""Kernel ops as torch operators, `torch.ops.infopt.*`, so that a module that calls them can be
traced; in the graph they become the kernel ops that they stand for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from infopt.codegen.kernel import KernelOp
from infopt.codegen.kernels.attention_received import attention_received
from infopt.codegen.kernels.kv_cache import (
    kv_append,
    kv_append_int8,
    kv_attention,
    kv_attention_int8,
)
from infopt.codegen.kernels.kv_int4 import kv_append_int4, kv_attention_int4
from infopt.codegen.kernels.kv_paged import kv_append_paged, kv_attention_paged
from infopt.codegen.kernels.kv_parts import attention_part, kv_attention_pages
from infopt.codegen.kernels.kv_slots import kv_read, kv_write, top_places
from infopt.compiler.exchange import exchange
from infopt.compiler.graph import Graph
from infopt.compiler.infer import Builder

_LIBRARY = torch.library.Library("infopt", "FRAGMENT")
_OPS: dict[str, KernelOp] = {}


def _declare(op: KernelOp, schema: str, fake) -> None:
    """schema: the arguments in the order of the op's; fake: gives a result of the right type."""
    name = op.name
    _LIBRARY.define(f"{name}{schema}", tags=[torch.Tag.pt2_compliant_tag])
    _LIBRARY.impl(name, op.reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"infopt::{name}", fake, lib=_LIBRARY)
    _OPS[f"infopt.{name}.default"] = op


def _like_store(store: Tensor, *_: Tensor, **__: object) -> Tensor:
    return torch.empty_like(store)


def _like_queries(q: Tensor, keys: Tensor, values: Tensor, *_: Tensor, **__: object) -> Tensor:
    return q.new_empty((*q.shape[:3], values.shape[3]))


def _like_queries_int8(
    q: Tensor, keys: Tensor, values: Tensor, starts: Tensor, **_: object
) -> Tensor:
    return q.new_empty((*q.shape[:3], values.shape[3] - 4))


def _like_queries_of_width(q: Tensor, *_: Tensor, width: int, **__: object) -> Tensor:
    return q.new_empty((*q.shape[:3], width))


_APPEND = "(Tensor store, Tensor x, Tensor starts, Tensor counts) -> Tensor"
_ATTENTION = (
    "(Tensor q, Tensor keys, Tensor values, Tensor starts, *, float scale, int window=0, "
    "float softcap=0.0) -> Tensor"
)
_declare(kv_append, _APPEND, _like_store)
_declare(kv_append_int8, _APPEND, _like_store)
_declare(kv_attention, _ATTENTION, _like_queries)
_declare(kv_attention_int8, _ATTENTION, _like_queries_int8)
_declare(
    kv_append_int4,
    "(Tensor store, Tensor x, Tensor starts, Tensor counts, *, bool per_token) -> Tensor",
    _like_store,
)
_declare(
    kv_attention_int4,
    "(Tensor q, Tensor keys, Tensor values, Tensor starts, Tensor counts, *, float scale, "
    "int width, int window=0, float softcap=0.0) -> Tensor",
    _like_queries_of_width,
)
_declare(
    kv_append_paged,
    "(Tensor store, Tensor x, Tensor starts, Tensor counts, Tensor table, *, int page) -> Tensor",
    _like_store,
)
_declare(
    kv_attention_paged,
    "(Tensor q, Tensor keys, Tensor values, Tensor starts, Tensor table, *, float scale, int page, "
    "int window=0, float softcap=0.0) -> Tensor",
    lambda q, keys, values, *_, **__: q.new_empty(
        (*q.shape[:3], values.shape[3] - 4 * (values.dtype is torch.int8))
    ),
)
_declare(kv_write, "(Tensor store, Tensor x, Tensor places) -> Tensor", _like_store)
_declare(
    kv_read,
    "(Tensor store, Tensor places) -> Tensor",
    lambda store, places: store.new_empty((*places.shape, store.shape[3])),
)
_declare(
    top_places,
    "(Tensor scores, *, int count, bool by_place) -> Tensor",
    lambda scores, count, **_: scores.new_empty((*scores.shape[:-1], count), dtype=torch.int64),
)
_declare(
    kv_attention_pages,
    "(Tensor q, Tensor keys, Tensor values, Tensor starts, Tensor pages, *, float scale, int page, "
    "int window=0, float softcap=0.0) -> Tensor",
    _like_queries,
)
_declare(
    attention_part,
    "(Tensor q, Tensor k, Tensor v, Tensor? mask=None, *, float scale) -> (Tensor, Tensor)",
    lambda q, k, v, mask=None, **_: (
        q.new_empty((*q.shape[:3], v.shape[3])),
        q.new_empty(q.shape[:3], dtype=torch.float32),
    ),
)
_declare(
    attention_received,
    "(Tensor q, Tensor k, Tensor? bias=None, *, float scale) -> Tensor",
    lambda q, k, bias=None, **_: q.new_empty((*q.shape[:2], k.shape[2]), dtype=torch.float32),
)


def adopt_kernel_ops(graph: Graph) -> Graph:
    """The graph with torch's names of kernel ops exchanged for the kernel ops."""
    o = Builder(graph.dims)
    changes = {
        node: o.call(_OPS[node.op.name], *node.args, **dict(node.attrs))
        for node in graph.nodes()
        if node.op.name in _OPS
    }
    return exchange(graph, changes, o) if changes else graph
