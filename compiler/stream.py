"""infopt.compile_stream: a model over a time axis as a step of one hop with its state."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from infopt.compiler.accuracy import compare
from infopt.compiler.compiled import build
from infopt.compiler.dynamo import refuse_fallbacks
from infopt.compiler.errors import BadOption, CannotStream, TraceDeclined
from infopt.compiler.flat_program import FlatProgram, save_with
from infopt.compiler.graph import Graph
from infopt.compiler.interpret import interpret
from infopt.compiler.options import Options
from infopt.compiler.report import Report
from infopt.compiler.target import Target
from infopt.compiler.tracing.export import Argument, Exported, check_module, export
from infopt.compiler.types import dtype_name
from infopt.passes.streaming import Step, stream
from infopt.passes.streaming_rules import rule_for
from infopt.runtime.forked import torch_threads
from infopt.runtime.stream import ENDING, Stream, StreamSpec
from infopt.runtime.structure import Leaf

_CHECKED = 256  # steps that are compared with the offline graph on the example
_ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-10}


def compile_stream(
    model: torch.nn.Module,
    example: Tensor,
    *,
    hop: int,
    axis: int = -1,
    max_length: int | None = None,
    target: str | Target = "native",
    **options: Any,
) -> Stream:
    """Compile a model over time into a step that takes `hop` samples at a time.

    model    takes one signal and gives one tensor, whose places depend on a bounded past and a
             bounded future
    example  a signal that is long enough for the model, its sizes beside time those of every hop
    hop      samples of a step; strides divide it
    axis     the signal's time
    max_length  samples of the longest signal, for models that keep what grows with it (attention)
    options  see infopt.compiler.options.Options

    The concatenated results are the offline result, `delay` places late (Stream.step), also at the
    signal's beginning, and Stream.finish gives what is left at its end. They are compared on the
    example before anything is compiled.
    Raises CannotStream naming the op that cannot stream and why, TraceDeclined, BadOption.
    """
    parsed = Options.parse(options)
    if not isinstance(hop, int) or isinstance(hop, bool) or hop < 1:
        raise BadOption(f"hop: expected a positive int, found {hop!r}")
    if max_length is not None and (not isinstance(max_length, int) or max_length < hop):
        raise BadOption(f"max_length: expected a hop of {hop} or more, found {max_length!r}")
    if not isinstance(example, Tensor) or not -example.dim() <= axis < example.dim():
        raise BadOption(f"axis: expected an axis of the example, a tensor, found {axis!r}")
    axis %= example.dim()
    if example.shape[axis] < hop:
        length = example.shape[axis]
        raise BadOption(f"example: expected a hop of {hop} samples or more, found {length}")
    if example.shape[axis] % hop:  # whole hops: what the model makes of its end is seen on them
        whole = -(-example.shape[axis] // hop) * hop
        example = torch.cat((example, example), axis).narrow(axis, 0, whole)
    check_module(model)
    machine = target if isinstance(target, Target) else Target.parse(target)
    report = Report(target=machine.name)
    with torch_threads(), torch.no_grad():
        exported = _traced(model, example)
        longer = _longer(model, example, hop, axis)
        hops = None if max_length is None else max_length // hop
        step = stream(exported.graph, longer.graph, rule_for, hops)
        spec = _spec(step, axis)
        note = _check(exported.graph, step, spec, example)
        report.notes += [note] if note else []
        sample = (example.narrow(axis, 0, hop).contiguous(), spec.empty())
        compiled = _compiled(_exported(exported, step, step.graph), sample, parsed, machine, report)
        ending = None
        if step.ending is not None:
            made = _exported(exported, step, step.ending)
            last = (torch.zeros(1, dtype=torch.int64), spec.empty())
            ending = _compiled(made, last, parsed, machine, Report(target=machine.name))
    compiled.about["stream"] = spec.to_json()
    if ending is None:
        return Stream(spec, compiled, compiled.save)
    save = partial(save_with, compiled, ending, ENDING, ("stream", "ending"))
    return Stream(spec, compiled, save, ending)


def _compiled(
    made: Exported, sample: tuple, options: Options, machine: Target, report: Report
) -> FlatProgram:
    built = build(made.graph, options, machine, report, [made.sample(sample, {})])
    refuse_fallbacks(options, report)
    return FlatProgram(made, built, (sample, {}))


def _traced(model: torch.nn.Module, example: Tensor) -> Exported:
    exported = export(model, (example,), {}, None, Leaf)
    graph = exported.graph
    if len(graph.inputs) != 1 or graph.scalars or graph.updates:
        raise CannotStream("the model writes to its buffers or to the signal")
    if len(graph.outputs) != 1 or exported.outputs != Leaf(0):
        raise CannotStream(f"expected one tensor as result, found {exported.outputs}")
    return exported


def _longer(model: torch.nn.Module, example: Tensor, hop: int, axis: int) -> Exported:
    """The model traced at a signal that is a hop longer."""
    sizes = list(example.shape)
    sizes[axis] = hop
    try:
        return _traced(model, torch.cat((example, example.new_zeros(sizes)), axis))
    except TraceDeclined as declined:
        length = example.shape[axis]
        raise CannotStream(
            f"the model runs on {length} samples and not on {length + hop}, a hop of {hop} more; "
            f"its strides must divide a hop: {declined}"
        ) from declined


def _spec(step: Step, axis: int) -> StreamSpec:
    x = step.graph.inputs[0]
    return StreamSpec(
        tuple(map(int, x.shape)),
        str(x.dtype),
        axis,
        int(x.shape[axis]),
        tuple(map(int, step.output.node.shape)),
        str(step.output.node.dtype),
        step.output.axis,
        step.output.delay,
        tuple(
            (tuple(map(int, s.node.shape)), str(s.node.dtype), s.fill, s.in_place)
            for s in step.stores
        ),
        step.limit,
        step.rest,
    )


def _exported(exported: Exported, step: Step, graph: Graph) -> Exported:
    """One of the step's graphs as a program of (x, state)."""
    count = len(step.stores)
    state = [Leaf(i + 1) for i in range(count)]
    return replace(
        exported,
        graph=graph,
        arguments=(Argument("x", False, Leaf(0)), Argument("state", False, state)),
        leaves=tuple(range(count + 1)),
        outputs=[Leaf(i) for i in range(len(graph.outputs))],
        rebuild=list,
    )


