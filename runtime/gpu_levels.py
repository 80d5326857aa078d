"""The GPU architectures that artifacts hold machine code for, and which of them a GPU runs."""

from __future__ import annotations

from infopt.runtime.cuda_device import Gpu

# level -> further architectures of its platform that run its code, if not as fast as their own
GPU_LEVELS: dict[str, tuple[str, ...]] = {
    "sm80": ("sm86", "sm87", "sm89"),
    "sm90": (),  # its matrix instructions are its own
    "sm100": (),
    "gfx942": (),
}


def fits(level: str, arch: str) -> str | None:
    """None where a GPU of this architecture runs a level's code as its own, else the reason why
    not, or why it runs slower (`runs` tells which)."""
    if level == arch:
        return None
    if arch in GPU_LEVELS[level]:
        return f"made for {level}, the GPU is {arch}"
    return f"needs a GPU {level}, found {arch}"


def runs(level: str, arch: str) -> bool:
    """Whether a GPU of this architecture runs a level's code at all."""
    return level == arch or arch in GPU_LEVELS[level]


def gpu_for(level: str, gpus: tuple[Gpu, ...]) -> Gpu | None:
    """The first GPU that runs a level's code."""
    return next((gpu for gpu in gpus if runs(level, gpu.arch)), None)
