"""A torch function as nodes: what it computes, over given nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from infopt.compiler.graph import Node
from infopt.compiler.infer import Builder
from infopt.compiler.tracing.trace import from_fx


def inlined(
    function: Callable[..., Sequence[torch.Tensor]], args: Sequence[Node], o: Builder
) -> tuple[Node, ...]:
    """The results of function(*args) as nodes of aten ops; args are nodes of fixed sizes.

    For recipes of constants (PassContext.derive), which are plain torch in artifacts too. Raises
    TraceDeclined where the function is not a pure tensor program.
    """
    mode = FakeTensorMode()
    with mode, torch.no_grad():
        fakes = [
            torch.empty_strided(n.shape, n.tensor_type.strides, dtype=n.dtype)  # type: ignore[arg-type]
            for n in args
        ]
        graph = from_fx(make_fx(function, pre_dispatch=True)(*fakes))
    images: dict[Node, Node] = dict(zip(graph.inputs, args, strict=True))

    def image(arg: Any) -> Any:
        if isinstance(arg, tuple):
            return tuple(map(image, arg))
        return None if arg is None else images[arg]

    for node in graph.nodes():
        if node not in images:
            images[node] = o.rebuild(node, image(node.args)) if node.args else node
    return tuple(images[n] for n in graph.outputs if isinstance(n, Node))
