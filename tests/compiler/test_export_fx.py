"""Graph -> fx.GraphModule: it runs, and it reads back."""

import pytest
import sympy
import torch
from torch import fx

from infopt.compiler.errors import IllegalGraph
from infopt.compiler.fx_pass import from_references
from infopt.compiler.graph import Graph
from infopt.compiler.infer import Builder
from infopt.compiler.interpret import interpret
from infopt.compiler.types import Dim, TensorType
from infopt.compiler.verify import verify

F32 = torch.float32


def static_graph() -> Graph:
    o = Builder()
    x = o.input("x", TensorType.dense((2, 4), F32))
    w = o.input("layer.w", TensorType.dense((3, 4), F32))
    c = o.const("c", TensorType.dense((3,), F32))
    parts = o.call("aten.topk.default", o.linear(x, w, c), 2)
    joined = o.cat([o.getitem(parts, 0), x], dim=1)
    return Graph((x, w), (joined, None, o.getitem(parts, 1)), {"c": torch.arange(3.0)})


def dynamic_graph() -> Graph:
    s, t = (sympy.Symbol(n, integer=True, positive=True) for n in ("s0", "s1"))
    o = Builder((Dim(s, 2, None, 5), Dim(t, 2, 64, 7)))
    x = o.input("x", TensorType.dense((s, t, 4), F32))
    flat = o.reshape(x, [s * t, 4])
    wide = o.expand(o.reshape(flat, [s, t, 1, 4]), [s, t, 3, 4])
    return Graph(
        (x,), (o.relu(wide), s * t + 1), dims=o.dims, updates=((0, o.neg(x)),), scalars=(t,)
    )


def test_static_module_runs_and_reads_back() -> None:
    graph = static_graph()
    module = graph.to_fx()
    assert isinstance(module, fx.GraphModule)
    inputs = [torch.randn(2, 4), torch.randn(3, 4)]
    expected, found = interpret(graph, inputs), module(*inputs)
    assert torch.equal(expected[0], found[0]) and found[1] is None
    assert torch.equal(expected[2], found[2])
    again = Graph.from_fx(module)
    verify(again)
    assert [n.op for n in again.nodes()] == [n.op for n in graph.nodes()]
    assert torch.equal(interpret(again, inputs)[0], expected[0])


def test_dynamic_sizes_are_computed_from_the_inputs() -> None:
    graph = dynamic_graph()
    module = graph.to_fx()
    for a, b in ((2, 3), (6, 9)):
        x = torch.randn(a, b, 4)
        relu, size, update = module(x, b)
        assert torch.equal(relu, x.relu().unsqueeze(2).expand(a, b, 3, 4))
        assert size == a * b + 1 and torch.equal(update, -x)
    again = Graph.from_fx(module)
    verify(again)
    assert {(d.lo, d.hi, d.hint) for d in again.dims} == {(2, 64, 7), (2, None, 5)}
    x = torch.randn(4, 5, 4)
    assert torch.equal(interpret(again, [x, 5])[0], x.relu().unsqueeze(2).expand(4, 5, 3, 4))


def test_what_an_fx_pass_gets_comes_back_the_same() -> None:
    for graph in (static_graph(), dynamic_graph()):
        again = from_references(graph.to_fx(), graph, Builder(graph.dims))
        assert again.key == graph.key


def test_a_size_that_no_input_has() -> None:
    s = sympy.Symbol("s0", integer=True, positive=True)
    o = Builder((Dim(s, 2, None, 5),))
    x = o.input("x", TensorType.dense((2 * s,), F32))
    with pytest.raises(IllegalGraph, match="the dim s0 is not the size of any input"):
        Graph((x,), (x, s), dims=o.dims).to_fx()
    module = Graph((x,), (x, 2 * s), dims=o.dims, scalars=(s,)).to_fx()
    assert module(torch.ones(6), 3)[1] == 6


def test_sizes_that_are_counted() -> None:
    s = sympy.Symbol("s0", integer=True, positive=True)
    o = Builder((Dim(s, 2, None, 5, counts="mask"),))
    x, mask = (
        o.input("x", TensorType.dense((8,), F32)),
        o.input("mask", TensorType.dense((8,), F32)),
    )
    module = Graph((x, mask), (o.neg(x), s, 2 * s + 1), dims=o.dims).to_fx()
    x = torch.arange(8.0)
    for mask, count in (([1, 0, 2, -3, 0, 0, 0, 1], 4), ([0, 0, 0, 5, 0, 0, 0, 0], 2)):
        found, *sizes = module(x, torch.tensor(mask))
        assert sizes == [count, 2 * count + 1] and torch.equal(found, -x)


@pytest.mark.parametrize("graph", [static_graph(), dynamic_graph()])
def test_every_value_says_what_it_is(graph: Graph) -> None:
    """As passes of torch.fx expect it."""
    for node in graph.to_fx().graph.nodes:
        assert "val" in node.meta or node.op in ("output", "get_attr"), node


def test_inputs_have_names_of_their_own() -> None:
    o = Builder()
    names = ["a.b", "1st", "class?", "x"]
    inputs = tuple(o.input(n, TensorType.dense((2,), F32)) for n in names)
    module = Graph(inputs, inputs).to_fx()
    found = [n.name for n in module.graph.nodes if n.op == "placeholder"]
    assert found == ["a_b", "input_1", "class_", "x"]
    values = [torch.full((2,), float(i)) for i in range(4)]
    assert all(a is b for a, b in zip(module(*values), values, strict=True))


def test_a_constant_that_is_read_twice_is_one_buffer() -> None:
    o = Builder()
    c, d = (o.const(n, TensorType.dense((3,), F32)) for n in "cd")
    graph = Graph((), (o.add(c, d), o.mul(c, c)), {"c": torch.arange(3.0), "d": torch.ones(3)})
    module = graph.to_fx()
    assert sorted(dict(module.named_buffers())) == ["c", "d"]
    assert [t.tolist() for t in module()] == [[1, 2, 3], [0, 1, 4]]
