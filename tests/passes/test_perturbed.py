"""Every pass on programs that are nearly its own: the same function comes out, or a known reason.

From each example of a pass (certified_programs.py) programs are made by one change each: a number
another one, a flag turned, two operands exchanged, a value between read from outside; or a value
passes through one more op, along each of its dims where it has such. What the
pass says of them is compared with what it said before, and what it makes with what the changed
program gives. After a change that is meant, write the file again and read what changed in it:

    python -m tests.passes.test_perturbed
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from infopt.compiler.certification.values import compare_results
from infopt.compiler.errors import CannotInfer
from infopt.compiler.exchange import exchange
from infopt.compiler.graph import Graph, Node
from infopt.compiler.infer import Builder
from infopt.compiler.interpret import interpret
from infopt.compiler.ops import CONST, INPUT
from infopt.compiler.pipeline import Pass, PassContext, Pipeline
from infopt.compiler.report import Report
from infopt.compiler.settings import Settings
from infopt.compiler.target import Target
from infopt.compiler.testing import graph_of
from infopt.compiler.types import TensorType
from infopt.passes.factor_low_rank import FactorLowRank
from infopt.passes.keep_quantized import KeepQuantized
from infopt.passes.quantize_weights import QuantizeWeights
from infopt.passes.recognize_quantized import RecognizeQuantized
from infopt.passes.slice_runs import SliceRuns
from tests.passes.certified_programs import CONSTS, EXAMPLES

KEPT = Path(__file__).with_name("perturbed.txt")
TARGET = Target.parse("cpu:avx512,cores=2")
# these look at values, measure or take long, and read little of the program around a layer
APART = (FactorLowRank, KeepQuantized, QuantizeWeights, RecognizeQuantized, SliceRuns)
PASSES = [cls for cls in EXAMPLES if cls not in APART]
MOST = 90, 15  # programs of one pass: with a change, with one more op
ALONG: dict[str, Callable[[Any, Any, int], Any]] = {
    "flip": lambda o, x, d: o.call("aten.flip.default", x, [d]),
    "softmax": lambda o, x, d: o.softmax(x, d),
    "cumsum": lambda o, x, d: o.cumsum(x, d),
    "mean taken off": lambda o, x, d: o.sub(x, o.mean(x, [d], True)),
    "cut and joined": lambda o, x, d: o.cat([o.slice(x, d, 0, 1), o.slice(x, d, 1, 2**63 - 1)], d),
    "turned and back": lambda o, x, d: o.permute(
        o.neg(o.permute(x, _swapped(x, d))), _swapped(x, d)
    ),
}
ONE_MORE: dict[str, Callable[[Any, Any], Any]] = {
    "relu": lambda o, x: o.relu(x),
    "scaled": lambda o, x: o.mul(x, 1.5),
    "squared": lambda o, x: o.mul(x, x),
    "in bf16": lambda o, x: o.to(o.to(x, torch.bfloat16), x.dtype),
    "flat and back": lambda o, x: o.reshape(o.exp(o.reshape(x, [-1])), list(x.shape)),
    "selected": lambda o, x: o.where(o.gt(x, 0), x, o.neg(x)),
    "its opposite": lambda o, x: o.logical_not(x),
    "normalized": lambda o, x: o.layer_norm(x, [x.shape[-1]]),
}


def other(value: Any) -> Any:
    """Another value for an attribute, None where there is none to try."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 1.5
    if isinstance(value, str):
        return {"none": "relu", "gelu": "relu", "relu": "gelu", "tanh": "none"}.get(value)
    if isinstance(value, tuple) and value and all(isinstance(v, int) for v in value):
        return (*value[1:], value[0]) if len(set(value)) > 1 else (*value[:-1], value[-1] + 1)
    return {torch.float32: torch.float64}.get(value) if isinstance(value, torch.dtype) else None


def changes(node: Node) -> Iterator[tuple[str, tuple, tuple]]:
    """What is changed, and the arguments and attributes after it."""
    for index, (key, value) in enumerate(node.attrs):
        new = other(value)
        if new is not None:
            yield f"{key}={new}", node.args, _with(node.attrs, index, (key, new))
    for a, (x, y) in enumerate(pairwise(node.args)):
        if isinstance(x, Node) and isinstance(y, Node) and x is not y:
            swapped = _with(_with(node.args, a, y), a + 1, x)
            yield f"operands {a} and {a + 1}", swapped, node.attrs


def _swapped(x: Node, dim: int) -> list[int]:
    """Dims with this one and the last exchanged."""
    dims = list(range(x.tensor_type.rank))
    dims[dim], dims[-1] = dims[-1], dims[dim]
    return dims


