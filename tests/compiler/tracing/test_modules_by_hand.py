"""Modules written by hand: what no trace of a plain program holds, and what is declined there."""

import operator

import pytest
import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from infopt.compiler.errors import TraceDeclined
from infopt.compiler.interpret import interpret
from infopt.compiler.tracing import refusals
from infopt.compiler.tracing.trace import from_fx
from tests.compiler.tracing.traced import by_hand, names

aten = torch.ops.aten


def module_of(*nodes: tuple) -> torch.fx.GraphModule:
    """A module written by hand: (op, target, values) each; the last one is the output."""
    graph = torch.fx.Graph()
    made: list[torch.fx.Node] = []
    for op, target, args, value in nodes:
        made.append(graph.create_node(op, target, tuple(made[i] for i in args), {}))
        made[-1].meta["val"] = value
    graph.output(tuple(made[-1:]))
    return torch.fx.GraphModule(torch.nn.Module(), graph)


def test_modules_that_are_no_aten_programs() -> None:
    a = torch.randn(3)
    given = ("placeholder", "a", (), a)
    with pytest.raises(TraceDeclined, match="call_method relu is not an operator call"):
        from_fx(module_of(given, ("call_method", "relu", (0,), a)))
    with pytest.raises(TraceDeclined, match="relu is not an operator"):
        from_fx(module_of(given, ("call_function", torch.relu, (0,), a)))
    with pytest.raises(TraceDeclined, match="input b is a str, not a tensor or size"):
        from_fx(
            module_of(
                ("placeholder", "b", (), "text"),
                ("call_function", torch.ops.aten.relu.default, (0,), a),
            )
        )
    with pytest.raises(TraceDeclined, match="a number that depends on data"):
        from_fx(
            module_of(
                given,
                ("call_function", torch.ops.aten.item.default, (0,), torch.SymFloat(1.0)),
                ("call_function", torch.ops.aten.mul.Tensor, (0, 1), a),
            )
        )
    empty = torch.fx.GraphModule(torch.nn.Module(), torch.fx.Graph())
    with pytest.raises(TraceDeclined, match="the program has no output"):
        from_fx(empty)


def test_one_of_two_inputs_of_one_memory_is_written() -> None:
    a = torch.randn(3)
    fill = torch.ops.aten.relu_.default
    twice = module_of(
        ("placeholder", "a", (), a), ("placeholder", "b", (), a), ("call_function", fill, (0,), a)
    )
    with pytest.raises(TraceDeclined, match="two inputs share memory and one of them is written"):
        from_fx(twice)


def test_numbers_where_tensors_are_due() -> None:
    a = torch.randn(2, 3)
    added = (aten.add.Tensor, ("a", 2), a.clone())
    assert names(from_fx(by_hand(added, a=a))) == ["aten.add.Scalar"]
    for call in (
        (aten.maximum.default, ("a", 2.0), a.clone()),
        (aten.sub.Tensor, (2.0, "a"), a.clone()),
    ):
        with pytest.raises(TraceDeclined, match=f"{call[0]} takes a number where a tensor is exp"):
            from_fx(by_hand(call, a=a))


def test_writes_that_are_not_of_one_tensor_or_not_of_its_shape() -> None:
    a = torch.randn(2, 3)
    for call, reason in (
        ((aten._foreach_mul_.Scalar, (["a"], 2.0), None), r"_foreach_mul_.Scalar writes to self"),
        ((aten.t_.default, ("a",), a), "aten.t_.default changes the shape of what it writes to"),
        ((aten.add_.Tensor, ("a", "b"), a), r"aten\.add_\.Tensor: aten\.add\.Tensor\(f32\[2, 3\]"),
    ):
        with pytest.raises(TraceDeclined, match=reason):
            from_fx(by_hand(call, a=a, b=torch.randn(4, 5)))


