"""max_activations where sizes are open: calls run in parts, as many as their size asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import sympy
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import infopt
from infopt.compiler.graph import Graph, Node
from infopt.compiler.infer import Builder
from infopt.compiler.types import Dim, TensorType
from infopt.models.encoder import Encoder, EncoderConfig
from infopt.passes.open_batch import inputs_of
from infopt.runtime.lifetime import arena_bytes
from infopt.runtime.parts import Parts

SEEN = 96


class Mlp(nn.Sequential):
    """Rows of 8, wide within."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(8, 256), nn.GELU(), nn.LayerNorm(256), nn.Linear(256, 8))


def opened(net: nn.Module, least: int = 1, limit: int | None = None, **options) -> infopt.Compiled:
    rows = torch.export.Dim("rows", min=least, max=4096)
    x = torch.randn(SEEN, 8)
    with torch.no_grad():
        return infopt.compile(
            net, (x,), dynamic_shapes=({0: rows},), max_activations=limit, **options
        )


@cache
def pair(least: int) -> tuple[infopt.Compiled, infopt.Compiled, int]:
    """The same weights without a limit and with a quarter of what it needs."""
    torch.manual_seed(0)
    net = Mlp().eval()
    plain = opened(net, least, batch_invariant=True)
    limit = arena_bytes(plain._built.lowered.plan, [SEEN]) // 4
    return plain, opened(net, least, limit, batch_invariant=True), limit


@settings(max_examples=40)
@given(rows=st.integers(1, 700))
@example(rows=1)
@example(rows=15)
@example(rows=17)
@example(rows=97)
def test_every_size_is_the_same_to_the_bit(rows: int) -> None:
    """Also sizes below a part, and last parts that are shorter."""
    plain, lean, _ = pair(1)
    x = torch.randn(rows, 8)
    assert torch.equal(lean(x), plain(x))


@settings(max_examples=20)
@given(rows=st.integers(3, 300))
@example(rows=49)
def test_a_last_part_is_never_too_short_to_be_a_call(rows: int) -> None:
    """The program takes 3 rows or more: a last one of 1 is made longer, and counts once."""
    plain, lean, _ = pair(3)
    x = torch.randn(rows, 8)
    assert torch.equal(lean(x), plain(x))


