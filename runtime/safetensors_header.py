"""The header of a safetensors file, read strictly: what it names fills the file, in order.

https://github.com/huggingface/safetensors: 8 bytes with the header's length, the header as JSON,
then the data.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from infopt.runtime.errors import ArtifactCorrupt, PlanError
from infopt.runtime.records import load_json

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1,
         "U8": 1, "BOOL": 1}  # fmt: skip
Spans = dict[str, tuple[int, int]]


def entry(dtype: str, count: int, first: int, last: int) -> dict[str, Any]:
    """A flat tensor of `count` elements at these bytes of the data."""
    return {"dtype": dtype, "shape": [count], "data_offsets": [first, last]}


def render(entries: dict[str, Any], alignment: int) -> bytes:
    """The bytes before the data, so many that the data begins at a multiple of `alignment`."""
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % alignment)
    return len(header).to_bytes(8, "little") + header


def parse(
    read: Callable[[int, int], bytes], size: int, name: str, longest: int
) -> tuple[Spans, int]:
    """The bytes of each tensor, counted from the data's start; and that start.

    read: (first, last) -> bytes of the file, which has `size` of them and is called `name` in
    messages. Raises ArtifactCorrupt for holes, overlaps, sizes that are not true, a header of more
    than `longest` bytes.
    """
    length = int.from_bytes(read(0, 8), "little") if size >= 8 else longest
    if 8 + length > size or length > longest:
        raise ArtifactCorrupt(f"{name}: the header is longer than the file")
    try:
        header = load_json(read(8, 8 + length).decode())
    except (PlanError, UnicodeDecodeError) as error:
        raise ArtifactCorrupt(f"{name}: malformed header: {error}") from None
    if not isinstance(header, dict):
        raise ArtifactCorrupt(f"{name}: expected a JSON object as header")
    spans, end = {}, 0
    for key, found in header.items():
        if not _is_entry(found) or found["data_offsets"][0] != end:
            raise ArtifactCorrupt(f"{name}: malformed entry {key!r}")
        first, end = found["data_offsets"]
        if end - first != found["shape"][0] * BYTES[found["dtype"]]:
            raise ArtifactCorrupt(f"{name}: wrong size of {key!r}")
        spans[key] = (first, end)
    if 8 + length + end != size:
        raise ArtifactCorrupt(f"{name}: expected {8 + length + end} bytes of data, found {size}")
    return spans, 8 + length


def _is_entry(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"dtype", "shape", "data_offsets"}
        and value["dtype"] in BYTES
        and _are_sizes(value["shape"], 1)
        and _are_sizes(value["data_offsets"], 2)
    )


def _are_sizes(value: Any, count: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == count
        and all(type(n) is int and 0 <= n < 2**62 for n in value)
    )
