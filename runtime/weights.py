"""weights.safetensors: written with every tensor 64-byte aligned, read without a copy.

A tensor is stored as the memory it spans; dtype, shape and strides are the manifest's. Padding is
stored as tensors called "padding.<n>", since the format allows no holes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from infopt.runtime.context import extent
from infopt.runtime.errors import ArtifactCorrupt, PlanError
from infopt.runtime.plan_check import dtype_of
from infopt.runtime.records import load_json

ALIGNMENT = 64
_MAX_HEADER = 100_000_000
# By the name in the file; dtypes without one are stored as bytes.
_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1,
          "U8": 1, "BOOL": 1}  # fmt: skip


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
        entries[name] = _entry(_NAMES.get(x.dtype, "U8"), count, offset, offset + size)
        offset += size
        if rest := -offset % ALIGNMENT:
            entries[f"padding.{paddings}"] = _entry("U8", rest, offset, offset + rest)
            offset, paddings = offset + rest, paddings + 1
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % ALIGNMENT)
    yield len(header).to_bytes(8, "little") + header
    for x in tensors.values():
        raw = memory(x).view(torch.uint8)
        if raw.numel():
            yield raw.numpy().data
        yield bytes(-raw.numel() % ALIGNMENT)


def _entry(dtype: str, count: int, first: int, last: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [count], "data_offsets": [first, last]}


def read(data: torch.Tensor, records: Iterable[Stored]) -> list[torch.Tensor]:
    """The tensors over the file's bytes `data`. Raises ArtifactCorrupt for any inconsistency."""
    spans, start = _header(data)
    found = []
    for record in records:
        if record.name not in spans:
            raise ArtifactCorrupt(f"weights.safetensors: the tensor {record.name!r} is missing")
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
                f"weights.safetensors: {record.name!r} starts at byte {start + first}, expected a "
                f"multiple of {ALIGNMENT}"
            )
        flat = data[start + first : start + last].view(dtype)
        found.append(flat.as_strided(record.shape, record.strides, flat.storage_offset()))
    return found


def _header(data: torch.Tensor) -> tuple[dict[str, tuple[int, int]], int]:
    """The span of each tensor after `start`; no holes, no overlaps, sizes true."""
    size = data.numel()
    length = int.from_bytes(bytes(data[:8].tolist()), "little") if size >= 8 else _MAX_HEADER
    if 8 + length > size or length > _MAX_HEADER:
        raise ArtifactCorrupt("weights.safetensors: the header is longer than the file")
    try:
        header = load_json(bytes(data[8 : 8 + length].numpy()).decode())
    except (PlanError, UnicodeDecodeError) as error:
        raise ArtifactCorrupt(f"weights.safetensors: malformed header: {error}") from None
    if not isinstance(header, dict):
        raise ArtifactCorrupt("weights.safetensors: expected a JSON object as header")
    spans, end = {}, 0
    for name, entry in header.items():
        if not _is_entry(entry) or entry["data_offsets"][0] != end:
            raise ArtifactCorrupt(f"weights.safetensors: malformed entry {name!r}")
        first, end = entry["data_offsets"]
        if end - first != entry["shape"][0] * _BYTES[entry["dtype"]]:
            raise ArtifactCorrupt(f"weights.safetensors: wrong size of {name!r}")
        spans[name] = (first, end)
    if 8 + length + end != size:
        raise ArtifactCorrupt(
            f"weights.safetensors: expected {8 + length + end} bytes of data, found {size}"
        )
    return spans, 8 + length


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and set(entry) == {"dtype", "shape", "data_offsets"}
        and entry["dtype"] in _BYTES
        and _are_sizes(entry["shape"], 1)
        and _are_sizes(entry["data_offsets"], 2)
    )


def _are_sizes(value: Any, count: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == count
        and all(type(n) is int and 0 <= n < 2**62 for n in value)
    )


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
