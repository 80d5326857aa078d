"""Tensors that are held as torchao 0.18 holds its own, for tests without torchao."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch


class Int8Tensor(torch.Tensor):
    """A matrix in integers: qdata * scale, as far as reading its attributes goes."""

    @staticmethod
    def __new__(cls, qdata: torch.Tensor, scale: torch.Tensor, **held: Any) -> torch.Tensor:
        dtype = held.pop("dtype", torch.float32)
        return torch.Tensor._make_wrapper_subclass(cls, qdata.shape, dtype=dtype)

    def __init__(self, qdata: torch.Tensor, scale: torch.Tensor, **held: Any) -> None:
        held.pop("dtype", None)
        held.setdefault("block_size", (1, qdata.shape[-1]))
        self.__dict__.update({"qdata": qdata, "scale": scale, **held})

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["qdata", "scale"], None

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.ops.aten.detach.default:
            return args[0]
        raise AssertionError(f"{function} was called on integers")


class IntxUnpackedToInt8Tensor(Int8Tensor): ...


class Float8Tensor(Int8Tensor): ...


for kind in (Int8Tensor, IntxUnpackedToInt8Tensor, Float8Tensor):
    kind.__module__ = "torchao.stand_in"


def dynamic(mapping: str, reduced: bool = False, granularity: str = "PerRow") -> Any:
    """How Int8Tensor says that its layers round their rows."""
    return SimpleNamespace(
        granularity=type(granularity, (), {})(),
        mapping_type=SimpleNamespace(name=mapping),
        reduce_range=reduced,
    )
