"""For authors of passes: check one against the graph it should make."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from infopt.compiler.bisection import Culprit, bisect_graph
from infopt.compiler.certification.certify import Certificate as Certificate
from infopt.compiler.certification.certify import certify as certify
from infopt.compiler.certification.programs import Program as Program
from infopt.compiler.certification.property_test import check_sample, hypothesis_test
from infopt.compiler.dump import diff
from infopt.compiler.errors import CannotInfer, ContractBroken
from infopt.compiler.graph import Graph, Node
from infopt.compiler.infer import Builder
from infopt.compiler.interpret import interpret
from infopt.compiler.pipeline import Pass, PassContext, Pipeline
from infopt.compiler.report import PassReport, Report
from infopt.compiler.settings import Settings
from infopt.compiler.target import Target
from infopt.compiler.tracing.export import export
from infopt.compiler.types import TensorType

Build = Callable[..., "Node | tuple[Node, ...]"]


def bisect(
    passes: Sequence[Pass],
    model: Graph | torch.nn.Module | Callable[..., Any],
    *samples: tuple[Any, ...] | Mapping[str, Any],
    dynamic_shapes: Any = None,
    target: str = "native",
) -> Culprit | None:
    """The first pass, and the first of its sites, that leaves its accuracy contract on the samples.

    model    a graph, or a model that is traced with the first sample
    samples  tuples of arguments or dicts of keyword arguments; tuples of a graph's inputs where
             a graph is given

    None where every pass keeps its contract. See `infopt passes bisect` for the command line.
    """
    if not samples:
        raise ValueError("bisect: expected at least one tuple of example inputs, found none")
    machine = Target.parse(target)
    if isinstance(model, Graph):
        return bisect_graph(passes, model, [tuple(s) for s in samples], machine)
    calls = [((), dict(s)) if isinstance(s, Mapping) else (s, {}) for s in samples]
    exported = export(model, *calls[0], dynamic_shapes, leaf=lambda index: index)
    flat = [exported.sample(args, kwargs) for args, kwargs in calls]
    return bisect_graph(passes, exported.graph, flat, machine)


def graph_of(build: Build, inputs: Sequence[torch.Tensor], pass_: Pass | None = None) -> Graph:
    """The graph that `build(o, *inputs)` makes, at the stage of the pass that will read it."""
    o = Builder()
    nodes = [o.input(f"x{i}", TensorType.of(t)) for i, t in enumerate(inputs)]
    made = build(o, *nodes)
    outputs = made if isinstance(made, tuple) else (made,)
    return Graph(tuple(nodes), outputs, stage=pass_.stage if pass_ else Graph((), ()).stage)


def run_pass(
    pass_: Pass, graph: Graph, samples: Sequence[tuple] = (), target: str = "native"
) -> tuple[Graph, PassReport]:
    """One pass through the pipeline's checks (its `after` is not asked for), with its report.

    target: for passes that ask what pays; "native" is this machine.
    """
    report = Report()
    ctx = PassContext(Target.parse(target), tuple(samples), report, Settings(check=1))
    result = Pipeline([pass_], alone=True).run(graph, ctx)
    return result, report.passes[0]


def check_pass(
    pass_: Pass,
    before: Build,
    expected: Build,
    inputs: Sequence[torch.Tensor],
    target: str = "native",
) -> PassReport:
    """Run a pass on before(o, *inputs) and compare with expected(o, *inputs). target: as run_pass.

    Raises AssertionError with a graph diff where the result is another graph, where a second run
    changes it again, and ContractBroken where the values leave the pass's accuracy.
    """
    start = graph_of(before, inputs, pass_)
    found, report = run_pass(pass_, start, [tuple(inputs)], target)
    wanted = replace(graph_of(expected, inputs, pass_), results=start.results)
    if found.key != wanted.key:
        raise AssertionError(
            f"{pass_.name} made another graph than expected:\n{diff(wanted, found)}"
        )
    again, _ = run_pass(pass_, found, target=target)
    if again.key != found.key:
        raise AssertionError(f"{pass_.name} is not idempotent:\n{diff(found, again)}")
    _check_values(pass_, wanted, found, inputs)
    return report


def property_test(
    pass_: Pass,
    before: Build,
    shapes: Sequence[Sequence[str | int]],
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    examples: int = 50,
) -> Callable[[], None]:
    """A test function for a pass, to be given a name in a test file: pytest runs it.

        test_gelu_to_tanh = infopt.testing.property_test(GeluToTanh(), before, [("rows", "width")])

    before  makes the program from o and its inputs, as for check_pass
    shapes  of the inputs: equal names are equal sizes, numbers stay
    dtypes  of the inputs, drawn one for all

    hypothesis draws sizes, strides, dtypes and values, `examples` times and the same ones in every
    run, and shrinks what fails. Checked each time: the result is legal, keeps the pass's accuracy,
    is not changed by a second run, and writes to no input; in the end: the pass applied somewhere.
    Draws for which the program itself is impossible do not count.
    """

    def check(inputs: Sequence[torch.Tensor]) -> int | None:
        try:
            graph = graph_of(before, inputs, pass_)
        except CannotInfer:
            return None
        return check_sample(pass_, graph, run_pass, inputs)

    return hypothesis_test(pass_.name, check, shapes, dtypes, examples)


def _check_values(pass_: Pass, wanted: Graph, found: Graph, inputs: Sequence[Any]) -> None:
    for a, b in zip(interpret(wanted, inputs), interpret(found, inputs), strict=True):
        reason = pass_.accuracy.accepts(a, b)
        if reason is not None:
            raise ContractBroken(f"{pass_.name} promises {pass_.accuracy}, but the result {reason}")
