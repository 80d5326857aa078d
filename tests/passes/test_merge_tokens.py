"""merge-tokens: rewrites, declines, accuracy, idempotence, gain; whole models at both doors."""

from collections.abc import Callable

import pytest
import sympy
import torch
from torch import nn

import infopt
from infopt.compiler.accuracy import Close, Exact
from infopt.compiler.cost import graph_seconds
from infopt.compiler.errors import BadOption, ContractBroken
from infopt.compiler.graph import Graph
from infopt.compiler.infer import Builder
from infopt.compiler.interpret import interpret
from infopt.compiler.pipeline import PassContext, Pipeline, SiteLimit
from infopt.compiler.report import Report
from infopt.compiler.target import Target
from infopt.compiler.testing import graph_of, run_pass
from infopt.compiler.types import Dim, TensorType
from infopt.passes.merge_tokens import MergeTokens

B, T, H, D = 4, 64, 2, 64
W = H * D
torch.manual_seed(0)
X = torch.randn(B, T, W)
UP, DOWN = torch.randn(4 * W, W) / 12, torch.randn(W, 4 * W) / 24
BIAS = torch.randn(W) / 4
MASK = torch.arange(T) < torch.tensor([24, 8, 64, 30])[:, None]
INPUTS = [X, UP, DOWN, BIAS, MASK]
MERGE = infopt.Tokens(0.5, limit=2.0)
PRUNE = infopt.Tokens(0.5, "prune", "norm", limit=2.0)


def layer(o, x, up, down, bias, mask=None, causal=False):
    """Pre-norm attention without projections and a feed-forward part, each added to the stream."""
    batch, tokens, width = x.shape
    y = o.layer_norm(x, [width], bias, bias)
    heads = o.permute(o.reshape(y, [batch, tokens, H, D]), [0, 2, 1, 3])
    seen = None if mask is None else o.reshape(mask, [batch, 1, 1, tokens])
    y = o.call("attention", heads, heads, heads, seen, scale=0.2, causal=causal)
    x = o.add(x, o.reshape(o.permute(y, [0, 2, 1, 3]), [batch, tokens, width]))
    y = o.linear(o.gelu(o.linear(o.layer_norm(x, [width], bias, bias), up)), down)
    return o.add(x, y)


def three(o, x, up, down, bias, mask=None, **how):
    for _ in range(3):
        x = layer(o, x, up, down, bias, mask, **how)
    return x


def states(o, x, up, down, bias, mask):
    return o.layer_norm(three(o, x, up, down, bias), [W], bias, bias)


def masked_sum(o, x, up, down, bias, mask):
    weight = o.call("aten.to.dtype", o.reshape(mask, [B, T, 1]), torch.float32)
    return o.sum(o.mul(three(o, x, up, down, bias, mask), weight), [1])


def first_token(o, x, up, down, bias, mask):
    return o.call("aten.select.int", states(o, x, up, down, bias, mask), 1, 0)


def merged(build: Callable, tokens: infopt.Tokens = MERGE, inputs=INPUTS):
    graph = graph_of(build, inputs, MergeTokens(tokens))
    return graph, *run_pass(MergeTokens(tokens), graph, [tuple(inputs)])


def ops(graph, name: str) -> list:
    return [n for n in graph.nodes() if n.op.name == name]


def test_rewrites_every_layer_and_gives_all_tokens_back() -> None:
    _, result, entry = merged(states)
    told = [f"{n} of 64 tokens left" for n in (54, 43, 32)]
    assert [s.reason for s in entry.sites] == told and len(entry.applied) == 3
    assert [n.attr("keep") for n in ops(result, "match_tokens")] == [54, 43, 32]
    assert [n.shape[2] for n in ops(result, "attention")] == [64, 54, 43]
    assert [n.args[3] is None for n in ops(result, "attention")] == [True, False, False]
    (back,) = ops(result, "unmerge_rows")
    assert back.shape == (B, T, W)


def test_the_last_layer_is_left_where_it_would_lose_what_nobody_needs() -> None:
    _, result, entry = merged(first_token)
    assert [n.attr("keep") for n in ops(result, "match_tokens")] == [48, 32]
    assert all(n.attr("first") == 1 for n in ops(result, "match_tokens"))
    assert not ops(result, "unmerge_rows") and len(entry.applied) == 2


