"""prune-structures on convolutions: what carries channels through, borders, chains, declines."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import infopt
from infopt.codegen.kernels.conv import conv_act
from infopt.compiler.cost import graph_seconds
from infopt.compiler.graph import Graph
from infopt.compiler.interpret import interpret
from infopt.compiler.target import Target
from infopt.models.resnet import ResNet, ResNetConfig
from infopt.passes.prune_structures import PruneStructures
from tests.passes.test_prune_structures import graph_with, prune

torch.manual_seed(1)
C, N, LEFT = 8, 64, 48  # LEFT of N inner channels vary
X, SEEN = torch.randn(2, C, 33, 32), [(torch.randn(2, C, 33, 32),) for _ in range(2)]
WINDOW = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}
PADDED = WINDOW | {"padding": [1, 1]}


def dead(*shape: int, parts: int = 1) -> torch.Tensor:
    """Weights, the last quarter of whose features (of every part) is 0."""
    weight = torch.randn(parts, shape[0] // parts, *shape[1:]) / 8
    weight[:, shape[0] // parts * 3 // 4 :] = 0
    return weight.view(shape)


W = {
    "up": dead(N, C, 3, 3), "scale": torch.rand(N) + 0.5, "shift": torch.rand(N) + 0.1,
    "down": torch.randn(C, N, 3, 3) / 8, "thin": torch.randn(C, N, 1, 1) / 8,
    "bias": torch.randn(C), "factor": torch.rand(C) + 0.5, "add": torch.randn(C),
    "planes": torch.randn(N, 1, 3, 3) / 3,
    "twofold": torch.randn(2 * N, 1, 3, 3) / 3, "wide": torch.randn(C, 2 * N, 1, 1) / 8,
    "both": dead(2 * N, C, 1, 1, parts=2), "shifts": torch.rand(2 * N) + 0.1,
    "head": torch.randn(10, N), "flat": torch.randn(10, N * 15 * 15), "mid": dead(N, N, 3, 3),
    "grouped": torch.randn(N, N // 4, 3, 3), "into": torch.randn(N, 2, 3, 3),
    "ones": torch.ones(N), "back": torch.randn(C, C, 1, 1), "line": dead(N, C * 33, 1),
    "lines": torch.randn(C, N, 3),
}  # fmt: skip


def made(o, x, up, scale, shift, window=WINDOW, **_):
    return o.relu(o.call(conv_act, x, up, scale, shift, **window))


def bordered(o, x, down, factor, add, **w):
    """Constants that are not 0 meet windows that reach into zeros."""
    return o.call(conv_act, made(o, x, **w), down, factor, add, **PADDED)


def uneven(o, x, down, **w):
    window = PADDED | {"padding": [0, 1, 2, 0], "stride": [2, 1]}
    return o.call(conv_act, made(o, x, **w), down, None, None, **window)


def pooled(o, x, thin, bias, **w):
    y = o.max_pool2d(made(o, x, **w), [3, 3], [2, 2], [1, 1])
    return o.conv2d(o.avg_pool2d(y, [2, 2]), thin, bias, **WINDOW)


def depthwise(o, x, planes, ones, thin, bias, **w):
    y = made(o, x, **w)
    y = o.call(conv_act, y, planes, ones, None, **(WINDOW | {"groups": N}))
    return o.conv2d(o.call("aten.hardtanh.default", y, 0, 6), thin, bias, **WINDOW)


def depthwise_twofold(o, x, twofold, wide, bias, **w):
    y = o.conv2d(made(o, x, **w), twofold, None, **(WINDOW | {"groups": N}))
    return o.conv2d(o.relu(y), wide, bias, **WINDOW)


def gated(o, x, both, shifts, down, bias, **_):
    """One convolution for the gate and what it gates, padded by an op of its own."""
    y = o.conv2d(x, both, shifts, **WINDOW)
    first, second = (o.call("aten.slice.Tensor", y, 1, i, i + N, 1) for i in (0, N))
    y = o.mul(o.sigmoid(first), o.relu(second))
    return o.call("aten.conv2d.padding", y, down, bias, padding="same")


def averaged(o, x, head, **w):
    return o.linear(o.mean(made(o, x, **w), [2, 3]), head)


def flattened(o, x, flat, **w):
    y = o.max_pool2d(made(o, x, **w), [2, 2], [2, 2])
    return o.linear(o.relu(o.reshape(y, [2, N * 15 * 15])), flat)


def lines(o, x, line, shift, lines, **_):
    y = o.relu(o.conv1d(o.reshape(x, [2, C * 33, 32]), line, shift))
    return o.conv1d(y, lines, None, padding=[2], dilation=[2])


@pytest.mark.parametrize(
    ("build", "shapes"),
    [
        (bordered, {"up": (LEFT, C, 3, 3), "scale": (LEFT,), "down": (C, LEFT, 3, 3)}),
        (uneven, {"up": (LEFT, C, 3, 3), "down": (C, LEFT, 3, 3)}),
        (pooled, {"shift": (LEFT,), "thin": (C, LEFT, 1, 1), "bias": (C,)}),
        (depthwise, {"planes": (LEFT, 1, 3, 3), "ones": (LEFT,), "thin": (C, LEFT, 1, 1)}),
        (gated, {"both": (2 * LEFT, C, 1, 1), "shifts": (2 * LEFT,), "down": (C, LEFT, 3, 3)}),
        (averaged, {"up": (LEFT, C, 3, 3), "head": (10, LEFT)}),
        (flattened, {"up": (LEFT, C, 3, 3), "flat": (10, LEFT * 225)}),
        (lines, {"line": (LEFT, C * 33, 1), "shift": (LEFT,), "lines": (C, LEFT, 3)}),
    ],
)
def test_what_does_not_vary_goes_also_at_borders(build, shapes) -> None:
    start = graph_with(build, W, X)
    found, entry = prune(start, 0.25, SEEN)
    [site] = entry.applied
    assert site.reason == f"{LEFT} of {N} channels kept" and site.gain > 0
    assert {name: tuple(found.consts[f"{name}_pruned"].shape) for name in shapes} == shapes
    torch.testing.assert_close(
        interpret(found, [X])[0], interpret(start, [X])[0], rtol=1e-4, atol=1e-4
    )
    again, entry = prune(found, 0.25, SEEN)
    assert again is found and "it has lost units already" in {s.reason for s in entry.sites}


def test_the_same_as_channels_replaced_by_their_mean() -> None:
    """Worth is over all pixels, weights count with what they are scaled by, zeros stay zeros."""
    wanted = W | {"up": torch.randn(N, C, 3, 3) / 8}
    found, _ = prune(graph_with(bordered, wanted, X), 0.25, SEEN)

    def inner(x):
        y = F.conv2d(x, wanted["up"]) * W["scale"].view(-1, 1, 1) + W["shift"].view(-1, 1, 1)
        return y.relu()

    factors = W["down"] * W["factor"].view(-1, 1, 1, 1)
    rows = torch.cat([inner(x).movedim(1, -1).reshape(-1, N) for (x,) in SEEN])
    gone = (rows.var(0) * factors.square().sum((0, 2, 3))).argsort()[: N - LEFT]
    y = inner(X)
    y[:, gone] = rows.mean(0)[gone].view(-1, 1, 1)
    expected = F.conv2d(y, factors, W["add"], padding=1)
    torch.testing.assert_close(interpret(found, [X])[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("score", ["sensitivity", "magnitude"])
def test_a_layer_that_reads_one_structure_and_makes_another_loses_both(score) -> None:
    def convolutions(o, x, up, scale, shift, mid, down, **_):
        y = made(o, x, up, scale, shift)
        y = made(o, y, mid, scale, shift, PADDED)
        return o.call(conv_act, y, down, None, None, **PADDED)

    def layers(o, x, first, second, third, **_):
        return o.linear(o.relu(o.linear(o.relu(o.linear(x, first)), second)), third)

    flat = {"first": dead(N, C), "second": dead(N, N), "third": torch.randn(C, N)}
    for build, weights, x, names in (
        (convolutions, W, X, ("up", "mid", "down")),
        (layers, flat, torch.randn(4, C), tuple(flat)),
    ):
        start = graph_with(build, weights, x)
        found, entry = prune(start, 0.25, [(torch.randn_like(x),) for _ in range(4)], score=score)
        assert [s.reason for s in entry.applied] == [f"{LEFT} of {N} channels kept"] * 2
        sizes = [next(v.shape for k, v in found.consts.items() if k.startswith(n)) for n in names]
        assert [(s[0], s[1]) for s in sizes] == [(LEFT, C), (LEFT, LEFT), (C, LEFT)]
        if build is layers:  # the second gain is of a layer that had lost channels already
            before, after = (graph_seconds(g, Target.parse("cpu:scalar")) for g in (start, found))
            assert sum(s.gain for s in entry.applied) == pytest.approx(before - after)
        if score == "sensitivity":
            torch.testing.assert_close(
                interpret(found, [x])[0], interpret(start, [x])[0], rtol=1e-4, atol=1e-4
            )


def residual(o, x, back, **_):
    y = o.relu(o.conv2d(x, back, None, **WINDOW))
    return o.add(y, o.conv2d(y, back, None, **WINDOW))


def grouped_reader(o, x, grouped, **w):
    return o.conv2d(made(o, x, **w), grouped, None, **(WINDOW | {"groups": 4}))


def grouped_maker(o, x, into, thin, **w):
    y = o.conv2d(x, into, None, **(WINDOW | {"groups": 4}))
    return o.conv2d(o.relu(y), thin, None, **WINDOW)


def normed(o, x, thin, **w):
    return o.conv2d(o.group_norm(made(o, x, **w), 4), thin, None, **WINDOW)


def gated_by_itself(o, x, mid, thin, **w):
    y = made(o, x, **w)
    gate = o.sigmoid(o.conv2d(y, mid, None, **PADDED))
    return o.conv2d(o.mul(y, gate), thin, None, **WINDOW)


def finished(o, x, up, shift, thin, **_):
    y = o.call(conv_act, x, up, None, shift, **WINDOW, activation="relu")
    return o.conv2d(y, thin, None, **WINDOW)


def over_channels(o, x, back, **w):
    y = o.reshape(o.mean(made(o, x, **w), [1]), [2, 1, 31, 30])
    return o.conv2d(o.expand(y, [2, C, 31, 30]), back, None, **WINDOW)


def made_scale(o, x, up, scale, shift, thin, **_):
    return o.conv2d(made(o, x, up, o.mul(scale, 2.0), shift), thin, None, **WINDOW)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (residual, "is also read by aten.add.Tensor"),
        (grouped_reader, "reads its channels in 4 groups"),
        (grouped_maker, "reads its channels in 4 groups"),
        (depthwise_twofold, f"has {N} places for {2 * N} units"),
        (normed, "aten.group_norm.default is not known to treat channels apart"),
        (gated_by_itself, "is also read by aten.conv2d.default"),
        (finished, "has an epilogue"),
        (over_channels, "aten.expand.default is not known to treat channels apart"),
        (made_scale, "is not a constant"),
    ],
)
def test_declines(build, reason) -> None:
    graph = graph_with(build, W, X)
    result, entry = prune(graph, 0.25, SEEN)
    assert result is graph and any(reason in s.reason for s in entry.declined), entry.declined


def network(**config) -> nn.Module:
    """A residual network with norms that have seen data."""
    torch.manual_seed(0)
    model = ResNet(ResNetConfig(**config))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.bias, 0.1, 0.5)
    return model.eval()


def convolved(graph: Graph) -> dict[str, tuple[int, int]]:
    """(features, channels) of what weights of convolutions became."""
    kept = {n.attr("name"): n.shape for n in graph.nodes() if n.op.name == "const"}
    return {k.rstrip("_").removesuffix("_pruned"): v[:2] for k, v in kept.items() if len(v) == 4}


@torch.no_grad()
@pytest.mark.parametrize("opened", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_bottlenecks_lose_inner_channels_and_the_residual_stream_stays(opened) -> None:
    model = network(blocks=(1, 2), width=32, classes=10)
    for block in model.blocks:
        for norm in (block.reduce_norm, block.spatial_norm):
            norm.weight[-16:] = 0  # channels that are their bias wherever the image is
    images = [torch.randn(2, 3, 64, 64) for _ in range(5)]
    sizes = {"images": {0: torch.export.Dim("batch", min=2, max=64)}} if opened else None
    compiled = infopt.compile(
        *(model, (images[0],)),
        prune=0.15,
        calibration=[(i,) for i in images[1:]],
        dynamic_shapes=sizes,
    )
    entry = compiled.report.find("prune-structures")
    assert compiled.report.aten_nodes == 0
    told = {s.where.removeprefix("p_blocks_").removesuffix("_weight"): s for s in entry.sites}
    inner = {f"{i}_{name}" for i in range(3) for name in ("spatial", "expand")}
    applied = {where for where, site in told.items() if site.applied}
    assert {"0_spatial", "0_expand", "1_spatial", "1_expand"} <= applied <= inner
    assert "is also read by aten.add.Tensor" in told["2_reduce"].reason
    shapes = convolved(compiled.report.graph)
    assert shapes["p_blocks_0_spatial_weight"] == (16, 16)
    assert shapes["p_blocks_1_spatial_weight"] == (48, 48)
    assert shapes["p_blocks_1_expand_weight"] == (256, 48)
    whole = infopt.compile(model, (images[0],), dynamic_shapes=sizes).report
    seconds = [graph_seconds(r.graph, r.machine) for r in (compiled.report, whole)]
    assert seconds[0] < seconds[1]
    torch.testing.assert_close(compiled(images[0]), model(images[0]), rtol=1e-3, atol=1e-3)
    if opened:
        x = torch.randn(5, 3, 64, 64)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_declines_what_torch_lays_out_by_an_open_size() -> None:
    model = network(blocks=(1,), width=32, classes=10).to(memory_format=torch.channels_last)
    images = [torch.randn(2, 3, 32, 32).to(memory_format=torch.channels_last) for _ in range(3)]
    compiled = infopt.compile(
        *(model, (images[0],)),
        prune=0.2,
        calibration=[(i,) for i in images[1:]],
        dynamic_shapes={"images": {0: torch.export.Dim("batch", min=2, max=64)}},
    )
    entry = compiled.report.find("prune-structures")
    assert not entry.applied
    assert any("behaves differently depending on a size" in s.reason for s in entry.declined)
    torch.testing.assert_close(compiled(images[0]), model(images[0]), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("ResNet", {"embedding_size": 64, "hidden_sizes": [256, 256], "depths": [2, 2]}),
        ("ConvNext", {"hidden_sizes": [64, 64], "depths": [1, 1], "num_stages": 2}),
        ("MobileNetV2", {"depth_multiplier": 0.5}),
    ],
)
def test_structures_of_transformers_models(name, config) -> None:
    import transformers

    made = getattr(transformers, f"{name}Config")(**config)
    model = getattr(transformers, f"{name}Model")(made).eval()
    seen = [(torch.randn(1, 3, 64, 64),) for _ in range(3)]
    loose = PruneStructures(0.3, limit=10.0)
    passes = [loose if p.name == loose.name else p for p in infopt.default_passes(prune=0.3)]
    with torch.no_grad():
        report = infopt.compile(model, seen[0], passes=passes, calibration=seen).report
    assert any("channels kept" in s.reason for s in report.find("prune-structures").applied)
