"""What a weight becomes in a format, as an op of torch: for formats that no short expression makes,
so that tables are found again when a program is given new weights."""

from __future__ import annotations

import torch

from infopt.codegen.weight_formats.weight_format import weight_format


@torch.library.custom_op("infopt::stored_weight", mutates_args=())
def stored_weight(weight: torch.Tensor, format: str) -> list[torch.Tensor]:
    """Values, scales and row sums of a weight [N, K], and the remainder if the format has one."""
    *parts, _ = weight_format(format).store(weight)
    return [part for part in parts if part is not None]


@stored_weight.register_fake
def _(weight: torch.Tensor, format: str) -> list[torch.Tensor]:
    types = weight_format(format).types(*weight.shape)
    return [weight.new_empty(shape, dtype=dtype) for shape, dtype in types.values()]
