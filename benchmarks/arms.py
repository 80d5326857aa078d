"""The ways to run a model that are compared: each turns a float32 module into a callable of one
precision.
"""

from __future__ import annotations

from benchmarks.arm import Arm
from benchmarks.arms_float import ARMS_FLOAT
from benchmarks.arms_int8 import ARMS_INT8

ARMS: tuple[Arm, ...] = (*ARMS_FLOAT, *ARMS_INT8)


def arm(name: str, dtype: str) -> Arm:
    """The arm of that name and precision; raises KeyError."""
    for found in ARMS:
        if (found.name, found.dtype) == (name, dtype):
            return found
    raise KeyError(f"no arm {name} in {dtype}; known: {sorted({(a.name, a.dtype) for a in ARMS})}")
