"""The small model that the robustness runs compile, and a cache of their own."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


class Subject(torch.nn.Module):
    """Shipped kernels, a region of its own for every `salt`, and an operator that torch runs."""

    def __init__(self, salt: float = 1.0, aten: bool = False) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Linear(32, 48), torch.nn.Linear(48, 32)
        self.salt, self.aten = salt, aten

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.down(torch.sin(self.up(x)) * self.salt) + x.abs()
        return torch.renorm(y, 2, 0, 100.0) if self.aten else y


def subject(seed: int, salt: float = 1.0, aten: bool = False) -> Subject:
    """The model with the weights of this seed, for inference."""
    torch.manual_seed(seed)
    return Subject(salt, aten).eval().requires_grad_(False)


@contextmanager
def fresh_cache() -> Iterator[Path]:
    """INFOPT_CACHE names a folder that does not exist yet; it is removed in the end."""
    before = os.environ.get("INFOPT_CACHE")
    folder = Path(tempfile.mkdtemp(prefix="robustness-"))
    os.environ["INFOPT_CACHE"] = str(folder / "cache")
    try:
        yield folder / "cache"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if before is None:
            del os.environ["INFOPT_CACHE"]
        else:
            os.environ["INFOPT_CACHE"] = before
