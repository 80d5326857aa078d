"""Bands of masks: what queries surely see, against the masks' values."""

from dataclasses import replace

import pytest
import sympy
import torch

from infopt.compiler.graph import Graph
from infopt.compiler.infer import Builder
from infopt.compiler.interpret import interpret
from infopt.compiler.testing import graph_of
from infopt.compiler.types import Dim, TensorType
from infopt.passes.bands import Band, added_band, band_of
from infopt.passes.simplify_masks import all_true

M = torch.rand(5, 5) > 0.4
LOWER = torch.ones(5, 5, dtype=torch.bool).tril()


def places(o, n=5):
    return o.reshape(o.arange(n), [1, n]), o.reshape(o.arange(n), [n, 1])


def in_window(o, m, width=3):
    key, query = places(o)
    return o.bitwise_and(o.gt(key, o.sub(query, width)), o.le(key, query))


CASES = {
    "key <= query": (lambda o, m: o.le(*places(o)), (True, 0, 0)),
    "query >= key": (lambda o, m: o.ge(*places(o)[::-1]), (True, 0, 0)),
    "query <= key": (lambda o, m: o.le(*places(o)[::-1]), (False, 0, 1)),
    "key < query": (lambda o, m: o.lt(*places(o)), (False, 0, 1)),
    "window": (in_window, (True, 3, 0)),
    "mirrored": (
        lambda o, m: o.bitwise_and(
            o.ge(*places(o)[::-1]), o.lt(o.sub(places(o)[1], 2), places(o)[0])
        ),
        (True, 2, 0),
    ),
    "window of nothing": (lambda o, m: in_window(o, m, 0), (True, 0, 1)),
    "window from the key's side": (
        lambda o, m: o.bitwise_and(o.le(*places(o)), o.gt(o.sub(places(o)[0], 3), places(o)[1])),
        (True, 0, 1),
    ),
    "the narrower of two": (
        lambda o, m: o.bitwise_and(in_window(o, m, 4), in_window(o, m, 2)), (True, 2, 0)
    ),
    "window without causality": (
        lambda o, m: o.gt(places(o)[0], o.sub(places(o)[1], 3)), (False, 0, 1)
    ),
    "a further mask": (lambda o, m: o.bitwise_and(m, in_window(o, m)), (True, 3, 1)),
    "what is always true": (
        lambda o, m: o.bitwise_and(o.call("aten.full.default", [5, 5], True), in_window(o, m)),
        (True, 3, 0),
    ),
    "expanded": (lambda o, m: o.expand(in_window(o, m), [2, 1, 5, 5]), (True, 3, 0)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_computed_masks(case: str) -> None:
    build, (causal, window, left) = CASES[case]
    graph = graph_of(build, [M])
    band = band_of(graph.outputs[0], graph)
    assert (band.causal, band.window, len(band.rest)) == (causal, window, left)
    (mask,) = interpret(graph, [M])
    known = LOWER.triu(1 - window) if window else LOWER if causal else LOWER | True
    if band.rest:
        rest = replace(graph, outputs=band.rest)
        for part in interpret(rest, [M]):
            known = known & part
    assert torch.equal(mask, known.expand_as(mask))


@pytest.mark.parametrize(
    ("mask", "window"),
    [
        (LOWER, 0),
        (LOWER.reshape(1, 1, 5, 5), 0),
        (torch.ones(3, 5, dtype=torch.bool).tril(), 0),
        (LOWER.triu(-1), 2),
        (LOWER.triu(0), 1),
        (LOWER.triu(-1).expand(2, 1, 5, 5).contiguous(), 2),
        (torch.stack([LOWER, LOWER.triu(-1)]), None),
        (LOWER.t().contiguous(), None),
        (LOWER.tril(-1), None),
        (torch.ones(5, 5).tril(1).bool(), None),
        (LOWER.float(), None),
        (LOWER[0], None),
    ],
)
def test_constants(mask: torch.Tensor, window: int | None) -> None:
    node = Builder().const("mask", TensorType.of(mask))
    expected = Band(False, 0, (node,)) if window is None else Band(True, window, ())
    assert band_of(node, Graph((), (node,), {"mask": mask})) == expected


def added(o, m, low=-1e35, seen=0.0):
    number = o.call("aten.scalar_tensor.default", seen, dtype=torch.float32)
    return o.call("aten.where.ScalarOther", in_window(o, m), number, low)


@pytest.mark.parametrize(
    ("build", "window"),
    [
        (added, 3),
        (lambda o, m: added(o, m, low=-1e4), None),
        (lambda o, m: added(o, m, seen=1.0), None),
        (lambda o, m: o.call("aten.where.ScalarOther", m, o.sum(m), -1e35), None),
    ],
)
def test_masks_that_are_added(build, window: int | None) -> None:
    graph = graph_of(build, [M])
    found = added_band(graph.outputs[0], graph, -1e30)
    assert found == (None if window is None else Band(True, window, ()))


def test_constants_that_are_added() -> None:
    low = torch.finfo(torch.float32).min
    for values, window in (
        (torch.where(LOWER.triu(-1), 0.0, low), 2),
        (torch.where(LOWER, 0.0, -float("inf")), 0),
        (torch.where(LOWER, 0.0, -100.0), None),
        (torch.where(LOWER[:3], 0.0, low), None),  # more keys than queries: not asked
        (torch.where(LOWER, 1.0, low), None),
    ):
        node = Builder().const("mask", TensorType.of(values))
        found = added_band(node, Graph((), (node,), {"mask": values}), -1e30)
        assert found == (None if window is None else Band(True, window, ()))


def segments(o, n, first=1, usual=1):
    """Which text of several in a row a place is of, as transformers count them."""
    at = o.reshape(o.arange(n), [1, n])
    before = o.sub(o.call("aten.slice.Tensor", at, 1, 0, 1), first)
    number = o.cumsum(o.ne(o.call("aten.diff.default", at, 1, -1, before), usual), -1)
    return o.eq(o.reshape(number, [1, 1, n, 1]), o.reshape(number, [1, 1, 1, n]))


def test_one_text_is_of_one_segment() -> None:
    size = sympy.Symbol("s", integer=True, positive=True)
    o = Builder((Dim(size, 2, None, 5),))
    for n in (5, size):
        for node, known in (
            (segments(o, n), True),
            (segments(o, n, first=3), False),
            (segments(o, n, usual=2), False),
        ):
            assert all_true(node, Graph((), (node,), dims=o.dims)) is known