def test_prunes_by_attention_received_and_by_norm() -> None:
    _, result, _ = merged(states, infopt.Tokens(0.5, "prune", limit=2.0))
    assert len(ops(result, "rank_tokens")) == 3 and len(ops(result, "unmerge_rows")) == 3
    assert all(n.args[3] is None for n in ops(result, "attention"))
    assert len(ops(result, "attention_received")) == 3
    _, result, _ = merged(states, PRUNE)
    assert len(ops(result, "rank_tokens")) == 3 and not ops(result, "attention_received")


def test_likeness_may_be_that_of_keys() -> None:
    """Their mean over heads, in place of the tokens' own rows."""
    _, result, _ = merged(states, infopt.Tokens(0.5, score="keys", limit=2.0))
    judged = [n.args[0] for n in ops(result, "match_tokens")]
    assert [n.shape for n in judged] == [(B, n, D) for n in (64, 54, 43)]
    assert [n.op.name for n in judged] == ["aten.mean.dim"] * 3
    keys = [n.args[1] for n in ops(result, "attention")]
    assert [n.args[0] for n in judged] == keys
    _, result, _ = merged(states)
    assert ops(result, "match_tokens")[0].args[0].shape == (B, 64, W)


def test_early_layers_may_lose_most() -> None:
    _, result, _ = merged(states, infopt.Tokens(0.5, schedule="early", limit=2.0))
    assert [n.attr("keep") for n in ops(result, "match_tokens")] == [48, 38, 32]


def causal(o, x, up, down, bias, mask):
    return three(o, x, up, down, bias, causal=True)


def by_query(o, x, up, down, bias, mask):
    q = o.permute(o.reshape(x, [B, T, H, D]), [0, 2, 1, 3])
    seen = o.expand(o.reshape(mask, [B, 1, T, 1]), [B, 1, T, T])
    return o.call("attention", q, q, q, seen, scale=1.0)


def between(o, x, up, down, bias, mask):
    x = layer(o, x, up, down, bias)
    return layer(o, layer(o, x, up, down, bias), up, down, bias), o.cumsum(x, 1)


def at_positions(o, x, up, down, bias, mask):
    shift = o.call("aten.slice.Tensor", o.cumsum(up, 0), 0, 0, T)
    x = layer(o, x, up, down, bias)
    return layer(o, o.add(x, shift), up, down, bias)


def no_attention(o, x, up, down, bias, mask):
    return o.linear(o.linear(x, up), down)


def one_layer(o, x, up, down, bias, mask):
    return o.call("aten.select.int", layer(o, x, up, down, bias), 1, 0)


def across(o, x, up, down, bias, mask):
    q = o.permute(o.reshape(x, [B, T, H, D]), [0, 2, 1, 3])
    few = o.call("aten.slice.Tensor", q, 2, 0, 8)
    return o.call("attention", q, few, few, scale=1.0)


def mixed(o, x, up, down, bias, mask):
    return three(o, o.cumsum(layer(o, x, up, down, bias), 1), up, down, bias)


def turned_keys(o, x, up, down, bias, mask):
    q = o.permute(o.reshape(x, [B, T, H, D]), [0, 2, 1, 3])
    return o.call("attention", q, o.flip(q, (2,)), q, scale=1.0)


def two_masks(o, x, up, down, bias, mask):
    x = layer(o, x, up, down, bias, mask)
    return three(o, x, up, down, bias, o.call("aten.bitwise_not.default", mask))


def of_some_sequences(o, x, up, down, bias, mask):
    q = o.permute(o.reshape(x, [B, T, H, D]), [0, 2, 1, 3])
    seen = o.reshape(o.select(mask, 0, 1), [1, 1, 1, T])
    y = o.call("attention", q, q, q, seen, scale=1.0)
    return o.call("attention", q, q, q, o.reshape(mask, [B, 1, 1, T]), scale=1.0), y


@pytest.mark.parametrize(
    ("build", "tokens", "reason"),
    [
        (turned_keys, MERGE, "are not made token by token"),
        (two_masks, MERGE, "its layers have different masks"),
        (of_some_sequences, MERGE, "its layers have different masks"),
        (causal, MERGE, "is causal: a merged token would see what comes after its parts"),
        (by_query, MERGE, "is not over the keys alone"),
        (between, PRUNE, "reads all tokens of"),
        (at_positions, MERGE, "by position, and merged tokens have none"),
        (no_attention, MERGE, "it has no attention"),
        (one_layer, MERGE, "behind its only layer, nothing works on all tokens"),
        (across, MERGE, "does not mix all tokens"),
        (mixed, MERGE, "no value behind it holds all of them"),
        (first_token, infopt.Tokens(0.2, limit=2.0), "2 layers cannot merge to 20%"),
    ],
)
def test_declines(build, tokens, reason) -> None:
    graph, result, entry = merged(build, tokens)
    (site,) = entry.sites
    assert result is graph and not site.applied and reason in site.reason


