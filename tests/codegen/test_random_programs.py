"""Random programs: chains of pointwise ops, views, reductions and kernels, against torch."""

import random

import pytest
import torch

from infopt.codegen.build import find_compiler
from infopt.codegen.load import lower_for, program
from infopt.compiler.target import LEVELS, Target
from tests.codegen.traced import compare, graph_of, program_of, target

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")


def unary(rng, x):
    return rng.choice(
        [
            lambda: x * 2 + 1,
            lambda: x.tanh(),
            lambda: x.relu(),
            lambda: -x,
            lambda: x.abs() + 0.5,
            lambda: x.sigmoid(),
            lambda: (x > 0).to(x.dtype),
            lambda: x.clamp(-1, 1),
            lambda: x * x,
            lambda: torch.where(x > 0.5, x, 0.25),
            lambda: x.masked_fill(x < 0, -1.0),
            lambda: x.clone(),
            lambda: x.bfloat16().float(),
            lambda: (x * 8).int().float() / 8,
        ]
    )()


def view(rng, x):
    if x.dim() == 0:
        return x.unsqueeze(0)
    a, b = rng.randrange(x.dim()), rng.randrange(x.dim())
    size = x.shape[a]
    return rng.choice(
        [
            lambda: x.transpose(a, b),
            lambda: x.unsqueeze(a),
            lambda: x.reshape(-1),
            lambda: x.flatten(min(a, b), max(a, b)),
            lambda: x.narrow(a, size // 3, size - size // 3),
            lambda: x.unsqueeze(a).expand(*x.shape[:a], 2, *x.shape[a:]),
            lambda: x.select(a, size // 2),
            lambda: x.transpose(a, b).contiguous(),
            lambda: x.flip(a),
            lambda: x.squeeze(),
            lambda: torch.cat([x, x * 0.5], a),
            lambda: torch.stack([x, x + 1], a),
            lambda: x.transpose(a, b).reshape(-1, x.shape[a]),
        ]
    )()


def heavy(rng, x):
    if x.dim() == 0:
        return x + 1
    d = rng.randrange(x.dim())
    return rng.choice(
        [
            lambda: x.mean(d),
            lambda: x.sum(d, keepdim=True) * 0.1,
            lambda: x.amax(d, keepdim=True),
            lambda: x.softmax(-1),
            lambda: x.cumsum(d) * 0.1,
            lambda: torch.layer_norm(x, x.shape[-1:]),
            lambda: (x.reshape(-1, x.shape[-1]) @ x.reshape(-1, x.shape[-1]).t()) * 0.1,
        ]
    )()


def random_program(seed, steps=14):
    """A function of two tensors that draws its ops from `seed`, the same at every call."""

    def run(x, y):
        rng = random.Random(seed)
        values = [x, y]
        for _ in range(steps):
            a, b = rng.choice(values), rng.choice(values)
            kind = rng.random()
            if kind < 0.35:
                made = unary(rng, a)
            elif kind < 0.6:
                made = view(rng, a)
            elif kind < 0.7:
                made = heavy(rng, a)
            else:
                try:
                    torch.broadcast_shapes(a.shape, b.shape)
                    made = rng.choice([torch.add, torch.mul, torch.sub, torch.maximum])(a, b)
                except RuntimeError:
                    made = a * 0.5
            if made.numel() <= 20000 and made.dim() <= 5:
                values.append(made)
        return tuple(rng.sample(values[2:], min(4, len(values) - 2)))

    return run


@pytest.mark.parametrize("seed", range(12))
def test_random_program(seed):
    torch.manual_seed(seed)
    f = random_program(seed)
    args = (
        (torch.randn(3, 4, 6), torch.randn(4, 6))
        if seed % 2
        else (torch.randn(5, 6), torch.randn(6))
    )
    compare(program_of(f, args), f, args, close=(2e-2, 2e-3))


@pytest.mark.parametrize("level", ["scalar", "avx2", "avx512"])
@pytest.mark.parametrize("seed", [20, 21])
def test_random_program_at_lower_levels(seed, level):
    if target().arch != "x86_64" or not target().features.issuperset(LEVELS[level]):
        pytest.skip(f"this machine has no {level}")
    torch.manual_seed(seed)
    f, args = random_program(seed), (torch.randn(5, 6), torch.randn(6))
    lowered = lower_for(graph_of(f, args), Target.parse(f"cpu:{level}"))
    compare(program(lowered, 2), f, args, close=(2e-2, 2e-3))
