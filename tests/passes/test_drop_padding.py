"""drop-padding: rewrites, declines, accuracy, idempotence, gain; whole models at any padding."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

import infopt
from infopt.compiler.accuracy import Exact
from infopt.compiler.cost import graph_seconds
from infopt.compiler.interpret import interpret
from infopt.compiler.pipeline import Pipeline
from infopt.compiler.target import Target
from infopt.compiler.testing import graph_of, run_pass
from infopt.passes.canonicalize import Canonicalize
from infopt.passes.drop_padding import DropPadding
from infopt.passes.fuse_attention import FuseAttention

B, T, H, D = 8, 64, 4, 32
X = torch.randn(B, T, H * D)
W = torch.randn(H * D, H * D) / 10
BIAS = torch.randn(H * D)


def lengths(*counts: int, tokens: int = T) -> torch.Tensor:
    return (torch.arange(tokens) < torch.tensor(counts)[:, None]).long()


MASK = lengths(64, 3, 7, 1, 5, 9, 20, 2)
INPUTS = [X, W, BIAS, MASK]


def heads(o, x):
    return o.permute(o.reshape(x, [B, T, H, D]), [0, 2, 1, 3])


def attend(o, x, w, b, mask):
    """One attention over the real tokens, with a residual."""
    seen = o.reshape(o.call("aten.to.dtype", mask, torch.bool), [B, 1, 1, T])
    q, k = heads(o, o.linear(x, w, b)), heads(o, x)
    y = o.permute(o.call("attention", q, k, k, seen, scale=0.3), [0, 2, 1, 3])
    return o.layer_norm(o.add(x, o.reshape(y, [B, T, H * D])), [H * D], b, b)


def pooled(o, x, w, b, mask):
    weight = o.call("aten.to.dtype", o.reshape(mask, [B, T, 1]), torch.float32)
    return o.call("aten.sum.dim_IntList", o.mul(attend(o, x, w, b, mask), weight), [1])


def packed(before: Callable, inputs=INPUTS):
    graph = graph_of(before, inputs, DropPadding())
    return graph, *run_pass(DropPadding(), graph, [tuple(inputs)])


def test_rewrites_attention_under_a_masked_sum() -> None:
    _, result, entry = packed(pooled)
    assert [s.applied for s in entry.sites] == [True]
    names = [n.op.name for n in result.nodes()]
    assert "attention" not in names and names.count("ragged_attention") == 1
    (linear,) = (n for n in result.nodes() if n.op.name == "aten.linear.default")
    (dim,) = result.dims
    assert linear.shape == (dim.symbol, H * D) and dim.hint == 111 and dim.counts == "x3"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda o, *a: attend(o, *a), "the caller reads padded tokens"),
        (lambda o, *a: o.call("aten.sum.dim_IntList", attend(o, *a), [1]), "reads padded tokens"),
        (lambda o, *a: o.call("aten.add.Scalar", pooled(o, *a), 1), ""),
        (lambda o, *a: o.call("aten.cumsum.default", attend(o, *a), 1), "reads padded tokens"),
    ],
)
def test_declines_where_padding_is_read(change, reason) -> None:
    _, _, entry = packed(change)
    (site,) = entry.sites
    assert site.applied is (not reason) and reason in site.reason


def test_declines_a_mask_that_is_not_an_input_over_the_keys() -> None:
    def per_query(o, x, w, b, mask):
        seen = o.reshape(o.call("aten.to.dtype", mask, torch.bool), [B, 1, T, 1])
        q = heads(o, x)
        return o.call("attention", q, q, q, o.expand(seen, [B, 1, T, T]), scale=1.0)

    _, _, entry = packed(per_query)
    assert "no [batch, tokens] input over the keys" in entry.sites[0].reason


def test_declines_an_example_without_padding() -> None:
    _, _, entry = packed(pooled, [X, W, BIAS, torch.ones(B, T, dtype=torch.long)])
    assert entry.sites[0].reason == "512 of 512 tokens of the example are real: packing costs more"


@pytest.mark.parametrize("counts", [(64, 3, 7, 1) * 2, (1,) * 8, (64,) * 8, (0, 0, 5, 2) * 2])
def test_accuracy(counts) -> None:
    graph, result, _ = packed(pooled)
    inputs = [X, W, BIAS, lengths(*counts)]
    (expected,), (found,) = interpret(graph, inputs), interpret(result, inputs)
    assert Exact().accepts(expected, found) is None


def test_idempotent() -> None:
    _, result, _ = packed(pooled)
    again, _ = run_pass(DropPadding(), result, [tuple(INPUTS)])
    assert again is result


def test_gain() -> None:
    graph, result, entry = packed(pooled)
    target = Target.detect()
    saved = graph_seconds(graph, target) - graph_seconds(result, target)
    assert entry.sites[0].gain == pytest.approx(saved) and saved > 0


class Pooled(nn.Module):
    """Embeds ids with positions, two encoder layers, the mean of the real tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(50, 128), nn.Embedding(64, 128)
        self.qkv = nn.ModuleList(nn.Linear(128, 384) for _ in range(2))
        self.up = nn.ModuleList(nn.Linear(128, 128) for _ in range(2))
        self.norm = nn.LayerNorm(128)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        batch, tokens = ids.shape
        x = self.token(ids) + self.position(torch.arange(tokens))
        seen = (mask != 0)[:, None, None, :]
        for qkv, up in zip(self.qkv, self.up, strict=True):
            q, k, v = (
                part.reshape(batch, tokens, 4, 32).transpose(1, 2)
                for part in (qkv(x)[..., :128], qkv(x)[..., 128:256], qkv(x)[..., 256:])
            )
            y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
            x = self.norm(x + nn.functional.gelu(up(y.transpose(1, 2).reshape(batch, tokens, 128))))
        weight = mask[..., None].to(x.dtype)
        return (x * weight).sum(1) / weight.sum(1).clamp(min=1)


