"""prune-structures: what is cut with what, exact where nothing varies, declines with reasons."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import infopt
from infopt.codegen.kernels.attention import attention as attention_op
from infopt.codegen.kernels.kv_cache import kv_attention
from infopt.compiler.errors import BadOption, ContractBroken
from infopt.compiler.graph import Graph
from infopt.compiler.infer import Builder
from infopt.compiler.interpret import interpret
from infopt.compiler.pipeline import PassContext, Pipeline
from infopt.compiler.report import Report
from infopt.compiler.settings import Settings
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType
from infopt.models.decoder import SMALL, Decoder
from infopt.passes.prune_structures import SCORES, PruneStructures

K, N, HEADS, D = 64, 256, 8, 8
torch.manual_seed(0)
X = torch.randn(2, 5, K)
SEEN = [(torch.randn(2, 5, K),) for _ in range(6)]
W = {"up": torch.randn(N, K) / 8, "gate": torch.randn(N, K) / 8, "down": torch.randn(K, N) / 16}
W |= {"bias": torch.randn(N), "q": torch.randn(HEADS * D, K) / 8, "out": torch.randn(K, HEADS * D)}
W |= {n: torch.randn(HEADS // 2 * D, K) / 8 for n in ("k", "v")}
W |= {"narrow": torch.randn(K, 192), "half": torch.randn(K, 128)}
W |= {"shift": torch.randn(K), "scale": torch.rand(N) + 0.5}


def graph_with(build, weights=None, x=X) -> Graph:
    o = Builder()
    node = o.input("x", TensorType.of(x))
    weights = W | (weights or {})
    consts = {name: o.const(name, TensorType.of(w)) for name, w in weights.items()}
    made = build(o, node, **consts)
    outputs = made if isinstance(made, tuple) else (made,)
    return Graph((node,), outputs, weights, stage=PruneStructures.stage).with_consts({})


def prune(graph: Graph, share=0.25, seen=SEEN, limit=9.0, samples=(), **given):
    report = Report()
    target = Target.parse("cpu:scalar")
    ctx = PassContext(target, tuple(samples), report, Settings(check=1), calibration=tuple(seen))
    pass_ = PruneStructures(share, limit=limit, **given)
    return Pipeline([pass_], alone=True).run(graph, ctx), report.passes[0]


def mlp(o, x, up, down, bias, **_):
    return o.linear(o.gelu(o.linear(x, up, bias)), down)


def gated(o, x, up, gate, down, scale, shift, **_):
    y = o.mul(o.silu(o.linear(x, gate)), o.mul(o.linear(x, up), scale))
    return o.linear(y, down, shift)


def attention(o, x, q, k, v, out, **_):
    """Two heads of queries for each one of keys and values, turned like rotary positions."""

    def split(y, heads):
        return o.permute(o.reshape(y, [2, 5, heads, D]), [0, 2, 1, 3])

    def turned(y):
        first, second = (o.call("aten.slice.Tensor", y, 3, i, i + D // 2, 1) for i in (0, D // 2))
        return o.add(y, o.call("aten.cat.default", (o.neg(second), first), 3))

    qs, ks, vs = split(o.linear(x, q), HEADS), split(o.linear(x, k), 4), split(o.linear(x, v), 4)
    y = o.call(attention_op, turned(qs), turned(ks), vs, None, scale=0.25, causal=True)
    return o.linear(o.reshape(o.permute(y, [0, 2, 1, 3]), [2, 5, HEADS * D]), out)


def fused_attention(o, x, qkv, out, **_):
    """One product for queries, keys and values; fewer heads of keys and values."""
    y = o.linear(x, qkv)

    def heads(start, count):
        part = o.call("aten.slice.Tensor", y, 2, start * D, (start + count) * D, 1)
        return o.permute(o.reshape(part, [2, 5, count, D]), [0, 2, 1, 3])

    qs, ks, vs = heads(0, HEADS), heads(HEADS, 4), heads(HEADS + 4, 4)
    y = o.call(attention_op, qs, ks, vs, None, scale=0.25, causal=True)
    return o.linear(o.reshape(o.permute(y, [0, 2, 1, 3]), [2, 5, HEADS * D]), out)


def stacked_attention(o, x, stacked, out, **_):
    """The same as one tensor of three, of which each is picked."""
    y = o.permute(o.reshape(o.linear(x, stacked), [2, 5, 3, HEADS, D]), [2, 0, 3, 1, 4])
    qs, ks, vs = (o.call("aten.select.int", y, 0, i) for i in range(3))
    y = o.call(attention_op, qs, ks, vs, None, scale=0.25, causal=False)
    return o.linear(o.reshape(o.permute(y, [0, 2, 1, 3]), [2, 5, HEADS * D]), out)


def masked_attention(o, x, q, k8, v8, out, mask, **_):
    """A mask of every head, and keys normed head by head."""

    def split(y):
        return o.permute(o.reshape(y, [2, 5, HEADS, D]), [0, 2, 1, 3])

    qs, ks, vs = (split(o.linear(x, w)) for w in (q, k8, v8))
    ks = o.layer_norm(ks, [D])
    y = o.call(attention_op, qs, ks, vs, mask, scale=0.25, causal=False)
    return o.linear(o.reshape(o.permute(y, [0, 2, 1, 3]), [2, 5, HEADS * D]), out)


def cached_attention(o, x, q, k, v, unread, **_):
    """Four groups of two queries over a cache, whose keys and values keep their places."""

    def split(y, heads):
        return o.permute(o.reshape(y, [2, 5, heads, D]), [0, 2, 1, 3])

    keys, values = split(o.linear(x, k), 4), split(o.linear(x, v), 4)
    starts = o.full([2], 0, dtype=torch.int64)
    y = o.call(kv_attention, split(o.linear(x, q), HEADS), keys, values, starts, scale=0.25)
    return o.linear(o.reshape(o.permute(y, [0, 2, 1, 3]), [2, 5, HEADS * D]), unread)


def fused_gated(o, x, both, down, **_):
    """One product for the gate and what it gates."""
    y = o.linear(x, both)
    first, second = (o.call("aten.slice.Tensor", y, 2, i, i + N, 1) for i in (0, N))
    return o.linear(o.mul(o.silu(first), second), down)


def without_second_queries() -> torch.Tensor:
    """`out` that reads the first query of every group alone."""
    kept = torch.arange(HEADS).repeat_interleave(D) % 2 == 0
    return W["out"] * kept


def dead(names, rows) -> dict[str, torch.Tensor]:
    """Weights whose rows from `rows` on are 0."""
    return {n: torch.cat([W[n][:rows], torch.zeros_like(W[n][rows:])]) for n in names}


FUSED = {
    "qkv": torch.cat([W["q"], W["k"], *dead(["v"], 2 * D).values()]),
    "stacked": torch.cat([W["q"], W["q"].flip(0), *dead(["q"], 4 * D).values()]),
    "both": torch.cat([W["gate"], *dead(["up"], 192).values()]),
}

HEADED = {"k8": W["q"].flip(0), "v8": dead(["q"], 4 * D)["q"], "mask": torch.randn(1, HEADS, 5, 5)}


@pytest.mark.parametrize("score", ["sensitivity", "fluctuation"])
@pytest.mark.parametrize(
    ("build", "weights", "shapes", "told"),
    [
        (mlp, dead(["up"], 192), {"up": (192, K), "down": (K, 192), "bias": (192,)}, "192 of 256"),
        (
            *(gated, dead(["up"], 192)),
            {"up": (192, K), "gate": (192, K), "down": (K, 192), "scale": (192,), "shift": (K,)},
            "192 of 256",
        ),
        (
            *(attention, dead(["v"], 2 * D)),
            {"q": (4 * D, K), "k": (2 * D, K), "v": (2 * D, K), "out": (K, 4 * D)},
            "2 of 4 heads",
        ),
        (
            *(fused_attention, {"qkv": FUSED["qkv"]}),
            *({"qkv": (8 * D, K), "out": (K, 4 * D)}, "2 of 4 heads"),
        ),
        (
            *(stacked_attention, {"stacked": FUSED["stacked"]}),
            *({"stacked": (12 * D, K), "out": (K, 4 * D)}, "4 of 8 heads"),
        ),
        (
            *(masked_attention, HEADED),
            *({"q": (4 * D, K), "k8": (4 * D, K), "mask": (1, 4, 5, 5)}, "4 of 8 heads"),
        ),
        (
            *(fused_gated, {"both": FUSED["both"]}),
            *({"both": (2 * 192, K), "down": (K, 192)}, "192 of 256"),
        ),
        (
            *(cached_attention, {"unread": without_second_queries()}),
            *({"q": (4 * D, K), "unread": (K, 4 * D)}, "1 of 2 queries of every group"),
        ),
    ],
)
def test_what_does_not_vary_goes_with_all_that_makes_it(build, weights, shapes, told, score):
    """Results stay: the mean of what is gone, here gelu of a bias, is in the bias."""
    start = graph_with(build, weights)
    found, entry = prune(start, 0.5 if "attention" in build.__name__ else 0.25, score=score)
    [site] = entry.applied
    assert site.reason.startswith(told) and site.gain > 0
    consts = {n.rstrip("_").removesuffix("_pruned") for n in found.consts}
    assert consts == set(start.consts)
    by_shape = {name: tuple(found.consts[f"{name}_pruned"].shape) for name in shapes}
    assert by_shape == shapes
    torch.testing.assert_close(
        interpret(found, [X])[0], interpret(start, [X])[0], rtol=1e-4, atol=1e-4
    )
    again, entry = prune(found, score=score)
    reasons = {s.reason for s in entry.sites}
    assert again is found and reasons & {"it has lost units already", "it is one unit"}


def test_the_same_as_values_replaced_by_their_mean():
    """What stays is what scores say, and the product is that with means in the other places."""
    start = graph_with(gated)
    found, _ = prune(start, 0.25)

    def hidden(x):
        return nn.functional.silu(x @ W["gate"].T) * (x @ W["up"].T) * W["scale"]

    rows = torch.cat([hidden(x).reshape(-1, N) for (x,) in SEEN])
    worth = rows.var(0) * W["down"].square().sum(0)
    gone = worth.argsort()[:64]
    y = hidden(X)
    y[..., gone] = rows.mean(0)[gone]
    torch.testing.assert_close(
        interpret(found, [X])[0], y @ W["down"].T + W["shift"], rtol=1e-4, atol=1e-4
    )


def test_layers_compare_by_what_results_feel():
    """Two equal parts, of which the results hardly feel the second: all that goes is of that."""

    def build(o, x, **w):
        return o.add(mlp(o, x, **w), o.mul(mlp(o, x, w["up2"], w["down2"], w["bias"]), 1e-3))

    second = {"up2": W["up"].flip(0), "down2": W["down"].flip(1)}
    counts = {}
    for score in SCORES:
        _, entry = prune(graph_with(build, second), 0.3, score=score)
        counts[score] = {s.where: s.reason for s in entry.sites if "channels" in s.reason}
    assert counts["sensitivity"] == {
        "down": "all 256 channels are worth more",
        "down2": "112 of 256 channels kept",
    }
    assert counts["magnitude"] == dict.fromkeys(("down", "down2"), "192 of 256 channels kept")
    assert len(set(counts["fluctuation"].values())) == 1


def test_magnitude_changes_no_bias():
    found, _ = prune(graph_with(mlp), seen=(), score="magnitude")
    [last] = found.outputs
    assert last.args[2] is None and last.args[1].shape == (K, 192)


def read_twice(o, x, **w):
    y = o.gelu(o.linear(x, w["up"]))
    return o.linear(y, w["down"]), o.sum(y)


def normed(o, x, **w):
    y = o.layer_norm(o.linear(x, w["up"]), [N])
    return o.linear(y, w["down"])


def read_at_the_same_places(o, x, **w):
    y = o.linear(x, w["up"])
    first, second = (o.call("aten.slice.Tensor", y, 2, i, i + 192, 1) for i in (0, 64))
    return o.linear(o.mul(first, second), w["narrow"])


def partly_read_otherwise(o, x, **w):
    y = o.linear(x, w["up"])
    first, second = (o.call("aten.slice.Tensor", y, 2, i, i + 128, 1) for i in (0, 128))
    return o.linear(o.relu(first), w["half"]), o.sum(second)


def a_result(o, x, **w):
    y = o.linear(x, w["up"])
    return o.linear(y, w["down"]), y


def normed_below(o, x, **w):
    y = o.gelu(o.layer_norm(o.linear(x, w["up"]), [N]))
    return o.linear(y, w["down"])


def made_rows(o, x, **w):
    return o.linear(o.linear(x, o.mul(w["up"], 2.0)), w["down"])


def drawn(o, x, **w):
    return o.linear(o.call("aten.rand_like.default", o.linear(x, w["up"])), w["down"])


def made_weight(o, x, **w):
    return o.linear(o.linear(x, w["up"]), o.mul(w["down"], 2.0))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (read_twice, "is also read by aten.sum"),
        (normed, "aten.layer_norm.default is not known to treat channels apart"),
        (a_result, "is a result"),
        (read_at_the_same_places, "is read twice at the same places"),
        (partly_read_otherwise, "is also read by aten.slice.Tensor"),
        (made_weight, "is not a constant"),
        (made_rows, "is not a constant"),
        (normed_below, "aten.layer_norm.default is not known to treat channels apart"),
        (drawn, "aten.rand_like.default is not known to treat channels apart"),
        (lambda o, x, **w: o.linear(x, w["up"]), "is an input"),
    ],
)
def test_declines(build, reason) -> None:
    graph = graph_with(build)
    result, entry = prune(graph)
    assert result is graph and any(reason in s.reason for s in entry.declined), entry.declined


def test_declines_what_does_not_pay_and_what_cannot_be_judged() -> None:
    wide = {"up": torch.randn(2048, K), "bias": torch.randn(2048), "down": torch.randn(K, 2048)}
    graph = graph_with(mlp, wide)
    result, entry = prune(graph, 0.01)
    [site] = [s for s in entry.declined if s.where == "down"]
    assert result is graph and site.reason.startswith("does not pay: ")
    assert "us with 2032 of 2048 channels" in site.reason and site.reason.endswith("us with all")
    result, entry = prune(graph, seen=())
    reason = "there are no calibration inputs to tell what hardly varies"
    assert result is graph and entry.declined[-1].reason == reason


def test_accuracy_is_held_to_the_limit() -> None:
    with pytest.raises(ContractBroken, match=r"prune-structures promises .*rms_rel.*0\.01"):
        prune(graph_with(mlp), 0.5, limit=0.01, samples=[(X,)])


@pytest.mark.parametrize("share", [0, 1, True, "half"])
def test_wrong_options(share) -> None:
    with pytest.raises(BadOption, match="prune: expected a share between 0 and 1"):
        infopt.compile(nn.Linear(2, 2), (torch.randn(1, 2),), prune=share)
    with pytest.raises(BadOption, match="score: expected sensitivity, fluctuation, magnitude, fo"):
        PruneStructures(score="norm")


def test_only_on_request_and_before_formats() -> None:
    assert "prune-structures" not in {p.name for p in infopt.default_passes()}
    names = [p.name for p in infopt.default_passes(prune=0.2, weights="int8")]
    assert names.index("prune-structures") < names.index("quantize-weights")


@pytest.mark.slow
@torch.no_grad()
def test_whole_models_and_a_decoder_with_a_cache() -> None:
    """Without a cache heads go too; with one, keys and values stay, queries and channels go."""
    model = Decoder(SMALL).eval()
    ids = [torch.randint(0, SMALL.vocabulary, (1, 24)) for _ in range(5)]
    whole = infopt.compile(model, (ids[0],), prune=0.2, calibration=[(i,) for i in ids[1:]])
    kinds = {s.reason.split()[3] for s in whole.report.find("prune-structures").applied}
    assert kinds == {"heads", "channels"} or kinds == {"channels"}
    limit = {"max_length": 32, "prune": 0.2, "calibration": [(i,) for i in ids[1:]]}
    lm = infopt.compile_causal_lm(model, **limit)
    sites = lm.report.find("prune-structures").sites
    applied = {s.where for s in sites if s.applied}
    down = {f"p_model_layers_{i}_down_weight" for i in range(SMALL.layers)}
    out = {f"p_model_layers_{i}_attention_output_weight" for i in range(SMALL.layers)}
    assert applied and applied <= down | out
    assert all("queries of every group" in s.reason for s in sites if s.where in out)
    state = lm.prefill(ids[0][:, :-1])
    state = lm.step(state, ids[0][0, -1:])
    torch.testing.assert_close(state.logits, lm.logits(ids[0][0])[-1:], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(state.logits, model(ids[0])[:, -1], rtol=1e-3, atol=1e-3)
    with pytest.raises(BadOption, match=r"calibration\[0\]: expected ids int64 \[sequences, token"):
        infopt.compile_causal_lm(model, **(limit | {"calibration": [(ids[0].float(),)]}))


@pytest.mark.slow
@torch.no_grad()
def test_queries_that_nobody_reads_leave_a_decoder_with_its_cache() -> None:
    """The same logits as the dense model, whose output layers read no second query of a group."""
    model = Decoder(SMALL).eval()
    group, width = SMALL.heads // SMALL.kv_heads, SMALL.width // SMALL.heads
    assert group == 2
    for layer in model.layers:
        queries = layer.attention.output.weight.view(SMALL.width, SMALL.kv_heads, group, width)
        queries[:, :, 1] = 0
    ids = [torch.randint(0, SMALL.vocabulary, (1, 24)) for _ in range(3)]
    seen = [(i,) for i in ids[1:]]
    lm = infopt.compile_causal_lm(model, max_length=32, prune=0.095, calibration=seen)
    told = {s.reason for s in lm.report.find("prune-structures").applied}
    assert told == {"1 of 2 queries of every group kept"}
    state = lm.step(lm.prefill(ids[0][:, :-1]), ids[0][0, -1:])
    torch.testing.assert_close(state.logits, model(ids[0])[:, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "config", "kinds"),
    [
        ("Bert", {}, {"heads", "channels"}),
        ("Llama", {"num_key_value_heads": 4}, {"heads", "channels"}),
        ("Qwen3", {"num_key_value_heads": 4, "head_dim": 8}, {"heads", "channels"}),
        ("ViT", {"image_size": 32, "patch_size": 8}, {"heads", "channels"}),
        (
            "GPT2",
            {"n_embd": 64, "n_layer": 1, "n_head": 8, "use_cache": False},
            {"heads", "channels"},
        ),
    ],
)
def test_structures_of_transformers_models(name, config, kinds) -> None:
    import transformers

    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 8}
    sizes |= {"intermediate_size": 256} | ({} if name == "ViT" else {"use_cache": False})
    made = getattr(transformers, f"{name}Config")(**(config if name == "GPT2" else sizes | config))
    model = getattr(transformers, f"{name}Model")(made).eval()

    def inputs():
        return (torch.randn(1, 3, 32, 32) if name == "ViT" else torch.randint(0, 99, (1, 24)),)

    seen = [inputs() for _ in range(3)]
    passes = infopt.default_passes(prune=0.3)
    loose = PruneStructures(0.3, limit=10.0)
    passes = [loose if p.name == loose.name else p for p in passes]
    with torch.no_grad():
        report = infopt.compile(model, seen[0], passes=passes, calibration=seen).report
    told = [s.reason.split() for s in report.find("prune-structures").sites]
    assert {word for words in told for word in words} & {"heads", "channels"} >= kinds
