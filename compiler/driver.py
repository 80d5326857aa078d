"""infopt.compile and infopt.explain: the offline front door."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ConstantArgument,
    InputKind,
    SymIntArgument,
    TensorArgument,
)
from torch.utils import _pytree as pytree

from infopt.codegen.lower import LoweringDeclined
from infopt.compiler.compiled import Built, build
from infopt.compiler.dynamo import reports_of
from infopt.compiler.errors import BadOption, FallbackRefused, TraceDeclined
from infopt.compiler.graph import Graph
from infopt.compiler.infer import Builder
from infopt.compiler.options import Options
from infopt.compiler.report import Report, explanation
from infopt.compiler.rewrite import exchange
from infopt.compiler.target import Target
from infopt.compiler.trace import check_tensor, from_fx


class Compiled:
    """A compiled model: call it as the model was called.

    report  what was done and why; printable, `report.json()` for machines
    graph   the final graph, None where the whole model runs as torch runs it
    """

    def __init__(
        self,
        model: Any,
        program: ExportedProgram | None,
        built: Built | None,
        report: Report,
        state: list[torch.Tensor],
    ) -> None:
        self._model = model if built is None else None
        self._built = built
        self._state = state
        self.report = report
        self.graph: Graph | None = built.graph if built else None
        if program is not None and built is not None:
            assert program.call_spec.in_spec is not None and program.call_spec.out_spec is not None
            self._in_spec = program.call_spec.in_spec
            self._out_spec = program.call_spec.out_spec
            specs = program.graph_signature.input_specs
            user = [s.arg for s in specs if s.kind is InputKind.USER_INPUT]
            self._checks = [(i, a.value) for i, a in enumerate(user) if isinstance(a, ConstantArgument)]
            self._tensors = [i for i, a in enumerate(user) if isinstance(a, TensorArgument)]
            self._sizes = [i for i, a in enumerate(user) if isinstance(a, SymIntArgument)]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run. Raises InputMismatch, naming the input, where sizes or dtypes do not fit."""
        if self._built is None:
            return self._model(*args, **kwargs)
        flat = self._flatten(args, kwargs)
        inputs = [flat[i] for i in self._tensors] + self._state + [flat[i] for i in self._sizes]
        results = self._built.program(inputs)
        return pytree.tree_unflatten(results, self._out_spec)

    def _flatten(self, args: tuple, kwargs: dict[str, Any]) -> list[Any]:
        expected = self._in_spec.child(1).context
        if list(kwargs) != expected:
            missing = [k for k in expected if k not in kwargs]
            extra = [k for k in kwargs if k not in expected]
            if missing or extra:
                raise BadOption(
                    f"the model was compiled with keyword arguments {expected}: "
                    f"missing {missing}, unexpected {extra}"
                )
            kwargs = {k: kwargs[k] for k in expected}
        flat, spec = pytree.tree_flatten((args, kwargs))
        if spec != self._in_spec:
            raise BadOption(f"the model was compiled for arguments {self._in_spec}, found {spec}")
        for index, value in self._checks:
            if flat[index] != value:
                raise BadOption(
                    f"argument {index} was {value!r} at compile time and is part of the program; "
                    f"found {flat[index]!r}"
                )
        return flat

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the artifact (docs/artifact-format.md). FallbackRefused where torch runs the model."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<infopt.Compiled for {self.report.target}>"


def compile(
    model: torch.nn.Module | ExportedProgram,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    target: str | Target = "native",
    dynamic_shapes: Any = None,
    **options: Any,
) -> Compiled:
    """Compile a model for its example arguments.

    model           a module in the mode it shall run in, or a torch.export.ExportedProgram
    args, kwargs    example inputs; sizes are fixed except those named in dynamic_shapes
    target          "native", or a machine such as "cpu:avx2" (Target.parse)
    dynamic_shapes  as torch.export takes them
    options         see infopt.compiler.options.Options

    The compiled model is a snapshot: later changes of the module's weights may or may not be seen.
    Raises BadOption for unknown options, FallbackRefused with strict=True.
    """
    parsed = Options.parse(options)
    machine = target if isinstance(target, Target) else Target.parse(target)
    if not isinstance(args, tuple):
        raise BadOption(f"args: expected a tuple of example inputs, found {type(args).__name__}")
    report = Report(target=machine.name)
    try:
        return _compile(model, args, dict(kwargs or {}), machine, dynamic_shapes, parsed, report)
    except (TraceDeclined, LoweringDeclined) as declined:
        if parsed.strict:
            raise FallbackRefused(f"strict=True, and the model cannot be compiled: {declined}") from None
        report.declined = str(declined)
        runnable = model.module() if isinstance(model, ExportedProgram) else model
        return Compiled(runnable, None, None, report, [])


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
    program = _export(model, args, kwargs, dynamic_shapes)
    graph, state = graph_of(program)
    report.phases["trace"] = time.perf_counter() - start
    samples = []
    if args or kwargs:
        flat = [v for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, torch.Tensor)]
        samples = [tuple(flat + state)]
    built = build(graph, options, target, report, samples)
    if options.strict and report.fallbacks:
        listed = "; ".join(f"{op}: {why}" for op, why in sorted(report.fallbacks.items()))
        raise FallbackRefused(f"strict=True, and torch would have to run {listed}")
    return Compiled(model, program, built, report, state)