PADDINGS = [
    MASK,
    lengths(*(64,) * 8),
    lengths(1, *(0,) * 7),
    lengths(*(0,) * 8),
    MASK.flip(1),  # padding on the left
    (torch.arange(512).reshape(8, 64) % 3).long(),  # holes, and values that are not 1
]


@pytest.mark.parametrize("door", ["compile", "backend"])
def test_a_model_at_any_padding(door, tmp_path) -> None:
    model, ids = Pooled().eval(), torch.randint(0, 50, (B, T))
    with torch.no_grad():
        if door == "compile":
            compiled = infopt.compile(model, (ids, MASK), strict=True)
        else:
            torch._dynamo.reset()
            compiled = torch.compile(model, backend="infopt", dynamic=False)
        for mask in PADDINGS:
            torch.testing.assert_close(compiled(ids, mask), model(ids, mask), rtol=1e-4, atol=1e-5)
        assert "applied, gain" in infopt.explain(compiled, "drop-padding")


def test_an_artifact_counts_its_tokens(tmp_path) -> None:
    model, ids = Pooled().eval(), torch.randint(0, 50, (B, T))
    with torch.no_grad():
        compiled = infopt.compile(model, (ids, MASK))
        compiled.save(tmp_path / "pooled")
        loaded = infopt.load(tmp_path / "pooled")
        for mask in PADDINGS:
            assert torch.equal(loaded(ids, mask), compiled(ids, mask))
    assert loaded.manifest.dims == ()


