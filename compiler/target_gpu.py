"""The GPUs there are rows for: what each can do, and its limits, from public datasheets.

Peaks are dense (no sparsity), at boost clock; they rank choices, nothing is measured here. Sources:
NVIDIA A100, H100, H200 and B200 datasheets and the CUDA programming guide's table of compute
capabilities (shared memory, multiprocessors' limits); AMD's MI300X datasheet and CDNA3 white paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

# Seconds from one kernel's start to the next in a stream that is kept filled; in a captured graph
# about half of it.
LAUNCH_COST = 2.5e-6


@dataclass(frozen=True)
class Gpu:
    """One architecture, in the numbers of its largest common product.

    platform       "cuda" or "hip"
    product        the datasheet the limits are from
    features       what kernels may ask for with `Target.lacks`
    multiprocessors  SMs, or compute units
    shared         bytes of shared memory that one block may have
    cache          bytes of the (L1 and shared memory of one SM, L2, last level)
    peak           dtype name -> TFLOP/s
    bandwidth      GB/s of device memory
    clock          GHz at which the peaks are reached
    """

    platform: str
    arch: str
    product: str
    features: tuple[str, ...]
    multiprocessors: int
    shared: int
    cache: tuple[int, int, int]
    peak: Mapping[str, float] = field(hash=False)
    bandwidth: float
    clock: float
    warp: int = 32
    registers: int = 65536  # of one multiprocessor, 32 bits each
    threads: int = 2048  # of one multiprocessor
    blocks: int = 32  # of one multiprocessor

    @property
    def name(self) -> str:
        return f"{self.platform}:{self.arch}"


_SM80 = ("cuda", "sm80", "bf16", "async_copy")
_SM90 = (*_SM80, "sm90", "fp8", "descriptors")

ROWS: Mapping[str, Gpu] = {
    row.name: row
    for row in (
        Gpu(
            "cuda",
            "sm80",
            "A100 SXM 80 GB",
            _SM80,
            108,
            163 << 10,
            (192 << 10, 40 << 20, 40 << 20),
            {"f32": 19.5, "f64": 9.7, "tf32": 156, "bf16": 312, "f16": 312, "i8": 624},
            2039.0,
            1.41,
        ),
        Gpu(
            "cuda",
            "sm90",
            "H100 SXM",
            (*_SM90, "wgmma"),
            132,
            227 << 10,
            (256 << 10, 50 << 20, 50 << 20),
            {
                **{"f32": 67, "f64": 34, "tf32": 495, "bf16": 989, "f16": 989},
                **{"fp8": 1979, "i8": 1979},
            },
            3352.0,
            1.83,
        ),
        Gpu(
            "cuda",
            "sm100",
            "B200",
            (*_SM90, "sm100", "tcgen05"),
            148,
            227 << 10,
            (256 << 10, 126 << 20, 126 << 20),
            {
                **{"f32": 75, "f64": 37, "tf32": 1100, "bf16": 2250, "f16": 2250},
                **{"fp8": 4500, "i8": 4500},
            },
            8000.0,
            1.85,
        ),
        Gpu(
            "hip",
            "gfx942",
            "MI300X",
            ("hip", "gfx942", "bf16", "fp8"),
            304,
            64 << 10,
            (96 << 10, 4 << 20, 256 << 20),
            {
                **{"f32": 163, "f64": 82, "tf32": 654, "bf16": 1307, "f16": 1307},
                **{"fp8": 2615, "i8": 2615},
            },
            5300.0,
            2.1,
            warp=64,
            registers=131072,
        ),
    )
}
# Products of a row's architecture that differ from it: part of the device's name -> what differs.
_PRODUCTS: Mapping[str, Mapping[str, object]] = {
    "H200": {"product": "H200 SXM", "bandwidth": 4800.0},
    "A100-SXM4-40GB": {"product": "A100 SXM 40 GB", "bandwidth": 1555.0},
}


def row_of(platform: str, arch: str) -> Gpu | None:
    """The row of an architecture ("sm90"), or of the nearest older one whose code it runs."""
    if (found := ROWS.get(f"{platform}:{arch}")) is not None:
        return found
    same_major = {"sm86": "sm80", "sm87": "sm80", "sm89": "sm80", "sm103": "sm100"}
    return ROWS.get(f"{platform}:{same_major.get(arch, arch)}")


def as_product(row: Gpu, name: str, multiprocessors: int) -> Gpu:
    """The row with what is known of the very device that reports this name."""
    known = next((v for part, v in _PRODUCTS.items() if part in name), {})
    return replace(row, multiprocessors=multiprocessors, **known)  # type: ignore[arg-type]
