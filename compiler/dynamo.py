"""torch.compile(model, backend="infopt")."""

from __future__ import annotations

import logging
import operator
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx
from torch._dynamo.utils import counters
from torch._logging import trace_structured

from infopt.codegen.lower import LoweringDeclined
from infopt.compiler.compiled import build
from infopt.compiler.errors import (
    BadOption,
    CannotInfer,
    DependsOnSize,
    FallbackRefused,
    InfoptError,
    TraceDeclined,
)
from infopt.compiler.frozen import Freezing
from infopt.compiler.graph import Graph
from infopt.compiler.machine import Machine, machine_for
from infopt.compiler.one_device import CPU, mapped, on_cpu
from infopt.compiler.options import Options
from infopt.compiler.report import Report
from infopt.compiler.settings import Settings
from infopt.compiler.tracing.capture import aten_module
from infopt.compiler.tracing.trace import from_fx
from infopt.runtime.errors import InputOverlap, InputUnaligned, PlanError
from infopt.runtime.forked import torch_threads

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Entry:
    """What one backend call made: where the program came from, and its report."""

    code: tuple[str, int] | None
    weights: tuple[weakref.ref, ...]
    report: Report
    graph: Graph | None = None


# Reports of recent compilations, so that explain(compiled) can find them; bounded.
_entries: deque[Entry] = deque(maxlen=1000)
_KEPT_HISTORIES = 32  # of the newest: the graphs between passes, for pages