def test_filling_with_a_number_keeps_shape_and_dtype() -> None:
    for a in (torch.randn(2, 3), torch.ones(3, dtype=torch.int64)):
        graph = from_fx(by_hand((aten.copy_.default, ("a", 2.0), a), a=a))
        [(_, value)] = graph.updates
        assert value.type == graph.inputs[0].type
        assert torch.equal(interpret(graph, [mine := a.clone()])[0], mine)
        assert torch.equal(mine, torch.full_like(a, 2.0))


def test_a_result_that_was_not_asked_for_is_not_read() -> None:
    x, one, w = torch.randn(2, 3), torch.ones(2, 1), torch.ones(3)
    backward = aten.native_layer_norm_backward.default
    call = ("x", "x", [3], "one", "one", "w", "w", [True, False, True])
    first, none, third = backward(x, x, [3], one, one, w, w, [True, False, True])
    made = (backward, call, (first, none, third))
    inputs = {"x": x, "one": one, "w": w}
    graph = from_fx(by_hand(made, (operator.getitem, ("0", 2), third), **inputs))
    torch.testing.assert_close(interpret(graph, list(inputs.values()))[0], third)
    with pytest.raises(TraceDeclined, match=r"result 1 of .* is not a tensor"):
        from_fx(by_hand(made, (operator.getitem, ("0", 1), none), **inputs))


def test_a_size_that_is_read_from_data() -> None:
    size = ShapeEnv().create_unbacked_symint()
    with pytest.raises(TraceDeclined, match="item_default is a size that depends on data"):
        from_fx(by_hand((aten.item.default, ("a",), size), a=torch.tensor(3)))


def test_attributes_that_are_no_tensors() -> None:
    graph = torch.fx.Graph()
    graph.output((graph.get_attr("inner"),))
    root = torch.nn.Module()
    root.inner = torch.nn.ReLU()
    with pytest.raises(TraceDeclined, match="inner is a ReLU: control flow or a script"):
        from_fx(torch.fx.GraphModule(root, graph))


def test_attributes_are_constants_of_their_own_names() -> None:
    graph = torch.fx.Graph()
    graph.output((graph.get_attr("inner.weight"),))
    root = torch.nn.Module()
    root.inner = torch.nn.Linear(2, 3)
    made = from_fx(torch.fx.GraphModule(root, graph))
    assert (
        list(made.consts) == ["c_inner_weight"] and not made.consts["c_inner_weight"].requires_grad
    )
    assert torch.equal(interpret(made, [])[0], root.inner.weight)


def test_tensors_of_several_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "DEVICES", ("cpu", "meta"))  # for want of a GPU
    a, b = torch.ones(2), torch.ones(2, device="meta")
    relu = aten.relu.default
    with pytest.raises(TraceDeclined, match="several devices: input a on cpu, input b on meta"):
        from_fx(by_hand((relu, ("a",), a), a=a, b=b))
    with pytest.raises(TraceDeclined, match=r"input a on cpu, the result of aten\.relu.* on meta"):
        from_fx(by_hand((relu, ("a",), b), a=a))
    assert names(from_fx(by_hand((relu, ("b",), b), b=b))) == ["aten.relu.default"]


def test_unused_inputs_that_are_no_tensors() -> None:
    a = torch.ones(2)
    graph = from_fx(by_hand((aten.relu.default, ("a",), a), a=a, n=None, text="x", k=3))
    assert [n.attr("name") for n in graph.inputs] == ["a"] and graph.scalars == ()


def test_integer_inputs_that_are_read() -> None:
    a = torch.ones(2)
    graph = from_fx(by_hand((aten.mul.Tensor, ("a", "k"), a), a=a, k=3))
    assert graph.scalars == (3,) and names(graph) == ["aten.mul.Scalar"]


def test_inputs_that_are_booleans_or_floats() -> None:
    a = torch.ones(2)
    with pytest.raises(TraceDeclined, match="is a float, not a tensor or size"):
        from_fx(by_hand((aten.mul.Tensor, ("a", "k"), a), a=a, k=2.5))
    with pytest.raises(TraceDeclined, match="is a bool, not a tensor or size"):
        from_fx(by_hand((aten.mul.Tensor, ("a", "k"), a), a=a, k=True))
