"""What is run when a node is timed, not how long it takes."""

from __future__ import annotations

import torch

import infopt.codegen.timing as timing
from infopt.codegen.timing import measured_seconds
from infopt.compiler.infer import Builder
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType

T = TensorType.dense((4, 8), torch.float32)
W = TensorType.dense((8, 8), torch.float32)


def test_inner_nodes_run_with_those_that_read_them(monkeypatch) -> None:
    made = []

    def program(lowered):
        made.append(lowered)
        return real(lowered)

    real = timing.program
    monkeypatch.setattr(timing, "program", program)
    o = Builder()
    x, a, b = o.input("x", T), o.input("a", W), o.input("b", W)
    first = o.linear(x, a)
    second, other = o.linear(first, b), o.linear(o.relu(x), a)
    target = Target.parse("native")
    assert len(measured_seconds([second, first, other], target, rounds=1)) == 3
    assert len(made) == 1  # all alike: one product of what is there
    found = measured_seconds([second, other], target, rounds=1, inner=[first])
    assert all(seconds > 0 for seconds in found.values())
    pair, alone = made[1:]
    assert len(pair.plan.steps) == len(alone.plan.steps) + 1


def test_operands_hold_what_is_given(monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(timing, "lower_for", lambda graph, *more: graph)
    monkeypatch.setattr(timing, "program", lambda graph: lambda inputs: seen.append(inputs))
    o, values = Builder(), torch.arange(4, dtype=torch.int32)
    x, y = o.input("x", TensorType.of(values)), o.input("y", TensorType.of(values))
    node = o.add(x, y)
    found = measured_seconds([node], Target.parse("native"), rounds=1, given={y: values})
    assert list(found) == [node] and len(seen) > 1
    for first, second in seen:
        assert torch.equal(second, values) and not first.any()
    assert len({second.data_ptr() for _, second in seen}) == len(seen)