def infopt(
    module: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """The backend: dynamo's graph and its inputs in, a callable over the same flat inputs out.

    Raises BadOption for unknown options or modes, FallbackRefused with strict=True where the
    program, or an operator of it, can only run as torch runs it.
    """
    parsed = Options.parse(options, mode)
    if parsed.calibration is not None:
        raise BadOption("calibration: its inputs are a module's, give them to infopt.compile")
    if parsed.adapters is not None:
        raise BadOption("adapters: who calls says which of them, give them to infopt.compile")
    report = Report()
    entry = Entry(_origin(), _weights(example_inputs), report)
    _entries.append(entry)
    if len(_entries) > _KEPT_HISTORIES:
        _entries[-_KEPT_HISTORIES - 1].report.history.clear()
    counters["infopt"]["graphs"] += 1
    try:
        with torch_threads():
            return _compile(module, example_inputs, parsed, entry)
    except (TraceDeclined, LoweringDeclined, DependsOnSize) as declined:
        if parsed.strict:
            raise FallbackRefused(
                f"strict=True, and the program cannot be compiled: {declined}"
            ) from None
        return _as_torch(module, report, str(declined))
    except InfoptError as error:
        if not isinstance(error, CannotInfer):  # which is about our rewrites, not the user's input
            raise
        return _after_fault(module, report, error, parsed.strict)
    except Exception as error:
        return _after_fault(module, report, error, parsed.strict)


def _after_fault(
    module: fx.GraphModule, report: Report, error: Exception, strict: bool
) -> Callable[..., Any]:
    """A fault of ours must not stop the user's program: it is loud, counted, fatal in strict."""
    if strict:
        raise error
    counters["infopt"]["internal_errors"] += 1
    log.warning("internal error, please report it; this part runs as torch runs it", exc_info=error)
    return _as_torch(module, report, f"internal error: {type(error).__name__}: {error}")


def _as_torch(module: fx.GraphModule, report: Report, reason: str) -> Callable[..., Any]:
    report.declined = reason
    counters["infopt"]["eager_graphs"] += 1
    log.info("runs as torch runs it: %s", reason)
    return module.forward


def _compile(
    module: fx.GraphModule, inputs: Sequence[Any], options: Options, entry: Entry
) -> Callable[..., Any]:
    report = entry.report
    start = time.perf_counter()
    aten = aten_module(module, inputs)
    weights = {
        i for i, v in enumerate(inputs) if isinstance(v, torch.nn.Parameter | torch.nn.Buffer)
    }
    graph = from_fx(aten, weights | _static_inputs(module), guard=True)
    report.phases["trace"] = time.perf_counter() - start
    order = [i for i, v in enumerate(inputs) if isinstance(v, torch.Tensor)]
    order += [i for i, v in enumerate(inputs) if not isinstance(v, torch.Tensor)]
    freezing = Freezing.find(module, graph, order, inputs, matrices=options.changes_weights)
    if freezing.names:
        graph, order = freezing.apply(inputs)
    samples = [tuple(_detached(inputs[i]) for i in order)]
    machine = machine_for(inputs)
    graph, samples = _off_gpu(graph, samples, options, machine)
    built = build(graph, options, machine.target, report, samples, device=machine.device)
    entry.graph = built.graph
    refuse_fallbacks(options, report)
    counters["infopt"]["native_nodes"] += report.native_nodes
    counters["infopt"]["aten_nodes"] += report.aten_nodes
    _trace_artifacts(built.graph, report)
    random = any(node.serial for node in built.graph.nodes())
    where = built.program.where
    compiled = Compiled(built.program, order, module.forward, report, random, where)
    return _Quantized(compiled, freezing, options, inputs) if freezing.names else compiled


def _off_gpu(
    graph: Graph, samples: list[tuple[Any, ...]], options: Options, machine: Machine
) -> tuple[Graph, list[tuple[Any, ...]]]:
    """Constants on the CPU, where passes evaluate them; samples, which hold all weights, only where
    something is measured on them."""
    if machine.target.kind == "cpu":
        return graph, samples
    (consts,) = mapped(graph.consts)
    measured = options.is_lossy or Settings.from_environment().check
    kept = [tuple(map(on_cpu, sample)) for sample in samples] if measured else []
    return replace(graph, consts=consts), kept


def refuse_fallbacks(options: Options, report: Report) -> None:
    """Raises FallbackRefused where strict=True and torch runs an operator of the program."""
    if options.strict and report.fallbacks:
        listed = "; ".join(f"{op}: {why}" for op, why in sorted(report.fallbacks.items()))
        raise FallbackRefused(f"strict=True, and torch would have to run {listed}")


@dataclass(eq=False)
class Compiled:
    """The callable dynamo keeps: flat inputs in dynamo's order to a flat tuple of results."""

    program: Any
    order: list[int]
    fallback: Callable[..., Any]
    report: Report
    random: bool
    where: torch.device = CPU
    _pick: Callable[[tuple], Any] = field(init=False)

    def __post_init__(self) -> None:
        count = len(self.order)
        if self.order == list(range(count)):  # weights that became constants may come behind
            self._pick = lambda args: args[:count]
        elif count == 1:
            self._pick = lambda args: (args[self.order[0]],)
        else:
            self._pick = operator.itemgetter(*self.order)

    def __call__(self, *args: Any) -> Any:
        on_gpu = self.where.type != "cpu"
        seed = None
        if self.random:
            seed = torch.cuda.get_rng_state(self.where) if on_gpu else torch.get_rng_state()
        try:
            return self.program(self._pick(args))
        except (InputOverlap, InputUnaligned):
            pass  # a written input shares memory with another: torch defines the order
        except PlanError as error:
            # A torch operator made another tensor than its own shape rule said. Results and
            # written inputs leave a program only at its end, so nothing has happened yet.
            reason = f"at run time: {error}"
            log.warning("runs as torch runs it from now on, %s", reason)
            self.report.declined = reason
            self.program = _always(error)
        if seed is not None:
            if on_gpu:
                torch.cuda.set_rng_state(seed, self.where)
            else:
                torch.set_rng_state(seed)
        return self.fallback(*args)


class _Quantized:
    """A program that holds weights in another format: made again when a call brings others."""

    def __init__(
        self, compiled: Compiled, freezing: Freezing, options: Options, args: Sequence[Any]
    ) -> None:
        self.compiled, self.freezing, self.options = compiled, freezing, options
        self.state = freezing.state(args)

    def __call__(self, *args: Any) -> Any:
        state = self.freezing.state(args)
        if state != self.state:
            log.info("weights were changed: they are quantized again")
            graph, _ = self.freezing.apply(args)
            machine = machine_for(args)
            graph, _ = _off_gpu(graph, [], self.options, machine)
            with torch_threads():
                self.compiled.program = build(
                    graph, self.options, machine.target, Report(), device=machine.device
                ).program
            self.state = state
        return self.compiled(*args)


def _always(error: Exception) -> Callable[[Any], Any]:
    def refuse(_: Any) -> Any:
        raise error

    return refuse


def _detached(value: Any) -> Any:
    """A sample input. The size seen is read off a SymInt: int() of one would fix it by a guard."""
    if isinstance(value, torch.Tensor):
        return value.detach()
    return value.node.hint if isinstance(value, torch.SymInt) else value


def _static_inputs(module: fx.GraphModule) -> set[int]:
    """Placeholders that dynamo marks as parameters or buffers of a module."""
    nodes = (n for n in module.graph.nodes if n.op == "placeholder")
    found = set()
    for index, node in enumerate(nodes):
        tensor = node.meta.get("tensor_dict", {})
        if "_dynamo_static_input_type" in tensor:
            found.add(index)
    return found


def _weights(inputs: Sequence[Any]) -> tuple[weakref.ref, ...]:
    return tuple(weakref.ref(v) for v in inputs if isinstance(v, torch.nn.Parameter))


def _origin() -> tuple[str, int] | None:
    """File and line of the function dynamo is compiling; resumed frames keep both."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    try:
        code = InstructionTranslator.current_tx().output.root_tx.f_code
    except Exception:  # called outside dynamo, as tests of backends do
        return None
    return code.co_filename, code.co_firstlineno


def _trace_artifacts(graph: Graph, report: Report) -> None:
    """The final graph and the report in TORCH_TRACE, where tlparse shows them."""
    _trace_artifact("infopt_graph", lambda: str(graph))
    _trace_artifact("infopt_report", report.json)


def _trace_artifact(name: str, payload: Callable[[], str]) -> None:
    trace_structured(
        "artifact", metadata_fn=lambda: {"name": name, "encoding": "string"}, payload_fn=payload
    )


def reports_of(compiled: Any) -> list[Report]:
    """The reports of everything torch.compile made for this module or function, oldest first."""
    target = getattr(compiled, "_orig_mod", None)
    if target is not None:
        code = type(target).forward.__code__
        own = {id(p) for p in target.parameters()}
    else:
        original = getattr(compiled, "_torchdynamo_orig_callable", compiled)
        module = (
            original
            if isinstance(original, torch.nn.Module)
            else getattr(original, "__self__", None)
        )
        function = getattr(original, "__func__", original)
        code = (
            function.__code__ if hasattr(function, "__code__") else type(original).forward.__code__
        )
        own = {id(p) for p in module.parameters()} if isinstance(module, torch.nn.Module) else set()
    place = (code.co_filename, code.co_firstlineno)
    found = []
    for entry in _entries:
        alive = {id(w()) for w in entry.weights}
        if own & alive or (entry.code == place and not (own and alive)):
            found.append(entry.report)
    return found


def reset() -> None:
    """Forget the reports; torch._dynamo.reset calls it."""
    _entries.clear()


infopt.reset = reset  # type: ignore[attr-defined]
