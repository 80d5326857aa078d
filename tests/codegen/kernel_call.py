"""Call one installed kernel on torch tensors, at any instruction-set level of this machine."""

import ctypes
import struct
from collections.abc import Sequence
from functools import cache

import pytest
import torch

from infopt.codegen.build import prebuilt
from infopt.compiler.target import LEVELS, Target

DTYPE_CODES = {
    torch.float32: 0,
    torch.bfloat16: 1,
    torch.float16: 2,
    torch.float64: 3,
    torch.int64: 4,
    torch.int32: 5,
    torch.int16: 6,
    torch.int8: 7,
    torch.uint8: 8,
    torch.bool: 9,
}
FEATURES = Target.detect().features
RUNNABLE = [level for level in LEVELS if level in FEATURES]
GUARD = 64  # bytes after the declared scratch that a kernel must leave alone

every_level = pytest.mark.parametrize("level", RUNNABLE)


class Call(ctypes.Structure):
    _fields_ = [
        ("pointers", ctypes.POINTER(ctypes.c_void_p)),
        ("numbers", ctypes.POINTER(ctypes.c_int64)),
        ("scratch", ctypes.c_void_p),
    ]


@cache
def _library(level: str) -> ctypes.CDLL | None:
    path = prebuilt(level)
    return ctypes.CDLL(str(path)) if path else None


def call_kernel(
    level: str,
    name: str,
    tensors: Sequence[torch.Tensor | None],
    numbers: Sequence[int | float],
    tasks: int,
    scratch: int,
) -> None:
    """Run all tasks, in two ranges, with exactly `scratch` bytes of poisoned scratch memory."""
    library = _library(level)
    if library is None:
        pytest.skip(f"no kernels for {level}: no C++ compiler that knows it")
    kernel = getattr(library, name)
    kernel.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
    kernel.restype = None
    memory = torch.full((scratch + GUARD + 64,), 0xFF, dtype=torch.uint8)  # NaN as floats
    start = -memory.data_ptr() % 64
    pointers = (ctypes.c_void_p * len(tensors))(
        *[None if t is None else t.data_ptr() for t in tensors]
    )
    words = (ctypes.c_int64 * len(numbers))(
        *[
            struct.unpack("<q", struct.pack("<d", n))[0] if isinstance(n, float) else int(n)
            for n in numbers
        ]
    )
    call = Call(pointers, words, memory.data_ptr() + start)
    middle = tasks // 3
    for first, last in ((0, middle), (middle, tasks)):
        kernel(ctypes.addressof(call), first, last)
    guard = memory[start + scratch : start + scratch + GUARD]
    assert bool((guard == 0xFF).all()), f"{name} wrote past its {scratch} bytes of scratch"


def panels(x: torch.Tensor) -> torch.Tensor:
    """The token panels of a matrix [M, K], as docs/architecture.md lays them out."""
    rows, width = x.shape
    count, pairs = -(-rows // 16), 1 if x.dtype == torch.float32 else 2
    padded = x.new_zeros(count * 16, -(-width // pairs) * pairs)
    padded[:rows, :width] = x
    if pairs == 1:
        return padded.view(count, 16, -1).transpose(1, 2).contiguous()
    return padded.view(count, 16, -1, 2).transpose(1, 2).contiguous()


def poisoned(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """An output that shows every element that was not written: NaN, or an odd integer."""
    if dtype.is_floating_point:
        return torch.full(tuple(shape), float("nan"), dtype=dtype)
    return torch.full(tuple(shape), True if dtype == torch.bool else 77, dtype=dtype)