def test_with_dynamic_sizes() -> None:
    model, ids = Pooled().eval(), torch.randint(0, 50, (B, T))
    batch, tokens = torch.export.Dim("batch", max=64), torch.export.Dim("tokens", max=64)
    shapes = ({0: batch, 1: tokens}, {0: batch, 1: tokens})
    with torch.no_grad():
        compiled = infopt.compile(model, (ids, MASK), dynamic_shapes=shapes)
        assert compiled.report.find("drop-padding").applied
        for size, mask in ((T, MASK), (11, lengths(11, 2, tokens=11)), (40, lengths(9, tokens=40))):
            ids = torch.randint(0, 50, (mask.shape[0], size))
            torch.testing.assert_close(compiled(ids, mask), model(ids, mask), rtol=1e-4, atol=1e-5)


def test_runs_after_other_passes_see_an_fx_module_of_it() -> None:
    """The packed graph still converts to a runnable fx module."""
    graph, result, _ = packed(pooled)
    (found,) = result.to_fx()(*INPUTS)
    (expected,) = graph.to_fx()(*INPUTS)
    assert Exact().accepts(expected, found) is None
    assert Pipeline((Canonicalize(), FuseAttention(), DropPadding()))


def zero_where_hidden(form: str):
    """The masked sum of `pooled`, with the padding set to zero in another way."""

    def before(o, x, w, b, mask):
        y, rows = attend(o, x, w, b, mask), o.reshape(mask, [B, T, 1])
        real = o.call("aten.to.dtype", rows, torch.bool)
        kept = {
            "where": lambda: o.call("aten.where.ScalarOther", real, y, 0),
            "where 1": lambda: o.call("aten.where.ScalarOther", real, y, 1),
            "not": lambda: o.call("aten.masked_fill.Scalar", y, o.logical_not(real), 0),
            "bitwise not": lambda: o.call("aten.masked_fill.Scalar", y, o.bitwise_not(real), 0),
            "equal 0": lambda: o.call(
                "aten.masked_fill.Scalar", y, o.call("aten.eq.Scalar", rows, 0), 0
            ),
            "equal 1": lambda: o.call(
                "aten.masked_fill.Scalar", y, o.call("aten.eq.Scalar", rows, 1), 0
            ),
            "filled with 1": lambda: o.call("aten.masked_fill.Scalar", y, o.logical_not(real), 1),
            "the mask itself": lambda: o.call("aten.masked_fill.Scalar", y, real, 0),
        }[form]()
        return o.call("aten.sum.dim_IntList", kept, [1])

    return before


@pytest.mark.parametrize("form", ["where", "not", "bitwise not", "equal 0"])
def test_padding_may_be_zeroed_in_every_way(form) -> None:
    graph, result, entry = packed(zero_where_hidden(form))
    assert [s.applied for s in entry.sites] == [True]
    (expected,), (found,) = interpret(graph, INPUTS), interpret(result, INPUTS)
    assert Exact().accepts(expected, found) is None


@pytest.mark.parametrize("form", ["where 1", "equal 1", "filled with 1", "the mask itself"])
def test_what_does_not_zero_the_padding_reads_it(form) -> None:
    _, _, entry = packed(zero_where_hidden(form))
    assert "reads padded tokens" in entry.sites[0].reason


def masked_sum(o, y, mask):
    weight = o.call("aten.to.dtype", o.reshape(mask, [B, T, 1]), torch.float32)
    return o.call("aten.sum.dim_IntList", o.mul(y, weight), [1])


VARIES = {
    "by token": [B, T, H * D],
    "by token, one number": [B, T, 1],
    "by position": [1, T, H * D],
    "by position, without a batch": [T, H * D],
    "by position, one number": [T, 1],
    "by sequence": [B, 1, H * D],
    "by sequence, one number": [B, 1, 1],
    "not at all": [1, 1, H * D],
    "not at all, without a batch": [1, H * D],
    "a row": [H * D],
    "one number": [],
}


