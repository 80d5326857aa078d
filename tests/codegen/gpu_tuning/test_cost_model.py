"""The cost model of GPU launches: within the limits, and in the order that is known."""

import math
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", minversion="3.6")
from infopt.codegen.gpu.tiles import Tile
from infopt.codegen.gpu_tuning.candidates import MOST, candidates, launches_of
from infopt.codegen.gpu_tuning.cost_model import estimate
from infopt.codegen.kernel import find_emitter
from infopt.compiler.infer import Builder
from infopt.compiler.ops import find
from infopt.compiler.target import Target
from infopt.compiler.target_gpu import ROWS
from infopt.compiler.types import TensorType
from tests.codegen.gpu_tuning.timed_device import linear

every_gpu = pytest.mark.parametrize("name", ROWS)
USUAL = {"tile": "usual", "few": "usual", "persistent": False, "loads": "pointers"}


def seconds(target, m, n, k, bytes=0, **choice):
    node, emitter = linear(m, n, k)
    found = estimate(launches_of(node, emitter, target, USUAL | choice), target, bytes, {})
    assert found is not None
    return found.seconds


@every_gpu
@pytest.mark.parametrize("m", [1, 8, 64, 512, 4096])
def test_nothing_is_faster_than_the_peaks(name, m):
    target, n, k = Target.parse(name), 4096, 4096
    node, emitter = linear(m, n, k)
    work, moved = 2 * m * n * k / (target.peak["bf16"] * 1e9), 2 * n * k / (target.bandwidth * 1e9)
    for candidate in candidates(node, emitter, target, ()).kept:
        assert candidate.estimate.seconds > max(work, moved)


@every_gpu
def test_large_products_want_large_tiles(name):
    target = Target.parse(name)
    large = seconds(target, 8192, 8192, 8192, tile="128x128x64 w8 s3")
    assert large < seconds(target, 8192, 8192, 8192, tile="64x64x64 w4 s4")
    assert large < 4 * 2 * 8192**3 / (target.peak["bf16"] * 1e9)


@every_gpu
def test_small_products_want_all_multiprocessors(name):
    target = Target.parse(name)
    small = seconds(target, 128, 768, 768, tile="64x64x64 w4 s4")
    assert small < seconds(target, 128, 768, 768, tile="128x256x64 w8 s3")


@every_gpu
def test_one_more_wave_costs_a_wave(name):
    """A tile more than there is room for at once."""
    target = Target.parse(name)

    def with_rows(tiles):
        return seconds(target, 128 * tiles, 128, 4096, tile="128x128x64 w8 s3")

    fits = [with_rows(t) for t in range(1, 6 * target.cores, target.cores // 4)]
    assert fits == sorted(fits) and fits[-1] > 1.5 * fits[0]


def test_more_stages_hide_more_latency():
    target, node = Target.parse("cuda:sm90"), linear(1, 4096, 14336)
    (made,) = launches_of(*node, target, USUAL)
    times = [
        estimate([replace(made, stages=stages)], target, 0, {}).seconds for stages in (1, 2, 3, 4)
    ]
    assert times[0] >= times[1] > times[2] > times[3]


def test_what_does_not_fit_is_named():
    target = Target.parse("hip:gfx942")
    (made,) = launches_of(*linear(512, 4096, 4096), target, USUAL)
    work = replace(made.work, values=1 << 20)
    found = estimate([replace(made, work=work)], target, 0, {})
    assert found.seconds == math.inf and "registers of a thread, there are 510" in found.reason
    found = estimate([replace(made, stages=9)], target, 0, {})
    assert found.seconds == math.inf and "bytes of shared memory, there are 65536" in found.reason


def test_a_launch_that_says_nothing_is_not_guessed():
    target = Target.parse("cuda:sm90")
    (made,) = launches_of(*linear(512, 4096, 4096), target, USUAL)
    assert estimate([replace(made, work=None)], target, 0, {}) is None
    assert estimate([replace(made, grid=(0,))], target, 0, {}).seconds == 0


@every_gpu
@pytest.mark.parametrize("m", [1, 100, 4096])
def test_few_candidates_that_differ(name, m):
    node, emitter = linear(m, 4096, 4096)
    target = Target.parse(name)
    found = candidates(node, emitter, target, ())
    assert found.points == 192 and 1 < len(found.kept) <= MOST < found.points
    assert found.kept[0].schedule == next(emitter.schedules())
    made = [launches_of(node, emitter, target, c.schedule) for c in found.kept]
    assert len(set(made)) == len(made)
    times = [c.estimate.seconds for c in found.kept[1:]]
    assert times == sorted(times)
    left_out = candidates(node, emitter, target, (), most=100).kept[MOST:]
    assert all(c.estimate.seconds >= times[-1] for c in left_out)


X, W = torch.empty(4, 64), torch.empty(64)
Q = torch.empty(2, 4, 8, 16)
# torch's own ops; others bring their cases
OF_TORCH = {
    "aten.linear.default": ((X, torch.empty(8, 64)), {}),
    "aten.layer_norm.default": ((X, W), {"normalized_shape": (64,)}),
    "aten.softmax.int": ((X,), {"dim": -1}),
    "aten.scaled_dot_product_attention.default": ((Q, Q, Q), {}),
}
OWN = ("linear_act", "gated_linear", "quantized_linear", "attention", "add_rms_norm", "rotary")


@pytest.mark.parametrize("name", [*OF_TORCH, *OWN, "embedding_norm"])
def test_kernels_have_candidates(name):
    """Wherever an op has its tensors, and also where its launches do not say what they do."""
    op, target = find(name), Target.parse("cuda:sm90")
    args, attrs = OF_TORCH[name] if name in OF_TORCH else next(iter(op.cases()))
    tensors = [p.name for p in op.parameters if p.is_tensor]
    o = Builder()
    given = [None if a is None else o.input(f"x{i}", TensorType.of(a)) for i, a in enumerate(args)]
    node = o.node(op, *op.bind((), dict(zip(tensors, given, strict=False)) | attrs))
    emitter, reason = find_emitter(node, target)
    assert emitter is not None, reason
    found = candidates(node, emitter, target, ())
    assert 0 < len(found.kept) <= min(MOST, found.different) <= found.points


def test_tiles_are_said_as_they_are_launched():
    """What the model is told of a tile is what the kernel gets."""
    node, emitter = linear(4096, 4096, 4096)
    for choice in emitter.schedules():
        for launch in launches_of(node, emitter, Target.parse("cuda:sm90"), choice):
            block = [launch.constants[f"BLOCK_{d}"] for d in "MNK"]
            tile = Tile(*block, launch.warps, launch.stages)
            assert launch.work.flops == 2 * tile.m * tile.n * tile.k
            assert launch.work.loads == 2 * (tile.m + tile.n) * tile.k
            assert launch.work.loads * launch.stages <= 227 << 10
