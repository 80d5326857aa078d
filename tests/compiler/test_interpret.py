"""The interpreter: a graph runs in plain torch."""

import pytest
import sympy
import torch

from infopt.compiler.graph import Graph
from infopt.compiler.infer import Builder
from infopt.compiler.interpret import bind_dims, interpret
from infopt.compiler.types import Dim, TensorType

S = sympy.Symbol("s0", integer=True, positive=True)
T = sympy.Symbol("s1", integer=True, positive=True)
F32 = torch.float32


def graph() -> Graph:
    o = Builder((Dim(S, 2, None, 5), Dim(T, 2, 9, 3)))
    x = o.input("x", TensorType.dense((S, 4), F32))
    y = o.input("y", TensorType.dense((S * 2,), F32))
    c = o.const("c", TensorType.dense((4,), F32))
    wide = o.expand(o.reshape(o.add(x, c), [S, 1, 4]), [S, T, 4])
    return Graph(
        (x, y),
        (wide, S * T, None, 2.5, x),
        {"c": torch.arange(4.0)},
        o.dims,
        updates=((1, o.neg(y)),),
        scalars=(T,),
    )


def test_results_sizes_and_updates() -> None:
    x, y = torch.randn(3, 4), torch.randn(6)
    before = y.clone()
    wide, size, nothing, number, same = interpret(graph(), [x, y, 7])
    assert torch.equal(wide, (x + torch.arange(4.0)).unsqueeze(1).expand(3, 7, 4))
    assert (size, nothing, number) == (21, None, 2.5) and same is x
    assert torch.equal(y, -before)


@pytest.mark.parametrize(
    "inputs, message",
    [
        ([torch.zeros(3, 4), torch.zeros(6)], "takes 2 tensors and 1 sizes, found 2"),
        ([torch.zeros(3, 4), torch.zeros(5), 7], r"input y: expected \(6,\)"),
        ([torch.zeros(3, 5), torch.zeros(6), 7], r"input x: expected \(3, 4\)"),
        ([torch.zeros(3), torch.zeros(6), 7], "input x"),
    ],
)
def test_wrong_inputs_are_named(inputs, message) -> None:
    with pytest.raises(ValueError, match=message):
        interpret(graph(), inputs)


def test_dims_are_read_from_shapes_and_scalars() -> None:
    assert bind_dims(graph(), [torch.zeros(8, 4), torch.zeros(16), 5]) == {S: 8, T: 5}


def test_watch_sees_every_node_once() -> None:
    g = graph()
    seen = []
    interpret(g, [torch.zeros(3, 4), torch.zeros(6), 2], watch=lambda n, v: seen.append(n))
    assert tuple(seen) == g.nodes()


def test_several_results() -> None:
    o = Builder()
    x = o.input("x", TensorType.dense((5,), F32))
    parts = o.call("aten.topk.default", x, 2)
    g = Graph((x,), (o.getitem(parts, 0), o.getitem(parts, 1)))
    values, where = interpret(g, [torch.tensor([1.0, 5.0, 3.0, 2.0, 4.0])])
    assert values.tolist() == [5.0, 4.0] and where.tolist() == [1, 4]


def test_updates_read_the_old_values() -> None:
    """x, y = y, x: both updates see what the inputs held before the call."""
    o = Builder()
    x, y = (o.input(n, TensorType.dense((2,), F32)) for n in "xy")
    g = Graph((x, y), (o.neg(x),), updates=((0, y), (1, x)))
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    (result,) = interpret(g, [a, b])
    assert a.tolist() == [3.0, 4.0] and b.tolist() == [1.0, 2.0] and result.tolist() == [-1.0, -2.0]