def _check(graph: Graph, step: Step, spec: StreamSpec, example: Tensor) -> str | None:
    """The step's references, hop by hop and then the end, against those of the model; a note where
    the example is too long to do that to its end. Raises CannotStream.
    """
    (whole,) = interpret(graph, [example])
    hops = example.split(spec.hop, spec.axis)
    most = _CHECKED if spec.limit is None else min(_CHECKED, spec.limit)
    stores = spec.empty()
    parts = [step.run(hop.contiguous(), stores) for hop in hops[:most]]
    named = [f"step {number}" for number in range(len(parts))]
    ended = len(parts) == len(hops)
    if ended:
        last = step.finish(stores)
        parts, named = parts + last, named + ["the end"] * len(last)
    first, length = -spec.delay, spec.length(len(hops))
    for name, part in zip(named, parts, strict=True):
        begin, end = max(first, 0), min(first + spec.out_hop, length)
        if begin < end:
            expected = whole.narrow(spec.out_axis, begin, end - begin)
            error = compare(expected, part.narrow(spec.out_axis, begin - first, end - begin))
            if error.pattern or error.rms_rel > _ROUNDING.get(whole.dtype, 5e-2):
                raise CannotStream(
                    f"{name} on the example, {end - begin} places from {begin}: expected the "
                    f"offline {dtype_name(expected.dtype)} result, found one with {error}"
                )
        first += spec.out_hop
    if ended:
        return None
    count = len(parts)
    return f"the example is {len(hops)} hops long: the first {count} were compared, not the end"
