"""Group norm: statistics over the channels of a group and all their places."""

from __future__ import annotations

from typing import Any

from torch.utils._sympy.functions import FloorDiv

from infopt.codegen.kernel import Call, Config, aten_kernel
from infopt.codegen.kernels.rows import ELEMENT, FLOATS, contiguous
from infopt.codegen.sizes import product
from infopt.compiler.target import Target
from infopt.compiler.types import Size, TensorType

_CONTIGUOUS = dict.fromkeys(("input", "weight", "bias"), contiguous)


def group_norm_legal(
    target: Target, x: TensorType, weight: Any, bias: Any, *, num_groups: int, **attrs: Any
) -> str | None:
    if x.dtype not in FLOATS:
        return f"x is {x}"
    given = [w for w in (weight, bias) if w is not None]
    if any(w.dtype not in FLOATS or w.dtype != given[0].dtype for w in given):
        return f"weights {', '.join(map(str, given))}"
    return None


@aten_kernel("group_norm.default", legal=group_norm_legal, layouts=_CONTIGUOUS)
def _group_norm(
    cfg: Config,
    target: Target,
    x: TensorType,
    weight: Any,
    bias: Any,
    *,
    num_groups: int,
    eps: float,
    cudnn_enabled: bool,
) -> Call:
    channels = x.shape[1]
    numbers: tuple[Size | float, ...] = (
        channels // num_groups if isinstance(channels, int) else FloorDiv(channels, num_groups),
        product(x.shape[2:]),
        num_groups,
        float(eps),
        ELEMENT[x.dtype],
        ELEMENT[(weight or bias or x).dtype],
    )
    pointers = ("input", weight and "weight", bias and "bias", "out")
    return Call("infopt_group_norm", pointers, numbers, product((x.shape[0], num_groups)))
