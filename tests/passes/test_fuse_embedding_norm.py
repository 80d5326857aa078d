"""fuse-embedding-norm: rewrites, declines, accuracy, idempotence, gain."""

import pytest
import torch

import infopt
from infopt.codegen.kernels.embedding import embedding_norm
from infopt.compiler.cost import graph_seconds
from infopt.compiler.target import Target
from infopt.compiler.testing import check_pass, graph_of, run_pass
from infopt.passes.fuse_embedding_norm import FuseEmbeddingNorm

IDS, KIND_IDS = torch.randint(0, 50, (3, 7)), torch.randint(0, 2, (1, 7))
WORDS, KINDS, PLACES = torch.randn(50, 32), torch.randn(2, 32), torch.randn(7, 32)
W, B = torch.randn(32), torch.randn(32)
INPUTS = [IDS, KIND_IDS, WORDS, KINDS, PLACES, W, B]


def norm(o, x, w, b):
    return o.layer_norm(x, [32], w, b, 1e-12)


def bert(o, ids, kind_ids, words, kinds, places, w, b):
    total = o.add(o.add(o.embedding(words, ids), o.embedding(kinds, kind_ids)), places)
    return norm(o, total, w, b)


def fused(o, ids, kind_ids, words, kinds, places, w, b):
    return o.call(embedding_norm, ids, words, kind_ids, kinds, None, places, w, b, eps=1e-12)


def test_rewrites_three_tables() -> None:
    check_pass(FuseEmbeddingNorm(), bert, fused, INPUTS)


@pytest.mark.parametrize("swapped", [False, True])
def test_rewrites_one_row_for_all_first_or_last(swapped: bool) -> None:
    def before(o, ids, kind_ids, words, kinds, places, w, b):
        parts = (o.embedding(words, ids), w)
        return norm(o, o.add(*(parts[::-1] if swapped else parts)), w, b)

    def after(o, ids, kind_ids, words, kinds, places, w, b):
        return o.call(embedding_norm, ids, words, None, w, None, None, w, b, eps=1e-12)

    check_pass(FuseEmbeddingNorm(), before, after, INPUTS)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (
            lambda o, i, j, t, k, p, w, b: norm(
                o, o.add(o.add(o.add(o.embedding(t, i), p), w), b), w, b
            ),
            "4 terms, the kernel sums three",
        ),
        (
            lambda o, i, j, t, k, p, w, b: norm(
                o, o.add(o.expand(o.reshape(p, [1, 7, 32]), [3, 7, 32]), o.embedding(t, i)), w, b
            ),
            "which is no row of a token",
        ),
    ],
)
def test_declines(program, reason) -> None:
    graph = graph_of(program, INPUTS, FuseEmbeddingNorm())
    result, entry = run_pass(FuseEmbeddingNorm(), graph, [tuple(INPUTS)])
    assert result is graph and reason in entry.sites[0].reason


def test_declines_a_sum_that_is_read_again() -> None:
    def residual(o, ids, kind_ids, words, kinds, places, w, b):
        total = o.add(o.embedding(words, ids), places)
        return o.add(norm(o, total, w, b), total)

    graph = graph_of(residual, INPUTS, FuseEmbeddingNorm())
    result, entry = run_pass(FuseEmbeddingNorm(), graph, [tuple(INPUTS)])
    assert result is graph and not entry.sites


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_accuracy_of_the_program(dtype: torch.dtype) -> None:
    class Embeds(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places = torch.nn.Embedding(50, 32), torch.nn.Embedding(64, 32)
            self.norm = torch.nn.LayerNorm(32)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
            return torch.relu(self.norm(x))

    model = Embeds().eval().to(dtype)
    with torch.no_grad():
        compiled = infopt.compile(model, (IDS,), strict=True)
        assert "embedding_norm" in compiled.report.kernels
        torch.testing.assert_close(compiled(IDS), model(IDS))
        with pytest.raises(IndexError):
            compiled(IDS + 50)


def test_gain() -> None:
    graph = graph_of(bert, INPUTS, FuseEmbeddingNorm())
    result, _ = run_pass(FuseEmbeddingNorm(), graph, [tuple(INPUTS)])
    target = Target.detect()
    assert graph_seconds(result, target) < graph_seconds(graph, target)


def test_idempotent() -> None:
    graph = graph_of(fused, INPUTS, FuseEmbeddingNorm())
    assert run_pass(FuseEmbeddingNorm(), graph, [tuple(INPUTS)])[0] is graph


def two_axes(o, i, j, t, k, p, w, b):
    return o.layer_norm(o.embedding(t, i), [7, 32], p, p, 1e-12)


def test_declines_norms_of_several_axes() -> None:
    graph = graph_of(two_axes, INPUTS, FuseEmbeddingNorm())
    result, entry = run_pass(FuseEmbeddingNorm(), graph)
    assert result is graph
    assert entry.sites[0].reason == "the norm is over (7, 32) of f32[3, 7, 32]"


def test_declines_a_table_for_every_token_that_comes_third() -> None:
    """The sum keeps its order, and its first two terms are where rows of tokens come from."""

    def third(o, i, j, t, k, p, w, b):
        return norm(o, o.add(o.add(o.relu(p), p), o.embedding(t, i)), w, b)

    graph = graph_of(third, INPUTS, FuseEmbeddingNorm())
    result, entry = run_pass(FuseEmbeddingNorm(), graph)
    assert result is graph and entry.sites[0].reason == "no table is read for every token"


def test_declines_terms_of_another_dtype() -> None:
    def mixed(o, i, j, t, k, p, w, b):
        return norm(o, o.add(o.embedding(t, i), p), w, b)

    given = [*INPUTS[:4], PLACES.bfloat16(), W, B]
    graph = graph_of(mixed, given, FuseEmbeddingNorm())
    result, entry = run_pass(FuseEmbeddingNorm(), graph)
    assert result is graph
    assert entry.sites[0].reason == "a term is torch.bfloat16, the sum torch.float32"


def test_rows_by_index_select() -> None:
    """Tokens of one text, without a batch."""

    def selected(o, ids, words, w, b):
        return norm(o, o.call("aten.index_select.default", words, 0, ids), w, b)

    def expected(o, ids, words, w, b):
        return o.call(embedding_norm, ids, words, None, None, None, None, w, b, eps=1e-12)

    check_pass(FuseEmbeddingNorm(), selected, expected, [IDS[0], WORDS, W, B])


def test_a_sum_in_the_second_operand() -> None:
    def nested(o, i, j, t, k, p, w, b):
        return norm(o, o.add(p, o.add(o.embedding(t, i), o.embedding(k, j))), w, b)

    check_pass(FuseEmbeddingNorm(), nested, fused, INPUTS)
