"""weights.safetensors: written with every tensor 64-byte aligned, read without a copy.

A tensor is stored as the memory it spans; dtype, shape and strides are the manifest's. Padding is
stored as tensors called "padding.<n>", since the format allows no holes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from infopt.runtime.context import extent
from infopt.runtime.errors import ArtifactCorrupt, PlanError
from infopt.runtime.plan_check import dtype_of
from infopt.runtime.safetensors_header import entry, parse, render

FILE = "weights.safetensors"
ALIGNMENT = 64
_MAX_HEADER = 100_000_000
# By the name in the file; dtypes without one are stored as bytes.
_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """How a tensor lies in the memory stored under `name`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def stored(name: str, x: torch.Tensor) -> Stored:
    """The record of a tensor. Raises PlanError for memory that is not on the CPU."""
    if x.device.type != "cpu" or x.layout is not torch.strided:
        found = f"{x.layout} on {x.device}"
        raise PlanError(f"weight {name!r}: expected a plain cpu tensor, found {found}")
    return Stored(name, str(x.dtype), tuple(x.shape), tuple(x.stride()))


def memory(x: torch.Tensor) -> torch.Tensor:
    """The elements `x` spans, as one flat tensor."""
    x = x.detach()
    return torch.as_strided(x, (extent(x.shape, x.stride()),), (1,), x.storage_offset())


def file_parts(tensors: Mapping[str, torch.Tensor]) -> Iterator[memoryview | bytes]:
    """The bytes of the file, piece by piece, without a copy of the weights."""
    entries: dict[str, Any] = {}
    offset = paddings = 0
    for name, x in tensors.items():
        if name.startswith("padding.") or name == "__metadata__":
            raise PlanError(f"a weight cannot be called {name!r}")
        size = extent(x.shape, x.stride()) * x.itemsize
        count = extent(x.shape, x.stride()) if x.dtype in _NAMES else size
        entries[name] = entry(_NAMES.get(x.dtype, "U8"), count, offset, offset + size)
        offset += size
        if rest := -offset % ALIGNMENT:
            entries[f"padding.{paddings}"] = entry("U8", rest, offset, offset + rest)
            offset, paddings = offset + rest, paddings + 1
    yield render(entries, ALIGNMENT)
    for x in tensors.values():
        raw = memory(x).view(torch.uint8)
        if raw.numel():
            yield raw.numpy().data
        yield bytes(-raw.numel() % ALIGNMENT)


def read(
    data: torch.Tensor, records: Iterable[Stored], part: Callable[[int, int], bytes]
) -> list[torch.Tensor]:
    """The tensors over the file's bytes `data`, of which nothing is read: the header is read by
    `part(first, last)`. Raises ArtifactCorrupt for any inconsistency."""
    spans, start = parse(part, len(data), FILE, _MAX_HEADER)
    found = []
    for record in records:
        if record.name not in spans:
            raise ArtifactCorrupt(f"{FILE}: the tensor {record.name!r} is missing")
        first, last = spans[record.name]
        dtype = dtype_of(record.dtype, record.name)
        if len(record.shape) != len(record.strides) or min((*record.shape, *record.strides, 0)) < 0:
            raise ArtifactCorrupt(f"weight {record.name!r}: malformed shape or strides")
        size = extent(record.shape, record.strides) * dtype.itemsize
        if size != last - first:
            raise ArtifactCorrupt(
                f"weight {record.name!r}: expected {size} bytes for "
                f"{record.dtype} {record.shape}, found {last - first}"
            )
        if (start + first) % ALIGNMENT:
            raise ArtifactCorrupt(
                f"{FILE}: {record.name!r} starts at byte {start + first}, expected a "
                f"multiple of {ALIGNMENT}"
            )
        flat = data[start + first : start + last].view(dtype)
        found.append(flat.as_strided(record.shape, record.strides, flat.storage_offset()))
    return found


def unique(tensors: Sequence[torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[Stored]]:
    """Names for tensors, the same memory stored once; and the record of each tensor."""
    by_memory: dict[tuple[int, int, torch.dtype], str] = {}
    kept: dict[str, torch.Tensor] = {}
    records = []
    for x in tensors:
        size = extent(x.shape, x.stride())
        key = (x.data_ptr(), size, x.dtype)
        name = by_memory.get(key) if size else None
        if name is None:
            name = by_memory[key] = f"tensor.{len(kept)}"
            kept[name] = x
        records.append(stored(name, x))
    return kept, records
