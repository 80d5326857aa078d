"""Whole models through torch.export: arguments, sizes that are promised, what stays theirs."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim
from torch.export.graph_signature import CustomObjArgument, InputKind, InputSpec, TensorArgument

from infopt.compiler.errors import TraceDeclined
from infopt.compiler.interpret import interpret
from infopt.compiler.tracing import export as module
from infopt.compiler.tracing.export import Exported, check_module, export

F32 = torch.float32


def exported(model: Any, *args: Any, shapes: Any = None, **kwargs: Any) -> Exported:
    return export(model, args, kwargs, shapes, lambda i: f"leaf {i}")


class Of(nn.Module):
    """A function of one argument as a model."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def ranges(function: Any, x: torch.Tensor, shapes: dict) -> list[tuple]:
    return [
        (d.name, d.lo, d.hi) for d in exported(Of(function).eval(), x, shapes=(shapes,)).graph.dims
    ]


def test_the_ranges_that_were_asked_for() -> None:
    x = torch.randn(5, 3)
    assert ranges(torch.relu, x, {0: Dim("rows", min=3, max=7)}) == [("rows", 3, 7)]
    assert ranges(torch.relu, x, {0: Dim("rows")})[0][2] is None
    assert ranges(torch.relu, x, {0: Dim("rows", min=1)}) == [("rows", 1, None)]
    assert ranges(torch.relu, x, {0: Dim("rows", min=0)}) == [("rows", 0, None)]


def test_a_size_that_the_operators_refuse_is_not_promised() -> None:
    """There is no largest element of none."""
    x = torch.randn(5, 3)
    assert ranges(lambda v: v.amax(0), x, {0: Dim("rows", min=0)}) == [("rows", 1, None)]


def test_a_size_at_which_the_result_has_another_shape_is_not_promised() -> None:
    x = torch.randn(5, 3)
    for least in (0, 1):
        found = ranges(lambda v: v.squeeze(0), x, {0: Dim("rows", min=least)})
        assert found == [("rows", 2, None)]


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(3))
        self.register_buffer("shift", torch.ones(3))
        self.inner = nn.Linear(3, 3)

    def forward(self, x, pair, factor=2, *, mask):
        self.seen.add_(x.sum(0))
        return {"y": self.inner(x) * factor + pair[1], "z": [mask * pair[0], None, self.shift + 0]}


def test_arguments_results_and_state() -> None:
    net = Keywords().eval()
    x, a, b, mask = torch.randn(2, 3), torch.randn(3), torch.randn(3), torch.ones(3)
    found = exported(net, x, (a, b), 4, mask=mask)
    assert [(p.name, p.keyword, p.tree) for p in found.arguments] == [
        ("x", False, "leaf 0"), ("pair", False, ("leaf 1", "leaf 2")), ("factor", False, 4),
        ("mask", True, "leaf 4"),
    ]  # fmt: skip
    assert found.leaves == (0, 1, 2, 4)
    assert found.outputs["y"] == "leaf 0" and found.outputs["z"][0] == "leaf 1"
    assert [t.data_ptr() for t in found.state] == [net.seen.data_ptr()]
    assert len(found.state_names) == 1 and found.names[found.state_names[0]] == "seen"
    assert set(found.names.values()) == {"seen", "shift", "inner.weight", "inner.bias"}
    assert set(found.parameters) == {"seen", "shift", "inner.weight", "inner.bias"}
    for name, tensor in found.graph.consts.items():
        assert tensor.data_ptr() == found.parameters[found.names[name]].data_ptr()
    [(updated, _)] = found.graph.updates
    assert updated == 4 and len(found.graph.inputs) == 5
    sample = found.sample((x, (a, b), 4), {"mask": mask})
    assert all(s is t for s, t in zip(sample, (x, a, b, mask, found.state[0]), strict=True))
    before = net.seen.clone()
    flat = interpret(found.graph, [*sample[:4], before])
    torch.testing.assert_close(before, x.sum(0))
    result = found.rebuild(flat)
    torch.testing.assert_close(result["y"], net.inner(x) * 4 + b)
    assert result["z"][1] is None and torch.equal(result["z"][0], mask * a)
    bare = found.without_tensors()
    assert not bare.graph.consts and not bare.parameters and bare.names == found.names


