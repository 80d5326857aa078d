"""infopt.compile and infopt.explain: the offline front door."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves

from infopt.codegen.lower import LoweringDeclined
from infopt.compiler.adapter_room import no_adapters, room_of, with_slots
from infopt.compiler.compiled import Built, build
from infopt.compiler.dynamo import refuse_fallbacks, reports_of
from infopt.compiler.errors import (
    BadOption,
    DependsOnSize,
    FallbackRefused,
    TraceDeclined,
    UnreachableBudget,
)
from infopt.compiler.interpret import bind_dims
from infopt.compiler.machine import Machine, machine_for
from infopt.compiler.model import AsTorch, Compiled, signature_of
from infopt.compiler.one_device import mapped, on_cpu
from infopt.compiler.options import Options
from infopt.compiler.page import page
from infopt.compiler.report import Report, explanation
from infopt.compiler.target import Target
from infopt.compiler.tracing.archive import load_archive
from infopt.compiler.tracing.export import Exported, export
from infopt.passes.open_batch import inputs_of
from infopt.runtime.device import Device
from infopt.runtime.errors import InputMismatch, OverBudget, PlanError
from infopt.runtime.forked import torch_threads
from infopt.runtime.lifetime import arena_bytes
from infopt.runtime.parts import Parts
from infopt.runtime.structure import Leaf


def compile(
    model: torch.nn.Module | ExportedProgram | Callable[..., Any] | str | Path,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    target: str | Target | None = None,
    dynamic_shapes: Any = None,
    device: Device | None = None,
    **options: Any,
) -> Compiled | AsTorch:
    """Compile a model for its example arguments.

    model           a module in the mode it shall run in, a function, an ExportedProgram, or the
                    path of a torch.export archive (.pt2) that you trust
    args, kwargs    example inputs; sizes are fixed except those named in dynamic_shapes
    target          "native", or a machine such as "cpu:avx2" or "cuda:sm90" (Target.parse); None:
                    where the example inputs are. Of several, "cpu:avx512;cuda:sm90", the first
                    runs here, and `save` writes an artifact for all
    device          the GPU to run on (runtime/device.py); None: that of the example inputs, or the
                    first that the target names. Without one the result can be saved, not called
    dynamic_shapes  as torch.export takes them
    options         see infopt.compiler.options.Options

    The result is a snapshot of the model: it shares the weights' memory where it can, and promises
    nothing about later changes to them. A model that cannot be traced comes back as AsTorch.
    Raises BadOption for unknown options, FallbackRefused with strict=True.
    """
    parsed = Options.parse(options)
    if isinstance(model, str | Path):
        model = load_archive(model)
    if isinstance(model, ExportedProgram) and not args and not kwargs and model.example_inputs:
        args, kwargs = model.example_inputs
    if not isinstance(args, tuple):
        raise BadOption(f"args: expected a tuple of example inputs, found {type(args).__name__}")
    named = (target,) if isinstance(target, Target) else Target.parse_list(target or "native")
    report = Report(target=named[0].name)
    try:
        with torch_threads():
            here = machine_for(tree_leaves((args, kwargs or {})))
            if target is None or (device is None and here.target.level == named[0].level):
                named = (here.target,) if target is None else named
                device = device or here.device
            return _compile(
                *(model, args, dict(kwargs or {}), dynamic_shapes, parsed, report),
                Machine(named[0], device),
                named[1:],
            )
    except (TraceDeclined, LoweringDeclined, PlanError, DependsOnSize) as declined:
        if parsed.strict or parsed.adapters is not None:
            asked = "strict=True" if parsed.strict else "adapters is given"
            raise FallbackRefused(
                f"{asked}, and the model cannot be compiled: {declined}"
            ) from None
        report.declined = str(declined)
        return AsTorch(model.module() if isinstance(model, ExportedProgram) else model, report)


def _compile(
    model: Any,
    args: tuple,
    kwargs: dict[str, Any],
    dynamic_shapes: Any,
    options: Options,
    report: Report,
    machine: Machine,
    also: tuple[Target, ...],
) -> Compiled:
    start = time.perf_counter()
    exported = export(model, args, kwargs, dynamic_shapes, Leaf)
    if options.adapters is not None:
        exported = with_slots(exported, len(tree_leaves((args, kwargs))))
        rows = tree_leaves((args, kwargs))[exported.leaves[0]].shape[0]
        kwargs = {**kwargs, **no_adapters(rows)}
    graph_consts, parameters = mapped(exported.graph.consts, exported.parameters)
    graph = replace(exported.graph, consts=graph_consts)
    exported = replace(exported, graph=graph, parameters=parameters)
    report.phases["trace"] = time.perf_counter() - start
    samples = [exported.sample(args, kwargs)] if args or kwargs else []
    if options.budget is not None:
        samples += _further(exported, options.budget.samples, "samples")
    calibration = _further(exported, options.calibration or (), "calibration")
    samples = [tuple(map(on_cpu, sample)) for sample in samples]
    calibration = [tuple(map(on_cpu, sample)) for sample in calibration]
    target, device = machine.target, machine.device
    limit = options.max_activations if exported.graph.dims else None
    if limit is not None:
        options = replace(options, max_activations=None)
    built = build(exported.graph, options, target, report, samples, calibration, device)
    refuse_fallbacks(options, report)
    parts = None if limit is None else _in_parts(built, limit, report)
    room = None
    if options.adapters is not None:
        room = room_of(exported, built.graph, options.adapters, report)
    return Compiled(exported, built, (args, kwargs), also, parts, room)


def _in_parts(built: Built, limit: int, report: Report) -> Parts:
    """What of a program with open sizes is cut at a call, so that it keeps a limit on memory, and
    can be with the sizes seen. Raises UnreachableBudget."""
    graph, plan = built.graph, built.lowered.plan
    reasons = []
    for index, dim in enumerate(graph.dims):
        inputs = inputs_of(graph, dim)
        if isinstance(inputs, str):
            reasons.append(f"{dim.name}: {inputs}")
            continue
        parts = Parts(index, inputs, limit)
        try:
            each = parts.of_call(plan, [d.hint for d in graph.dims])
        except OverBudget as error:
            raise UnreachableBudget(str(error)) from None
        report.notes.append(
            f"max_activations: calls are cut along {dim.name}, where they need more than {limit} "
            f"bytes; {each} of {dim.hint} at a time with the sizes seen"
        )
        return parts
    used = arena_bytes(plan, [d.hint for d in graph.dims])
    raise UnreachableBudget(
        f"max_activations={limit}: a call needs {used} bytes with the sizes seen, and no open size "
        f"can be cut: {'; '.join(reasons)}"
    )


def _further(exported: Exported, given: Sequence[tuple[Any, ...]], of: str) -> list[tuple]:
    """Further inputs of the model as the graph takes them. Raises BadOption for others."""
    found: list[tuple] = []
    signature = signature_of(exported)
    for index, args in enumerate(given):
        try:
            signature.bind(args, {})
            found.append(exported.sample(args, {}))
            bind_dims(exported.graph, found[-1])
        except (InputMismatch, ValueError) as error:
            raise BadOption(
                f"{of}[{index}]: {error}; sizes that vary are named in dynamic_shapes"
            ) from None
    return found


def explain(compiled: Any, pass_name: str | None = None, *, html: str | Path | None = None) -> str:
    """Where a pass applied in a compiled model, and where not and why; all of it without a name.

    compiled: what infopt.compile or torch.compile(backend="infopt") returned.
    html: also write a page with the graphs, sites, reasons, gains and a roofline to this file.
    Raises KeyError listing the passes where none of that name ran.
    """
    reports = [compiled.report] if hasattr(compiled, "report") else reports_of(compiled)
    if not reports:
        return "nothing was compiled yet: call the model first"
    if html is not None:
        Path(html).write_text(page(reports, "infopt"), encoding="utf-8")
    if pass_name is None:
        return "\n\n".join(map(str, reports))
    texts = []
    for report in reports:
        if report.declined:
            texts.append(f"runs as torch runs it: {report.declined}")
        else:
            texts.append(explanation(report.find(pass_name)))
    return "\n".join(texts)