def passed_through(node: Node) -> Iterator[tuple[str, Callable[[Any, Any], Any]]]:
    """Ops that leave the type of a value as it is."""
    if node.tensor_type.dtype == torch.bool:
        yield "its opposite", ONE_MORE["its opposite"]
        return
    yield from ONE_MORE.items()
    for name, build in ALONG.items():
        for dim in range(node.tensor_type.rank):
            yield f"{name} along {dim}", partial(_along, build, dim)


def _along(build: Callable[[Any, Any, int], Any], dim: int, o: Any, x: Any) -> Any:
    return build(o, x, dim)


def _with(held: tuple, index: int, value: Any) -> tuple:
    return (*held[:index], value, *held[index + 1 :])


def programs(graph: Graph) -> Iterator[tuple[str, bool, Callable[[], Graph]]]:
    """Names, whether it has one more op, and how to make it: that raises where torch has no such
    program."""
    seen: dict[str, int] = defaultdict(int)

    def numbered(node: Node, what: str) -> str:
        name = f"{node.op.name.removeprefix('aten.').removesuffix('.default')} {what}"
        seen[name] += 1
        return f"{name} #{seen[name]}" if seen[name] > 1 else name

    for node in graph.nodes():
        if node.op in (INPUT, CONST):
            continue
        if isinstance(node.type, TensorType):
            for what, build in passed_through(node):
                yield numbered(node, what), True, partial(sent_through, graph, node, build)
        if not graph.is_output(node):
            outputs = (*graph.outputs, node)
            yield numbered(node, "read"), False, partial(with_outputs, graph, outputs)
        for what, args, attrs in changes(node):
            yield numbered(node, what), False, partial(changed, graph, node, args, attrs)


def changed(graph: Graph, node: Node, args: tuple, attrs: tuple) -> Graph:
    o = Builder()
    made = exchange(graph, {node: o.node(node.op, args, attrs)}, o)
    return with_outputs(made, made.outputs)


def sent_through(graph: Graph, node: Node, build: Callable[[Any, Any], Any]) -> Graph:
    o = Builder()
    made = exchange(graph, {node: build(o, node)}, o)
    return with_outputs(made, made.outputs)


def with_outputs(graph: Graph, outputs: tuple[Any, ...]) -> Graph:
    """With other results: whatever was said of those it had is left out."""
    return Graph(graph.inputs, outputs, graph.consts, stage=graph.stage)


@cache
def given(cls: type[Pass]) -> list[tuple[str, Graph, list[torch.Tensor]]]:
    """Of the programs made of all examples MOST of each kind, chosen by name."""
    named = []
    for name, build, inputs in EXAMPLES[cls]:
        start = graph_of(build, inputs, cls())
        consts = {n.attr("name"): CONSTS[n.attr("name")] for n in start.nodes() if n.op is CONST}
        graph = with_outputs(start.with_consts(consts), start.outputs)
        named += [(f"{name}: {what}", more, make, inputs) for what, more, make in programs(graph)]
    named.sort(key=lambda n: hashlib.sha256(n[0].encode()).digest())
    found, counts = [], [0, 0]
    for name, more, make, inputs in named:
        if counts[more] == MOST[more]:
            continue
        try:
            made = make()
            interpret(made, inputs)
        except (CannotInfer, ValueError, RuntimeError, IndexError, TypeError, AttributeError):
            continue
        found.append((name, made, inputs))
        counts[more] += 1
    return sorted(found, key=lambda f: f[0])


def told(cls: type[Pass]) -> list[str]:
    """One line for each program: where the pass applied, and why not elsewhere."""
    lines = []
    for name, graph, inputs in given(cls):
        report = Report()
        ctx = PassContext(TARGET, (), report, Settings())
        try:
            after = Pipeline([cls()], alone=True).run(graph, ctx)
        except CannotInfer as error:
            lines.append(f"{name} | cannot infer {error}")
            continue
        entry = report.passes[0]
        if after is not graph:
            compare_results(cls(), graph, after, inputs, None)
        reasons = sorted({s.reason for s in entry.declined})
        ops = ", ".join(sorted({n.op.name for n in after.nodes()} - {"input", "const"}))
        made = f"{len(entry.applied)} applied, {entry.nodes_before} -> {entry.nodes_after}: {ops}"
        lines.append(" | ".join([name, made if after is not graph else "as it was", *reasons]))
    return lines


def kept() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in KEPT.read_text().splitlines():
        if line.startswith("== "):
            lines = found[line[3:]] = []
        else:
            lines.append(line)
    return found


@pytest.mark.parametrize("cls", PASSES, ids=lambda cls: cls.name)
def test_programs_that_are_nearly_its_own(cls: type[Pass]) -> None:
    assert told(cls) == kept()[cls.name]


def test_the_file_has_these_passes() -> None:
    assert list(kept()) == [cls.name for cls in PASSES]


if __name__ == "__main__":
    text = [line for cls in PASSES for line in (f"== {cls.name}", *told(cls))]
    KEPT.write_text("\n".join(text) + "\n")