def test_declines_what_does_not_pay_with_both_numbers() -> None:
    few = [X[:1, :4].clone(), UP, DOWN, BIAS, MASK[:1, :4].clone()]

    def short(o, x, up, down, bias, mask):
        return three(o, x, up, down, bias)

    _, _, entry = merged(short, MERGE, few)
    (site,) = entry.sites
    assert "does not pay: " in site.reason and site.reason.count(" ms with ") == 2


@pytest.mark.parametrize(("share", "applied"), [(0.985, False), (0.975, True)])
def test_a_gain_within_the_error_of_estimates_is_none(share, applied, monkeypatch) -> None:
    times = iter((1.0, share))
    monkeypatch.setattr("infopt.passes.merge_tokens.graph_seconds", lambda *a: next(times))
    graph = graph_of(states, INPUTS, MergeTokens(MERGE))
    result = MergeTokens(MERGE).run(graph, PassContext(Target.detect(), report=Report()))
    assert (result is not graph) == applied


@pytest.mark.parametrize("tokens", [MERGE, PRUNE], ids=["merge", "prune"])
def test_losing_padding_only_changes_nothing(tokens) -> None:
    graph, result, _ = merged(masked_sum, tokens)
    # 32 of 64 tokens go, and every sequence has one more of padding: the first of it stays
    real = torch.arange(T) < torch.tensor([31, 8, 1, 24])[:, None]
    inputs = [X, UP, DOWN, BIAS, real]
    (expected,), (found,) = interpret(graph, inputs), interpret(result, inputs)
    assert Exact().accepts(expected, found) is None
    (expected,), (found,) = interpret(graph, INPUTS), interpret(result, INPUTS)
    assert Exact().accepts(expected[2], found[2]) is not None  # it had none to lose


def test_merging_equal_tokens_changes_nothing() -> None:
    """Attention counts a merged token as often as it stands for others."""
    graph, result, _ = merged(states)
    inputs = [X[:, : T // 2].repeat_interleave(2, 1), UP, DOWN, BIAS, MASK]
    (expected,), (found,) = interpret(graph, inputs), interpret(result, inputs)
    assert Exact().accepts(expected, found) is None


def test_a_sequence_of_padding_alone_stays_as_it_is() -> None:
    graph, result, _ = merged(masked_sum)
    inputs = [X, UP, DOWN, BIAS, torch.zeros_like(MASK)]
    (expected,), (found,) = interpret(graph, inputs), interpret(result, inputs)
    assert torch.equal(expected, found)


def test_pruned_tokens_come_back_as_they_left() -> None:
    _, result, _ = merged(lambda o, *a: three(o, *a[:4]), PRUNE)
    seen = {}
    interpret(result, INPUTS, lambda node, value: seen.update({node: value}))
    first = ops(result, "rank_tokens")[0]
    top = next(n for n in ops(result, "merge_rows") if n.args[1] is first).args[0]
    gone = seen[first] < 0
    (found,) = (seen[n] for n in result.outputs)
    assert gone.sum() == B * 10 and torch.equal(found[gone], seen[top][gone])


def test_accuracy_is_held_to_the_limit() -> None:
    _, _, entry = merged(states)
    assert "rms" in entry.error
    with pytest.raises(ContractBroken, match=r"merge-tokens promises .*rms_rel.*0\.01"):
        merged(states, infopt.Tokens(0.5, limit=0.01))


def test_idempotent() -> None:
    _, result, _ = merged(states)
    again, entry = run_pass(MergeTokens(MERGE), result, [tuple(INPUTS)])
    assert again is result and entry.sites[0].reason == "its tokens are merged already"


def test_gain() -> None:
    graph, result, entry = merged(states)
    target = Target.detect()
    saved = graph_seconds(graph, target) - graph_seconds(result, target)
    assert entry.gain == pytest.approx(saved) and saved > 0


def test_sites_can_be_left_out() -> None:
    graph = graph_of(states, INPUTS, MergeTokens(MERGE))
    report, limit = Report(), SiteLimit(1)
    ctx = PassContext(Target.detect(), report=report, limit=limit)
    result = Pipeline([MergeTokens(MERGE)], alone=True).run(graph, ctx)
    assert len(limit.applied) == len(ops(result, "match_tokens")) == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"keep": 1}, "keep: expected a share of tokens below 1, found 1"),
        ({"keep": 0}, "keep: expected a number above 0, found 0"),
        ({"method": "drop"}, "method: expected 'merge' or 'prune', found 'drop'"),
        ({"score": "norm"}, "score of merge: expected states, keys, found 'norm'"),
        ({"schedule": "late"}, "schedule: expected even or early, found 'late'"),
        ({"limit": None}, "limit: expected a number above 0, found None"),
    ],
)
def test_wrong_options(given, message) -> None:
    with pytest.raises(BadOption, match=message):
        infopt.Tokens(**given)


