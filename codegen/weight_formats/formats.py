"""Formats of stored weights: what a matrix becomes in memory, and which matrix that stands for.

One declaration per format: encode, reference decode, layout, bytes. A weight [N, K] becomes

    values   the integers, or floats of 8 bits, see the format
    scales   [N, groups]: one factor for each run of `group` neighbours along K, or for a row

and stands for  decode(values, scales, K)[n, k] = integer[n, k] * scales[n, k // group].
"""

from __future__ import annotations

import re
from functools import cache

import torch

from infopt.codegen.weight_formats.floats import KINDS, Floats
from infopt.codegen.weight_formats.integers import Integers
from infopt.codegen.weight_formats.lookup import Lookup

_LEAST_GROUP, _GROUP = 32, 128  # what kernels take, and what a row is cut into

FORMATS = {
    f.name: f
    for f in (
        Integers(8),
        Integers(8, 32),
        Integers(8, 64),
        Integers(8, 128),
        Integers(4, 32),
        Integers(4, 64),
        Integers(4, 128),
        Lookup(4),
        Lookup(4, 64),
        Lookup(4, 128),
        Lookup(3),
        Lookup(3, 64),
        Lookup(3, 128),
        *(Floats(8, group, kind=kind) for kind in KINDS for group in (0, 32, 64, 128)),
    )
}

_NAME = re.compile(r"(int8|int4|fp8-e4m3|fp8-e5m2)-g([0-9]+)(-f32)?")


@cache
def stored_format(name: str) -> Integers:
    """The format of that name: one of FORMATS, or one that `format_of` found.

    Raises KeyError for other names.
    """
    found = _NAME.fullmatch(name)
    if name in FORMATS or not found:
        return FORMATS[name]
    kind, group, wide = found[1], int(found[2]), bool(found[3])
    if kind.startswith("fp8"):
        return Floats(8, group, wide, kind.removeprefix("fp8-"))
    return Integers(int(kind.removeprefix("int")), group, wide)


def format_of(integers: torch.Tensor, scales: torch.Tensor) -> tuple[Integers, torch.Tensor] | str:
    """The least format that holds integers int8 [N, K], or floats of 8 bits, with factors
    [N, groups] as they are, and the factors [N, its groups] in it; or the reason why there is
    none."""
    k, groups = integers.shape[1], scales.shape[1]
    kind = next((name for name, dtype in KINDS.items() if dtype is integers.dtype), None)
    if kind and not integers.float().isfinite().all():
        return f"{integers.dtype} that are not finite"
    narrow = not kind and bool((integers >= -8).all()) and bool((integers <= 7).all())
    if groups == 1 and not narrow:
        return FORMATS[f"fp8-{kind}" if kind else "int8"], scales.float()
    run = _GROUP if groups == 1 else k // groups
    group = min(run & -run, _GROUP)
    if group < _LEAST_GROUP:
        return f"a factor for every {run} weights, expected a multiple of {_LEAST_GROUP}"
    factors = scales.float()
    wide = not torch.equal(factors.bfloat16().float(), factors)
    bits = 4 if narrow else 8
    codec = Floats(bits, group, wide, kind) if kind else Integers(bits, group, wide)
    return codec, codec.factors_of(scales, k)
