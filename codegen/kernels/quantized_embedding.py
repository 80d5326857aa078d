"""Rows, by index, of a table that is stored in few bits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from infopt.codegen.kernel import Call, Config, kernel_op
from infopt.codegen.kernels.rows import ELEMENT, as_rows, ceil_div, contiguous, dense_last, round_up
from infopt.codegen.weight_formats.formats import FORMATS, stored_format
from infopt.codegen.weight_formats.remainder import MOST_COLUMNS, added
from infopt.compiler.accuracy import Exact
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType

_ROWS = 16  # of one task


def _cases() -> Any:
    for name in ("int8", "int8-g32", "int4-g64"):
        for width in (96, 70):
            values, scales = FORMATS[name].encode(torch.randn(50, width))
            attrs = {"format": name, "width": width}
            yield (torch.randint(0, 50, (3, 7)), values, scales), attrs


@kernel_op(cases=_cases, tolerance=Exact())
def quantized_embedding(ids, values, scales, remainder=None, *, format, width, out=torch.float32):
    """decode(values, scales)[ids], in dtype `out`: only the rows asked for are decoded.

    ids           i32 or i64, any shape
    values, scales  a table [rows, width] in `format` (codegen/weight_formats/formats.py)
    remainder     what is added to the table: see codegen/weight_formats/remainder.py
    Raises IndexError where an id is not in the table.
    """
    flat = ids.reshape(-1)
    if remainder is not None:  # its rows can only be found from the first on
        table = added(stored_format(format).decode(values, scales, width), remainder)
        return F.embedding(ids, table).to(out)
    rows = stored_format(format).decode(F.embedding(flat, values), F.embedding(flat, scales), width)
    return rows.to(out).reshape(*ids.shape, width)


def stored_rows_legal(
    target: Target,
    ids: TensorType,
    values: TensorType,
    scales: TensorType,
    remainder: TensorType | None,
    **attrs: Any,
) -> str | None:
    if ids.dtype not in (torch.int64, torch.int32):
        return f"ids {ids}"
    if remainder is not None and attrs["width"] > MOST_COLUMNS:
        return f"a remainder of rows of {attrs['width']}"
    return None if attrs["out"] in (torch.float32, torch.bfloat16) else f"rows in {attrs['out']}"


TABLE_LAYOUTS = {
    "ids": contiguous,
    "values": dense_last,
    "scales": dense_last,
    "remainder": dense_last,
}


@quantized_embedding.kernel("cpu", legal=stored_rows_legal, layouts=TABLE_LAYOUTS)
def _quantized_embedding(
    cfg: Config,
    target: Target,
    ids: TensorType,
    values: TensorType,
    scales: TensorType,
    remainder: TensorType | None,
    *,
    format: str,
    width: int,
    out: torch.dtype,
) -> Call:
    rows, codec = as_rows(cfg.out), stored_format(format)
    assert rows is not None
    numbers = (
        ids.numel,
        width,
        _ROWS,
        values.shape[0],
        values.strides[0],
        rows.stride,
        ELEMENT[ids.dtype],
        ELEMENT[out],
        codec.layout,
        codec.group,
        scales.strides[0],
        codec.scale_dtype.itemsize,
    )
    return Call(
        "infopt_embedding_stored",
        ("ids", "values", "scales", "out", remainder and "remainder"),
        numbers,
        ceil_div(ids.numel, _ROWS),
        scratch=4 * (round_up(width, 64) + 64),
        error="IndexError: index out of range in self",
    )
