"""What callers see of a traced program: results, whose memory they lie in, inputs written to."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import fx

from infopt.compiler.errors import TraceDeclined
from infopt.compiler.graph import Node
from infopt.compiler.tracing.functionalize import Values
from infopt.compiler.types import Size, TensorType, as_size

aten = torch.ops.aten

# Ops that hand back their very input outside training; tracing shows a fresh tensor instead.
IDENTITY_IN_EVAL = {
    aten.dropout.default: "train",
    aten.feature_dropout.default: "train",
    aten.alpha_dropout.default: "train",
    aten.feature_alpha_dropout.default: "train",
}


@dataclass(frozen=True)
class Results:
    """What the values are at the end of a program.

    plain: those that are numbers. sources, inputs: the placeholders that are tensors, in fx and in
    the graph
    """

    values: Values
    plain: Collection[fx.Node]
    sources: list[fx.Node]
    inputs: list[Node]

    def is_tensor(self, item: Any) -> TypeGuard[fx.Node]:
        return isinstance(item, fx.Node) and item not in self.plain

    def updates(self) -> list[tuple[int, Node]]:
        """(position, value) of every input that the program wrote to."""
        found = []
        for index, source in enumerate(self.sources):
            storage = self.values.storage(source)
            if storage is not None and storage.base is source and storage.version:
                if _overlaps_itself(TensorType.of(source.meta["val"])):
                    raise TraceDeclined(f"{source.name}, which is written to, may overlap itself")
                found.append((index, self.values.read(source)))
        keys = [self.values.key(i) for i in self.sources]
        if found and len(set(keys)) != len(keys):
            raise TraceDeclined("two inputs share memory and one of them is written to")
        return found

    def value(self, item: fx.Node, updates: list[tuple[int, Node]]) -> Node:
        """A result: the very input where the caller gets that back, though it was written to."""
        if item.meta["val"].is_conj() or item.meta["val"].is_neg():
            raise TraceDeclined(f"the result {item.name} is a lazily conjugated view")
        key = self.values.key(item)
        for index, _ in updates:
            source = self.sources[index]
            if self.values.key(source) == key and _same_view(item, source):
                return self.inputs[index]
        return self.values.read(item)

    def memory(self, results: list[Any]) -> tuple[int | str | None, ...]:
        """Whose memory each result lies in, see Graph."""
        owners: dict[int | None, int | str] = {
            self.values.key(source): node.attr("name")
            for source, node in reversed(list(zip(self.sources, self.inputs, strict=True)))
        }
        names = dict(zip(self.sources, self.inputs, strict=True))

        def owner(item: Any) -> int | str | None:
            if not self.is_tensor(item):
                return None
            # two inputs may share memory: the one that this result is read from
            root = self.root(item)
            if root in names:
                return str(names[root].attr("name"))
            return owners.setdefault(self.values.key(item), len(owners))

        return tuple(owner(item) for item in results)

    def root(self, node: fx.Node) -> fx.Node:
        """The value that a view, a view of a view .. is read from.

        Raises TraceDeclined where tracing saw a copy in torch's place of the very same tensor.
        """
        while True:
            view = self.values.views.get(node)
            parent = view.parent if view is not None else node.args[0] if node.args else None
            if not isinstance(parent, fx.Node) or not self.values.shares_memory(node, parent):
                return node
            if node.target in IDENTITY_IN_EVAL and not _same_view(node, parent):
                raise TraceDeclined(f"{node.target}: tracing gives it other strides than torch")
            node = parent

    def offset(self, item: Any) -> Size:
        """Where in new memory, or from the begin of the input that it lies in, a result begins."""
        if not self.is_tensor(item):
            return 0
        value, root = item.meta["val"], self.root(item)
        offset = as_size(value.storage_offset())
        if root not in self.sources:
            return offset
        source = root.meta["val"]
        first = as_size(source.storage_offset())
        if first != 0 and source.dtype.itemsize != value.dtype.itemsize:
            raise TraceDeclined(f"the result {item.name} is a view of a part, in another dtype")
        return offset - first


def _overlaps_itself(type: TensorType) -> bool:
    """Whether two elements may lie in one place: a step of 0, or one within another's span."""
    steps = [(s, n) for n, s in zip(type.shape, type.strides, strict=True) if n != 1]
    if any(s == 0 for s, _ in steps):
        return True
    if not all(isinstance(s, int) and isinstance(n, int) for s, n in steps) or 0 in type.shape:
        return False
    span = 0
    for step, size in sorted(steps):  # type: ignore[type-var]
        if step <= span:
            return True
        span += step * (size - 1)
    return False


def _same_view(item: fx.Node, source: fx.Node) -> bool:
    a, b = TensorType.of(item.meta["val"]), TensorType.of(source.meta["val"])
    offsets = [as_size(n.meta["val"].storage_offset()) for n in (item, source)]
    return (a.shape, a.strides, a.dtype) == (b.shape, b.strides, b.dtype) and offsets[0] == offsets[
        1
    ]
