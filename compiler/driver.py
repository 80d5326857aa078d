"""infopt.compile and infopt.explain: the offline front door."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from infopt.codegen.lower import LoweringDeclined
from infopt.compiler.compiled import build
from infopt.compiler.dynamo import refuse_fallbacks, reports_of
from infopt.compiler.errors import BadOption, DependsOnSize, FallbackRefused, TraceDeclined
from infopt.compiler.export import Exported, export
from infopt.compiler.interpret import bind_dims
from infopt.compiler.model import AsTorch, Compiled, signature_of
from infopt.compiler.options import Options
from infopt.compiler.page import page
from infopt.compiler.report import Report, explanation
from infopt.compiler.target import Target
from infopt.runtime.errors import InputMismatch, PlanError
from infopt.runtime.forked import torch_threads
from infopt.runtime.structure import Leaf


def compile(
    model: torch.nn.Module | ExportedProgram | Callable[..., Any],
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    target: str | Target = "native",
    dynamic_shapes: Any = None,
    **options: Any,
) -> Compiled | AsTorch:
    """Compile a model for its example arguments.

    model           a module in the mode it shall run in, a function, or an ExportedProgram
    args, kwargs    example inputs; sizes are fixed except those named in dynamic_shapes
    target          "native", or a machine such as "cpu:avx2" (Target.parse)
    dynamic_shapes  as torch.export takes them
    options         see infopt.compiler.options.Options

    The result is a snapshot of the model: it shares the weights' memory where it can, and promises
    nothing about later changes to them. A model that cannot be traced comes back as AsTorch.
    Raises BadOption for unknown options, FallbackRefused with strict=True.
    """
    parsed = Options.parse(options)
    machine = target if isinstance(target, Target) else Target.parse(target)
    if not isinstance(args, tuple):
        raise BadOption(f"args: expected a tuple of example inputs, found {type(args).__name__}")
    report = Report(target=machine.name)
    try:
        with torch_threads():
            return _compile(
                model, args, dict(kwargs or {}), machine, dynamic_shapes, parsed, report
            )
    except (TraceDeclined, LoweringDeclined, PlanError, DependsOnSize) as declined:
        if parsed.strict:
            raise FallbackRefused(
                f"strict=True, and the model cannot be compiled: {declined}"
            ) from None
        report.declined = str(declined)
        return AsTorch(model.module() if isinstance(model, ExportedProgram) else model, report)


def _compile(
    model: Any,
    args: tuple,
    kwargs: dict[str, Any],
    target: Target,
    dynamic_shapes: Any,
    options: Options,
    report: Report,
) -> Compiled:
    start = time.perf_counter()
    exported = export(model, args, kwargs, dynamic_shapes, Leaf)
    report.phases["trace"] = time.perf_counter() - start
    samples = [exported.sample(args, kwargs)] if args or kwargs else []
    if options.budget is not None:
        samples += _further(exported, options.budget.samples, "samples")
    calibration = _further(exported, options.calibration or (), "calibration")
    built = build(exported.graph, options, target, report, samples, calibration)
    refuse_fallbacks(options, report)
    return Compiled(exported, built, (args, kwargs))


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
