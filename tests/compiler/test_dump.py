"""Graphs as text and their differences."""

import sympy
import torch

from infopt.compiler.dump import diff, text
from infopt.compiler.graph import Graph
from infopt.compiler.infer import Builder
from infopt.compiler.types import Dim, TensorType


def sample() -> tuple[Builder, Graph]:
    s = sympy.Symbol("s0", integer=True, positive=True)
    o = Builder((Dim(s, 2, None, 5),))
    x = o.input("x", TensorType.dense((s, 4), torch.float32))
    w = o.input("w", TensorType.dense((3, 4), torch.float32), weight=True)
    c = o.const("c", TensorType.dense((), torch.float32))
    y = o.gelu(o.linear(o.mul(x, c), w), approximate="tanh")
    consts = {"c": torch.tensor(0.5)}
    return o, Graph((x, w), (y, s), consts, o.dims, updates=((0, o.neg(x)),), scalars=(s,))


def test_text_shows_everything() -> None:
    shown = text(sample()[1])
    assert str(sample()[1]) == shown
    for part in (
        "graph, stage NORMALIZE, 7 nodes",
        "dim s0 in [2, ∞], seen 5",
        "scalar s0",
        "f32[s0, 4] = input x",
        "f32[3, 4] = weight w",
        "const c (0.5)",
        'aten.gelu.default(%4, approximate="tanh")',
        "# used by result 0",
        "new value of input 0",
        "input 0 becomes %6",
        ", s0",
    ):
        assert part in shown, f"{part!r} is not in\n{shown}"


def test_defaults_are_left_out() -> None:
    o = Builder()
    x = o.input("x", TensorType.dense((2,), torch.float32))
    assert "aten.gelu.default(%0)" in text(Graph((x,), (o.gelu(x),)))


def test_an_unread_value_says_so() -> None:
    o = Builder()
    x, y = (o.input(n, TensorType.dense((2,), torch.float32)) for n in "xy")
    shown = text(Graph((x, y), (o.relu(x),)))
    line = next(line for line in shown.splitlines() if "input y" in line)
    assert line.endswith("# used by nobody")


def test_diff_matches_by_structure() -> None:
    o = Builder()
    x = o.input("x", TensorType.dense((2,), torch.float32))

    def build(middle: str) -> Graph:
        value = getattr(o, middle)(o.relu(x))
        for _ in range(9):
            value = o.sin(o.cos(value))
        return Graph((x,), (value,))

    shown = diff(build("neg"), build("abs"))
    lines = shown.splitlines()
    assert lines[0] == "21 -> 21 nodes, 2 lines removed, 2 added"
    assert [line for line in lines[1:] if line[0] in "+-"] == [
        "-%2 f32[2] = aten.neg.default(%1)",
        "-%3 f32[2] = aten.cos.default(%2)",
        "+%+0 f32[2] = aten.abs.default(%1)",
        "+%3 f32[2] = aten.cos.default(%+0)",
    ]
    assert diff(build("neg"), build("neg")) == "21 -> 21 nodes, 0 lines removed, 0 added"


def test_no_difference() -> None:
    graph = sample()[1]
    assert diff(graph, graph) == "no difference"