def _export(model: Any, args: tuple, kwargs: dict[str, Any], dynamic_shapes: Any) -> ExportedProgram:
    if isinstance(model, ExportedProgram):
        return model
    if not isinstance(model, torch.nn.Module):
        model = _Function(model)
    if model.training and any(p.requires_grad for p in model.parameters()):
        raise TraceDeclined("the model is in training mode; call model.eval() first")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        check_tensor(name, tensor)
    if torch.is_autocast_enabled("cpu"):
        raise TraceDeclined("autocast is on around the program")
    try:
        with torch.no_grad():
            return torch.export.export(
                model, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False
            )
    except Exception as error:
        reason = (str(error).strip().splitlines() or [repr(error)])[0]
        raise TraceDeclined(f"torch.export could not trace it: {reason}") from error


class _Function(torch.nn.Module):
    """A plain function as a module, which is what torch.export takes."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.eval()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def graph_of(program: ExportedProgram) -> tuple[Graph, list[torch.Tensor]]:
    """The graph of an exported program, and the buffers it writes to (its last inputs).

    Parameters, buffers and constants become consts that share the model's memory.
    """
    module = program.graph_module
    specs = program.graph_signature.input_specs
    tensors: dict[int, torch.Tensor] = {}
    for index, spec in enumerate(specs):
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            source = program.state_dict if spec.target in program.state_dict else program.constants
            tensors[index] = source[spec.target].detach()
        elif spec.kind is InputKind.CONSTANT_TENSOR:
            tensors[index] = program.constants[spec.target].detach()
        elif spec.kind is not InputKind.USER_INPUT:
            raise TraceDeclined(f"the program takes a {spec.kind.name.lower()}")
    graph = from_fx(module, set(tensors))
    names = [n.name for n in module.graph.nodes if n.op == "placeholder"]
    return bind(graph, {names[i]: t for i, t in tensors.items()})


def bind(graph: Graph, tensors: Mapping[str, torch.Tensor]) -> tuple[Graph, list[torch.Tensor]]:
    """Inputs of these names become consts, except those the graph writes to: they stay inputs, last."""
    o = Builder(graph.dims)
    written = {i for i, _ in graph.updates}
    changes, consts, state, user = {}, {}, [], []
    for index, node in enumerate(graph.inputs):
        name = node.attr("name")
        if name not in tensors:
            user.append((index, node))
        elif index in written:
            state.append((index, node))
        else:
            changes[node] = o.const(name, node.tensor_type)
            consts[name] = tensors[name]
    order = [i for i, _ in user + state]
    new_index = {old: new for new, old in enumerate(order)}
    smaller = exchange(graph, changes, o)
    smaller = replace(
        smaller,
        inputs=tuple(n for _, n in user + state),
        updates=tuple((new_index[i], n) for i, n in smaller.updates),
        consts={**graph.consts, **consts},
    )
    return smaller.with_consts({}), [tensors[n.attr("name")] for _, n in state]


def explain(compiled: Any, pass_name: str | None = None) -> str:
    """Where a pass applied in a compiled model, and where not and why; the whole report without one.

    compiled: what infopt.compile, infopt.load or torch.compile(backend="infopt") returned.
    Raises KeyError listing the passes where none of that name ran.
    """
    reports = [compiled.report] if hasattr(compiled, "report") else reports_of(compiled)
    if not reports:
        return "nothing was compiled yet: call the model first"
    if pass_name is None:
        return "\n\n".join(map(str, reports))
    texts = []
    for report in reports:
        if report.declined:
            texts.append(f"runs as torch runs it: {report.declined}")
        else:
            texts.append(explanation(report.find(pass_name)))
    return "\n".join(texts)
