"""The same bytes from every run, process and number of threads."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import infopt

RUNS = 20


class Model(torch.nn.Module):
    """Products, attention, norms, sums over rows and columns, and a generated region."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = torch.nn.Linear(64, 192), torch.nn.Linear(64, 64)
        self.norm = torch.nn.LayerNorm(64)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v = self.qkv(self.norm(x)).view(*x.shape[:2], 3, 4, 16).permute(2, 0, 3, 1, 4)
        seen = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        y = x + torch.sin(self.out(seen.transpose(1, 2).flatten(2))) * 1.25
        return y, y.sum(0), y.mean((0, 1)), torch.softmax(y, -1)


def digest(threads: int, dtype: torch.dtype) -> str:
    """Of all bytes of all runs; raises where two runs differ."""
    torch.manual_seed(0)
    model = Model().eval().requires_grad_(False).to(dtype)
    x = torch.randn(5, 37, 64).to(dtype)
    compiled = infopt.compile(model, (x,), threads=threads, strict=True)
    runs = {
        b"".join(y.view(torch.uint8).numpy().tobytes() for y in compiled(x)) for _ in range(RUNS)
    }
    (only,) = runs
    return hashlib.sha256(only).hexdigest()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_threads_do_not_matter(dtype: torch.dtype) -> None:
    assert len({digest(threads, dtype) for threads in (1, 2, 3, 7)}) == 1


def test_processes_do_not_matter() -> None:
    own = digest(2, torch.float32)
    code = (
        "import importlib.util as u, sys, torch\n"
        "spec = u.spec_from_file_location('determinism', sys.argv[1])\n"
        "module = u.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "print(module.digest(3, torch.float32))\n"
    )
    for seed in ("1",):
        done = subprocess.run(
            [sys.executable, "-c", code, str(Path(__file__))],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        )
        assert done.stdout.strip() == own, done.stderr
