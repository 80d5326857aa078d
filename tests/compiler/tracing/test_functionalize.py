"""Views and writes: what a write through each view changes, which parts are apart, and what has no
pure form."""

from __future__ import annotations

import pytest
import torch

from infopt.compiler.errors import TraceDeclined
from infopt.compiler.graph import Graph
from infopt.compiler.interpret import interpret
from infopt.compiler.tracing.trace import from_fx
from infopt.compiler.verify import verify
from tests.compiler.tracing.traced import by_hand

aten = torch.ops.aten


def run(graph: Graph, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(the result, the first input afterwards)"""
    verify(graph, "trace")
    [(index, _)] = graph.updates
    assert index == 0
    result, *_ = interpret(graph, mine := [v.clone() for v in inputs])
    return result, mine[0]


def written_through(overload, args: tuple, x: torch.Tensor) -> None:
    """Multiplying a view by 3 and then reading the whole is what torch does."""
    expected = x.clone()
    view = overload(expected, *args)
    module = by_hand(
        (overload, ("x", *args), overload(x, *args)),
        (aten.mul_.Scalar, ("0", 3.0), overload(x, *args)),
        (aten.neg.default, ("x",), x.clone()),
        x=x,
    )
    view.mul_(3.0)
    result, after = run(from_fx(module), x)
    assert torch.equal(after, expected) and torch.equal(result, -expected)


X = torch.arange(24.0).reshape(2, 3, 4) + 1
VIEWS = [
    (aten.permute.default, ([2, 0, 1],)), (aten.permute.default, ([-1, 0, -2],)),
    (aten.transpose.int, (0, 2)), (aten.transpose.int, (-1, -2)),
    (aten.swapaxes.default, (0, -1)), (aten.swapdims.default, (1, 0)),
    (aten.movedim.int, (0, 2)), (aten.movedim.int, (-1, 0)), (aten.mT.default, ()),
    (aten.numpy_T.default, ()),
    (aten.view.default, ([6, 4],)), (aten.unsqueeze.default, (1,)),
    (aten.flatten.using_ints, (1, 2)), (aten.unflatten.int, (2, [2, 2])),
    (aten.select.int, (1, 2)), (aten.select.int, (-1, -2)),
    (aten.slice.Tensor, (1, 1, 3)), (aten.slice.Tensor, (2, 0, 4, 2)),
    (aten.slice.Tensor, (1, -2, None)), (aten.narrow.default, (2, 1, 2)),
    (aten.diagonal.default, (1, 0, 2)), (aten.diagonal.default, (-1, 1, 2)),
    (aten.expand.default, ([2, 3, 4],)), (aten.alias.default, ()), (aten.detach.default, ()),
]  # fmt: skip


@pytest.mark.parametrize(("overload", "args"), VIEWS, ids=lambda v: str(v).replace(" ", ""))
def test_a_write_through_a_view(overload, args: tuple) -> None:
    written_through(overload, args, X)


def test_a_write_through_a_view_of_a_matrix_or_a_number() -> None:
    written_through(aten.t.default, (), X[0])
    written_through(aten.t.default, (), X[0, 0])
    for overload, args in (
        (aten.permute.default, ([],)),
        (aten.transpose.int, (0, 0)),
        (aten.view.default, ([1],)),
    ):
        written_through(overload, args, torch.tensor(2.0))


def add_part(first: tuple, second: tuple, x: torch.Tensor = X) -> Graph:
    """One part of x, plus another one in its place."""
    (a, a_args), (b, b_args) = first, second
    return from_fx(
        by_hand(
            (a, ("x", *a_args), a(x, *a_args)),
            (b, ("x", *b_args), b(x, *b_args)),
            (aten.add_.Tensor, ("0", "1"), a(x, *a_args)),
            x=x,
        )
    )


def pick(index: int, dim: int = 1) -> tuple:
    return aten.select.int, (dim, index)


def cut(start: int | None, end: int | None, step: int = 1, dim: int = 1) -> tuple:
    return aten.slice.Tensor, (dim, start, end, step)


WIDE = torch.arange(12.0).reshape(2, 6)
APART = [
    (pick(0), pick(1)), (pick(-1), pick(0)), (pick(0), pick(-1)), (pick(-1), pick(-2)),
    (cut(1, 2, dim=0), pick(0, 0)), (cut(0, 2), cut(2, 4)), (cut(2, 4), cut(0, 2)),
    (cut(-2, None), cut(1, 3)), (cut(None, 1), cut(5, 99)),
    (cut(0, 3, dim=-1), cut(3, 6)), (pick(0, 0), pick(1, 0)),
    (cut(0, 3), (aten.narrow.default, (1, 3, 3))),
]  # fmt: skip
TOGETHER = [
    (cut(0, 2), cut(1, 3)), (cut(1, 3), cut(0, 2)), (cut(0, 3, 2), cut(1, 3, 1)),
    (cut(2, 4), cut(-3, -1)), (cut(0, 3), cut(0, 6, 2)),
]  # fmt: skip


@pytest.mark.parametrize(("first", "second"), APART, ids=str)
def test_parts_that_are_apart(first: tuple, second: tuple) -> None:
    expected = WIDE.clone()
    a, b = (overload(expected, *args) for overload, args in (first, second))
    a.add_(b)
    assert torch.equal(run(add_part(first, second, WIDE), WIDE)[1], expected)


@pytest.mark.parametrize(("first", "second"), TOGETHER, ids=str)
def test_parts_that_overlap_are_declined(first: tuple, second: tuple) -> None:
    with pytest.raises(TraceDeclined, match="reads and writes overlapping memory"):
        add_part(first, second, WIDE)


def test_parts_along_different_axes_are_not_apart() -> None:
    square = torch.arange(9.0).reshape(3, 3)
    with pytest.raises(TraceDeclined, match="overlapping memory"):
        add_part(pick(0, 0), pick(1, 1), square)
    with pytest.raises(TraceDeclined, match="overlapping memory"):
        add_part((aten.diagonal.default, ()), pick(1, 1), square)


def test_what_is_read_and_written_in_the_same_place() -> None:
    assert torch.equal(run(add_part(pick(1), pick(1)), X)[1][:, 1], X[:, 1] * 2)


def test_memory_that_is_shared_in_an_unknown_way() -> None:
    x, part = torch.arange(6.0).reshape(2, 3), (aten.as_strided.default, ("x", [2], [1]))
    view = x.as_strided((2,), (1,))
    read = by_hand((*part, view), (aten.neg.default, ("0",), view.clone()), x=x)
    assert not from_fx(read).updates  # fine as long as nobody writes
    for calls, reason in (
        (((aten.relu_.default, ("0",), view),), "relu_.* writes to as_strided.* in an unknown way"),
        (
            ((aten.relu_.default, ("x",), x), (aten.neg.default, ("0",), view.clone())),
            r"as_strided\w* shares memory with a value that aten.relu_.default writes to",
        ),
    ):
        with pytest.raises(TraceDeclined, match=reason):
            from_fx(by_hand((*part, view), *calls, x=x))


def test_a_write_through_a_broadcast_view_is_declined() -> None:
    x = torch.ones(2, 3)
    wide = x.expand(4, 2, 3)
    made = (aten.expand.default, ("x", [4, 2, 3]), wide)
    with pytest.raises(TraceDeclined, match=r"writes through aten\.expand.*may overlap itself"):
        from_fx(by_hand(made, (aten.relu_.default, ("0",), wide), x=x))


def test_what_is_dropped_is_no_tensor() -> None:
    x = torch.ones(2)
    with pytest.raises(
        TraceDeclined, match=r"\(aten._assert_tensor_metadata.default\) is not a te"
    ):
        from_fx(
            by_hand(
                (aten._assert_tensor_metadata.default, ("x",), None),
                (aten.relu.default, ("0",), x.clone()),
                x=x,
            )
        )


def test_writes_are_counted_one_after_another() -> None:
    """An older view sees every later write, and a copy none."""
    x, part = X, X[:, 1]
    module = by_hand(
        (aten.select.int, ("x", 1, 1), part),
        (aten.clone.default, ("0",), part.clone()),
        (aten.add_.Scalar, ("x", 1), x),
        (aten.mul_.Scalar, ("0", 2), part),
        (aten.sub.Tensor, ("0", "1"), part.clone()),
        x=x,
    )
    result, after = run(from_fx(module), x)
    assert torch.equal(result, (part + 1) * 2 - part)
    assert torch.equal(after[:, 1], (part + 1) * 2) and torch.equal(after[:, 0], x[:, 0] + 1)