@pytest.mark.parametrize("case", VARIES)
def test_operands_that_vary_along_other_axes(case: str) -> None:
    """Each packed token meets the element of its own place."""
    inputs = [*INPUTS, torch.randn(VARIES[case])]

    def before(o, x, w, b, mask, other):
        y = attend(o, o.mul(x, other), w, b, mask)
        return masked_sum(o, o.mul(y, other), mask)

    graph, result, entry = packed(before, inputs)
    assert [s.applied for s in entry.sites] == [True]
    products = [n for n in result.nodes() if n.op.name == "aten.mul.Tensor"]
    assert {n.shape[0] for n in products} == {result.dims[0].symbol}
    given = [X, W, BIAS, lengths(*(1, 0, 64, 2) * 2).flip(1), inputs[4]]
    (expected,), (found,) = interpret(graph, given), interpret(result, given)
    assert Exact().accepts(expected, found) is None


SEES = {
    "a number that is not 0": lambda o, m: o.reshape(o.call("aten.ne.Scalar", m, 0), [B, 1, 1, T]),
    "expanded to all queries": lambda o, m: o.expand(
        o.reshape(o.call("aten.to.dtype", m, torch.bool), [B, 1, 1, T]), [B, 1, T, T]
    ),
    "expanded to all heads": lambda o, m: o.expand(
        o.reshape(o.call("aten.to.dtype", m, torch.bool), [B, 1, 1, T]), [B, H, T, T]
    ),
    "reshaped twice": lambda o, m: o.reshape(
        o.reshape(o.reshape(o.call("aten.to.dtype", m, torch.bool), [B, 1, 1, T]), [B, T]),
        [B, 1, 1, T],
    ),
}
SEES_SOMETHING_ELSE = {
    "a number that is not 1": lambda o, m: o.reshape(o.call("aten.ne.Scalar", m, 1), [B, 1, 1, T]),
    "a number above 0": lambda o, m: o.reshape(o.call("aten.gt.Scalar", m, 0), [B, 1, 1, T]),
    "the mask from behind": lambda o, m: o.reshape(
        o.call("aten.flip.default", o.call("aten.to.dtype", m, torch.bool), [1]), [B, 1, 1, T]
    ),
    "the first sequence's for all": lambda o, m: o.expand(
        o.reshape(
            o.call("aten.slice.Tensor", o.call("aten.to.dtype", m, torch.bool), 0, 0, 1),
            [1, 1, 1, T],
        ),
        [B, 1, 1, T],
    ),
}


def seen_by(build, causal=False):
    def before(o, x, w, b, mask):
        q = heads(o, o.linear(x, w, b))
        y = o.call("attention", q, q, q, build(o, mask), scale=0.3, causal=causal)
        return masked_sum(o, o.reshape(o.permute(y, [0, 2, 1, 3]), [B, T, H * D]), mask)

    return before


@pytest.mark.parametrize("case", SEES)
def test_masks_of_the_keys(case: str) -> None:
    graph, result, entry = packed(seen_by(SEES[case]))
    assert [s.applied for s in entry.sites] == [True]
    (expected,), (found,) = interpret(graph, INPUTS), interpret(result, INPUTS)
    assert Exact().accepts(expected, found) is None


@pytest.mark.parametrize("case", SEES_SOMETHING_ELSE)
def test_what_is_no_mask_of_the_keys(case: str) -> None:
    _, _, entry = packed(seen_by(SEES_SOMETHING_ELSE[case]))
    assert entry.sites[0].reason == "its mask is no [batch, tokens] input over the keys"


def test_causal_attention_or_none_with_a_mask_is_left() -> None:
    for build, causal in ((SEES["a number that is not 0"], True), (lambda o, m: None, False)):
        _, _, entry = packed(seen_by(build, causal))
        assert entry.sites[0].reason == "its mask is no [batch, tokens] input over the keys"


def test_without_examples_nothing_is_known_of_the_padding() -> None:
    graph = graph_of(pooled, INPUTS, DropPadding())
    result, entry = run_pass(DropPadding(), graph)
    assert result is graph
    assert entry.sites[0].reason.startswith("there are no example inputs that show how much")