def scaled(x, factor, *, offset=1.0):
    return x * factor + offset


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("function", [scaled, functools.partial(scaled, offset=3.0)])
def test_sizes_of_a_plain_function_go_by_its_parameters(function, by_name: bool) -> None:
    rows = Dim("rows", min=2)
    shapes = {"x": {0: rows}, "factor": None} if by_name else ({0: rows}, None)
    made = exported(function, torch.randn(5, 3), torch.randn(3), shapes=shapes)
    assert [(d.name, d.lo, d.hi) for d in made.graph.dims] == [("rows", 2, None)]
    x, factor = torch.randn(9, 3), torch.randn(3)
    (out,) = interpret(made.graph, (x, factor))
    assert torch.equal(out, function(x, factor))


def test_functions_without_a_signature() -> None:
    """Builtins of torch have none."""
    x = torch.randn(5, 3)
    for function in (torch.relu, torch.Tensor.abs):
        (out,) = interpret(exported(function, x).graph, (x,))
        assert torch.equal(out, function(x))


def plus_and_times(x):
    return x * torch.tensor([1.0, 2.0, 3.0]) + torch.tensor(2)


def test_tensors_that_a_forward_makes_of_numbers() -> None:
    x = torch.randn(5, 3)
    (out,) = interpret(exported(plus_and_times, x).graph, (x,))
    assert torch.equal(out, plus_and_times(x))
    # written in place it is another one at every call, which the program does not say
    with pytest.raises(TraceDeclined, match="shared in an unknown way"):
        exported(lambda x: x * torch.tensor([1.0, 2.0, 3.0]).mul_(2), x)


def test_parameters_that_have_no_name_of_their_own() -> None:
    def function(first, *rest):
        return first + rest[0] * rest[1]

    found = exported(function, *torch.randn(3, 2))
    assert [p.name for p in found.arguments] == ["first", "arg1", "arg2"]


def test_models_in_training_mode() -> None:
    net = nn.Linear(2, 2)
    with pytest.raises(TraceDeclined, match="training mode; call"):
        check_module(net)
    check_module(net.eval())
    check_module(net.train().requires_grad_(False))
    with pytest.raises(TraceDeclined, match="weight is on meta"):
        check_module(nn.Linear(2, 2, device="meta").eval())
    net.register_buffer("z", torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(TraceDeclined, match="z is complex"):
        check_module(net)


def test_what_torch_cannot_export_says_its_first_line() -> None:
    def function(x):
        if x.sum() > 0:
            return x
        return -x

    with pytest.raises(TraceDeclined, match=r"^torch.export could not trace it: [^\n]+$"):
        exported(function, torch.ones(2))


def test_programs_that_take_other_things() -> None:
    program = torch.export.export(nn.Linear(2, 2).eval(), (torch.ones(1, 2),))
    held = InputSpec(InputKind.CUSTOM_OBJ, CustomObjArgument("o", "Own"), "o")
    with pytest.raises(TraceDeclined, match="the program takes a custom_obj"):
        module._stored(program, held)
    weight = InputSpec(InputKind.PARAMETER, TensorArgument("w"), "weight")
    stored = module._stored(program, weight)
    assert torch.equal(stored, program.state_dict["weight"]) and not stored.requires_grad


def test_a_program_that_does_not_say_how_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    program = torch.export.export(nn.ReLU().eval(), (torch.ones(2),))
    monkeypatch.setattr(
        type(program),
        "call_spec",
        property(lambda self: SimpleNamespace(in_spec=None, out_spec=None)),
    )
    with pytest.raises(TraceDeclined, match="does not say how it is called"):
        exported(program, torch.ones(2))


def test_sizes_are_called_what_the_user_calls_them() -> None:
    class Sums(nn.Module):
        def forward(self, x, pair):
            return x.sum() + pair["a"].sum() + pair["b"][0].sum()

    rows, columns = Dim("rows"), Dim("columns")
    args = torch.randn(4, 3), {"a": torch.randn(5, 3), "b": [torch.randn(6)]}
    shapes = ({0: rows, 1: None}, {"a": {0: columns}, "b": [(Dim.AUTO,)]})
    dims = exported(Sums().eval(), *args, shapes=shapes).graph.dims
    assert {d.name: d.hint for d in dims if d.name in ("rows", "columns")} == {
        "rows": 4,
        "columns": 5,
    }
    assert sorted(d.hint for d in dims) == [4, 5, 6]
