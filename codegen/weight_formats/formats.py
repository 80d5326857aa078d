"""Formats of stored weights: what a matrix becomes in memory, and which matrix that stands for.

One declaration per format: encode, reference decode, layout, bytes. A weight [N, K] becomes

    values   the integers, see the format
    scales   [N, groups]: one factor for each run of `group` neighbours along K, or for a row

and stands for  decode(values, scales, K)[n, k] = integer[n, k] * scales[n, k // group].
"""

from __future__ import annotations

import re
from functools import cache

import torch

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
    )
}

_NAME = re.compile(r"int(8|4)-g([0-9]+)(-f32)?")


@cache
def stored_format(name: str) -> Integers:
    """The format of that name: one of FORMATS, or one that `format_of` found.

    Raises KeyError for other names.
    """
    found = _NAME.fullmatch(name)
    if name in FORMATS or not found:
        return FORMATS[name]
    return Integers(int(found[1]), int(found[2]), bool(found[3]))


def format_of(integers: torch.Tensor, scales: torch.Tensor) -> tuple[Integers, torch.Tensor] | str:
    """The least format that holds integers int8 [N, K] with factors [N, groups] as they are, and
    the factors [N, its groups] in it; or the reason why there is none."""
    k, groups = integers.shape[1], scales.shape[1]
    narrow = bool((integers >= -8).all()) and bool((integers <= 7).all())
    if groups == 1 and not narrow:
        return FORMATS["int8"], scales.float()
    run = _GROUP if groups == 1 else k // groups
    group = min(run & -run, _GROUP)
    if group < _LEAST_GROUP:
        return f"a factor for every {run} weights, expected a multiple of {_LEAST_GROUP}"
    factors = scales.float()
    wide = not torch.equal(factors.bfloat16().float(), factors)
    codec = Integers(4 if narrow else 8, group, wide)
    return codec, codec.factors_of(scales, k)