def test_parts_keep_the_limit_and_are_as_few_as_can_be() -> None:
    plain, lean, limit = pair(1)
    plan, parts, calls = lean._built.lowered.plan, lean._parts, []
    assert parts is not None

    def call(inputs: list) -> list:
        calls.append(inputs[0].shape[0])
        return lean._built.program(inputs)

    for rows in (1, SEEN // 8, SEEN, 1000):
        calls.clear()
        inputs, _ = lean._call_inputs((torch.randn(rows, 8),), {})
        parts.run(plan, call, inputs)
        assert sum(calls) == rows
        assert all(arena_bytes(plan, [n]) <= limit for n in calls)
        fewest = next(n for n in range(1, 99) if arena_bytes(plan, [-(-rows // n)]) <= limit)
        assert len(calls) <= fewest + 1, (rows, calls)  # parts are whole panels
    assert "cut along rows" in "".join(lean.report.notes) and plain._parts is None


@torch.no_grad()
def test_a_batch_of_sentences(tmp_path: Path) -> None:
    """Attention keeps sequences apart; the artifact keeps the limit too."""
    config = EncoderConfig(vocabulary=50, width=32, layers=2, heads=2, hidden=128, positions=64)
    net = Encoder(config).eval()
    ids = torch.randint(0, 50, (8, 24))
    batch, tokens = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("n", min=2, max=64)
    shapes = ({0: batch, 1: tokens},) * 2
    args = (ids, torch.ones_like(ids))
    plain = infopt.compile(net, args, dynamic_shapes=shapes, batch_invariant=True)
    limit = plain.report.memory["arena"] // 3
    lean = infopt.compile(
        net, args, dynamic_shapes=shapes, batch_invariant=True, max_activations=limit
    )
    loaded = infopt.load(lean.save(tmp_path / "net.infopt"))
    for sizes in ((1, 2), (8, 24), (33, 11)):
        ids = torch.randint(0, 50, sizes)
        mask = torch.ones_like(ids)
        mask[0, 1:] = 0
        expected = plain(ids, mask)
        assert torch.equal(lean(ids, mask), expected)
        assert torch.equal(loaded(ids, mask), expected)  # type: ignore[operator]


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x - x.mean(0)) * 2


class Numbered(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) + torch.arange(x.shape[0])[:, None]


class Total(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x @ x.T)


class Itself(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.relu(x), x


@pytest.mark.parametrize("net", [Centred, Numbered, Total, Itself])
def test_what_cannot_be_cut_says_why(net: type[nn.Module]) -> None:
    reason = {
        Centred: "mixes parts of rows",
        Numbered: "made for all of rows at once",
        Total: "rows",
        Itself: "a result shares memory",
    }[net]
    with pytest.raises(infopt.UnreachableBudget, match=reason) as refused:
        opened(net(), 2, 64)
    assert "with the sizes seen, and no open size can be cut" in str(refused.value)


def test_an_artifact_that_cuts_what_there_is_not() -> None:
    plan = pair(1)[1]._built.lowered.plan
    right = {"dim": 0, "inputs": [0], "limit": 64}
    Parts.from_json(right, plan)
    for wrong in ({"dim": 1}, {"dim": -1}, {"inputs": [9999]}, {"limit": "much"}):
        with pytest.raises(ValueError):
            Parts.from_json(right | wrong, plan)


def test_a_limit_below_the_shortest_part() -> None:
    with pytest.raises(infopt.UnreachableBudget, match=r"1 of 96 rows, the fewest .* need"):
        opened(Mlp().eval(), 1, 64)
    _, lean, _limit = pair(1)
    parts = replace(lean._parts, limit=64)  # type: ignore[type-var]
    with pytest.raises(infopt.OverBudget, match="all of them"):
        parts.of_call(lean._built.lowered.plan, [SEEN])


ROWS = Dim(sympy.Symbol("rows", integer=True, positive=True), 1, 64, 8)


def graph(build: Callable[[Builder, Node], tuple[Node, ...]]) -> Graph:
    """build of x f32[rows, 8]"""
    o = Builder([ROWS])
    x = o.input("x", TensorType.dense((ROWS.symbol, 8), torch.float32))
    return Graph((x,), build(o, x), dims=(ROWS,))


@pytest.mark.parametrize("name", ["full", "zeros", "ones", "expand"])
def test_what_is_alike_in_every_part_is_made_for_each(name: str) -> None:
    def build(o: Builder, x: Node) -> tuple[Node, ...]:
        shape = [ROWS.symbol, 8]
        if name == "expand":
            made = o.expand(o.call("aten.full.default", [1, 8], 2.0), shape)
        else:
            made = o.call(f"aten.{name}.default", shape, *([2.0] if name == "full" else []))
        return (o.add(x, made),)

    assert inputs_of(graph(build), ROWS) == (0,)


def test_results_grow_with_the_batch() -> None:
    two = graph(lambda o, x: (o.relu(x), o.call("aten.ones.default", [8, 8])))
    assert inputs_of(two, ROWS) == "a result does not grow with rows"
    assert "mixes parts of rows" in str(inputs_of(graph(lambda o, x: (o.sum(x, [0]),)), ROWS))


def test_every_size_of_rows_is_the_first() -> None:
    o = Builder([ROWS])
    x = o.input("x", TensorType.dense((8, ROWS.symbol), torch.float32))
    found = inputs_of(Graph((x,), (o.relu(x),), dims=(ROWS,)), ROWS)
    assert found == "rows is not the first size of the inputs that have it"
