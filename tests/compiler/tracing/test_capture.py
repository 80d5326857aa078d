"""Programs for tracing: what is declined before torch is asked, and what torch cannot trace."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from infopt.compiler.errors import TraceDeclined
from infopt.compiler.graph import Graph
from infopt.compiler.interpret import interpret
from infopt.compiler.tracing import capture
from infopt.compiler.tracing.capture import aten_module
from tests.compiler.tracing.traced import names


def relu(v: torch.Tensor) -> torch.Tensor:
    return torch.relu(v)


def program(function, *inputs: torch.Tensor) -> fx.GraphModule:
    """As dynamo gives it: every placeholder has its example as a fake tensor."""
    module = fx.symbolic_trace(function)
    placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
    mode = FakeTensorMode()
    for node, value in zip(placeholders, inputs):
        node.meta["example_value"] = mode.from_tensor(value)
    return module


def test_a_program_of_dynamos() -> None:
    x = torch.randn(2, 3)
    found = aten_module(program(lambda v: torch.relu(v) + 1, x), [x])
    assert names(Graph.from_fx(found)) == ["aten.relu.default", "aten.add.Scalar"]


def test_a_program_without_tensors() -> None:
    with pytest.raises(TraceDeclined, match="the program has no tensor inputs"):
        aten_module(program(relu), [3])


def test_inputs_that_require_grad_are_of_a_training_graph() -> None:
    x = torch.randn(2, requires_grad=True)
    with pytest.raises(TraceDeclined, match="an input requires grad: a training graph"):
        aten_module(program(relu, x), [x])
    with torch.no_grad():
        aten_module(program(relu, x), [x])
    aten_module(program(relu, x.detach()), [x.detach()])


def test_inputs_are_named_by_their_number() -> None:
    x, y = torch.randn(2), torch.empty(2, device="meta")
    with pytest.raises(TraceDeclined, match="input 1 is on meta"):
        aten_module(program(lambda a, b: a + b, x, x), [x, y])


def test_autocast_around_the_program() -> None:
    x = torch.randn(2)
    for device in ("cpu", "cuda"):
        with (
            torch.autocast(device, dtype=torch.bfloat16, enabled=False),
            pytest.MonkeyPatch.context() as patch,
            pytest.raises(TraceDeclined, match="autocast is on around the program"),
        ):
            patch.setattr(torch, "is_autocast_enabled", lambda kind: kind == device)  # noqa: B023
            Graph.from_fx(fx.symbolic_trace(relu), [x])
    with torch.autocast("cpu"), pytest.raises(TraceDeclined, match="autocast is on"):
        aten_module(program(relu, x), [x])


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("\nfirst\nsecond\n"), "torch could not trace it: first"),
        (ValueError(), r"torch could not trace it: ValueError\(\)"),
        (TraceDeclined("a reason of ours"), "a reason of ours"),
    ],
)
@pytest.mark.parametrize("step", ["without_vmap", "_traced"])
def test_what_torch_cannot_trace_is_declined(
    monkeypatch: pytest.MonkeyPatch, step: str, error: Exception, reason: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(capture, step, fail)
    x = torch.randn(2)
    with pytest.raises(TraceDeclined, match=f"^{reason}$"):
        aten_module(program(relu, x), [x])


class Net(nn.Module):
    """A layer with weights, dropout that does nothing, and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.drop = nn.Linear(3, 4), nn.Dropout(0.5)

    def forward(self, x, times):
        return self.drop(self.inner(x)) * times


def test_a_module_is_traced_with_example_inputs() -> None:
    net, x = Net().eval(), torch.randn(2, 3)
    graph = Graph.from_fx(fx.symbolic_trace(net), [x, 3])
    assert names(graph)[0] == "aten.linear.default" and len(graph.consts) == 2
    assert [n.shape for n in graph.inputs] == [(2, 3)]
    found = interpret(graph, [x, *([3] if graph.scalars else [])])
    assert torch.equal(found[0], net(x, 3))


def test_inputs_that_do_not_fit_a_module() -> None:
    with pytest.raises(TraceDeclined, match=r"^torch could not trace it: .+"):
        Graph.from_fx(fx.symbolic_trace(nn.Linear(3, 4)), [torch.randn(2, 5)])