class Pooled(nn.Module):
    """Embeds ids, three layers, the mean of the real tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(50, 128)
        made = (nn.TransformerEncoderLayer(128, 4, 512, 0.0) for _ in range(2))
        self.layers = nn.ModuleList(made)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.token(ids)
        for part in self.layers:
            x = part.norm1(x + self.attend(part.self_attn, x, mask))
            x = part.norm2(x + part.linear2(nn.functional.gelu(part.linear1(x))))
        weight = mask[..., None].to(x.dtype)
        return (x * weight).sum(1) / weight.sum(1)

    def attend(self, part: nn.Module, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        qkv = nn.functional.linear(x, part.in_proj_weight, part.in_proj_bias)
        q, k, v = (y.unflatten(2, (4, 32)).transpose(1, 2) for y in qkv.split(128, 2))
        y = nn.functional.scaled_dot_product_attention(q, k, v, mask.bool()[:, None, None])
        return part.out_proj(y.transpose(1, 2).flatten(2))


IDS = torch.randint(0, 50, (B, T))


@pytest.mark.parametrize(
    ("door", "tokens"), [("compile", MERGE), ("compile", PRUNE), ("backend", MERGE)]
)
def test_a_model_at_both_doors(door, tokens) -> None:
    model = Pooled().eval()
    padded = (torch.arange(T) < torch.tensor([31, 8, 16, 9])[:, None]).long()
    with torch.no_grad():
        if door == "compile":
            compiled = infopt.compile(model, (IDS, padded), tokens=tokens, strict=True)
        else:
            torch._dynamo.reset()
            compiled = torch.compile(model, backend="infopt", options={"tokens": tokens})
        torch.testing.assert_close(compiled(IDS, padded), model(IDS, padded), rtol=1e-4, atol=1e-4)
        assert "32 of 64 tokens left" in infopt.explain(compiled, "merge-tokens")


def test_an_open_batch_and_an_artifact(tmp_path) -> None:
    model, ones = Pooled().eval(), torch.ones_like(IDS)
    batch = torch.export.Dim("batch", min=1, max=64)
    with torch.no_grad():
        given = {"dynamic_shapes": ({0: batch}, {0: batch}), "tokens": MERGE}
        compiled = infopt.compile(model, (IDS, ones), **given)
        assert len(compiled.report.find("merge-tokens").applied) == 2
        compiled.save(tmp_path / "pooled")
        loaded = infopt.load(tmp_path / "pooled")
        for rows, real in ((B, 31), (1, 1), (7, 20)):
            ids = torch.randint(0, 50, (rows, T))
            mask = (torch.arange(T) < real).long().expand(rows, T)
            found = compiled(ids, mask)
            assert torch.equal(loaded(ids, mask), found)
            assert Close(1e-4, 1e-4).accepts(model(ids, mask), found) is None, rows


def test_declines_an_open_length() -> None:
    length = sympy.Symbol("t", positive=True, integer=True)
    o = Builder((Dim(length, 2, 64, 48),))
    x = o.input("x", TensorType.dense((2, length, W), torch.float32))
    rest = [o.input(f"w{i}", TensorType.of(t)) for i, t in enumerate((UP, DOWN, BIAS))]
    graph = Graph((x, *rest), (three(o, x, *rest),), dims=o.dims, stage=MergeTokens.stage)
    _, entry = run_pass(MergeTokens(MERGE), graph)
    assert "how many tokens there are is open, t" in entry.sites[0].reason
