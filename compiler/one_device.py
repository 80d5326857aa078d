"""Which one device a program's tensors are on, and its constants brought to the CPU.

A graph says nothing of devices: its references run on CPU tensors, whatever the program runs on.
So passes that evaluate or measure do it there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from infopt.compiler.errors import TraceDeclined

CPU = torch.device("cpu")

# A copy on the CPU -> the tensor it was made of, so that a program uses that one again.
_originals: Any = WeakIdKeyDictionary()


def device_of(values: Iterable[Any]) -> torch.device:
    """The device of all tensors among `values`; the CPU without any. Raises TraceDeclined."""
    found = {v.device: None for v in values if isinstance(v, torch.Tensor)}
    if len(found) > 1:
        listed = ", ".join(map(str, found))
        raise TraceDeclined(f"tensors of several devices: {listed}; a program runs on one")
    return next(iter(found), CPU)


def on_cpu(value: Any) -> Any:
    """The same value, a tensor of a GPU as a copy on the CPU."""
    if not isinstance(value, torch.Tensor) or value.device == CPU:
        return value
    copy = value.detach().cpu()
    _originals[copy] = value.detach()
    return copy


def mapped(*groups: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], ...]:
    """`on_cpu` of tensors by name; what shares its memory and shape becomes one copy."""
    copies: dict[Any, torch.Tensor] = {}

    def copied(t: torch.Tensor) -> torch.Tensor:
        if t.device == CPU:
            return t
        key = (t.data_ptr(), t.dtype, tuple(t.shape), t.stride())
        if key not in copies:
            copies[key] = on_cpu(t)
        return copies[key]

    return tuple({n: copied(t) for n, t in group.items()} for group in groups)


def originals(tensors: Sequence[torch.Tensor], where: torch.device) -> list[torch.Tensor]:
    """The tensors on `where` that these were copied from, where that is so."""
    found = [_originals.get(t) for t in tensors]
    return [t if o is None or o.device != where else o for t, o in zip(tensors, found, strict=True)]
