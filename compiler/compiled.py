"""One graph made runnable: passes, lowering, build."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from infopt.codegen.gpu_tuning.clock import clock_of
from infopt.codegen.gpu_tuning.measuring import Bench
from infopt.codegen.gpu_tuning.tuner import GpuTuner
from infopt.codegen.load import lower_for, program
from infopt.codegen.lower import Lowered
from infopt.codegen.schedules import TUNING, BadTuning, Database
from infopt.codegen.tuner import Tuner
from infopt.compiler.accuracy import Exact, compare
from infopt.compiler.certification.first_use import certify_new
from infopt.compiler.dump_folder import program_folder, write
from infopt.compiler.errors import ContractBroken
from infopt.compiler.graph import Graph, Node
from infopt.compiler.interpret import interpret
from infopt.compiler.one_device import originals
from infopt.compiler.options import Options
from infopt.compiler.page import page
from infopt.compiler.pipeline import PassContext, Pipeline, Reference
from infopt.compiler.report import Report
from infopt.compiler.settings import Settings
from infopt.compiler.target import Target
from infopt.passes.pipelines import default_passes
from infopt.runtime.absent_program import AbsentProgram
from infopt.runtime.cuda_device import CudaDevice, find_gpus
from infopt.runtime.device import Device
from infopt.runtime.executor import Program
from infopt.runtime.gpu_levels import gpu_for


@dataclass
class Built:
    """A graph and the program that computes it. derived, held: see PassContext. batch_invariant:
    whether its kernels were chosen so that a row's result depends on that row alone."""

    graph: Graph
    lowered: Lowered
    program: Program | AbsentProgram
    report: Report
    derived: Mapping[str, Node] = field(default_factory=dict)
    batch_invariant: bool = False
    options: Options = field(default_factory=Options)
    device: Device | None = None
    held: Set[str] = frozenset()

    def with_constants(self, lowered: Lowered) -> Built:
        """The same with other constants: nothing is compiled anew."""
        made = made_for(lowered, self.options, self.device)
        return replace(self, lowered=lowered, program=made)


def build(
    graph: Graph,
    options: Options,
    target: Target,
    report: Report,
    samples: Sequence[tuple[Any, ...]] = (),
    calibration: Sequence[tuple[Any, ...]] = (),
    device: Device | None = None,
    timed: tuple[Any, ...] | None = None,
    own_state: bool = False,
    reference: Reference | None = None,
) -> Built:
    """Run the passes, lower and build. Errors of passes are raised; nothing is half done.

    samples: inputs to measure errors on. calibration: further ones, to choose by; all on the CPU.
    device: the GPU to run on, for such a target (load_gpu.py)
    timed: inputs of a call whose time counts, where that is not the first of samples
    own_state, reference: as of PassContext
    """
    settings = Settings.from_environment()
    if settings.dump is not None:
        settings = replace(settings, dump=program_folder(settings.dump))
    report.target = target.name
    if options.batch_invariant:
        target = replace(target, batch_invariant=True)
    try:
        ctx = PassContext(
            *(target, tuple(samples), report, settings),
            calibration=tuple(calibration),
            timed=timed,
            own_state=own_state,
            reference=reference,
        )
        return _build(graph, options, ctx, device)
    finally:
        if settings.dump is not None:
            write(settings.dump, "report.json", report.json())
            write(settings.dump, "report.html", page([report], settings.dump.name))


def _build(graph: Graph, options: Options, ctx: PassContext, device: Device | None = None) -> Built:
    target, report, samples, settings = ctx.target, ctx.report, ctx.samples, ctx.settings
    start = time.perf_counter()
    passes = options.passes
    if passes is None:
        passes = default_passes(
            compute=options.compute,
            weights=options.weights,
            activations=options.activations,
            low_rank=options.low_rank,
            budget=options.budget,
            max_activations=options.max_activations,
            tokens=options.tokens,
            sparse_activations=options.sparse_activations,
            prune=options.prune,
            group_sparsity=options.group_sparsity,
            adapters=options.adapters,
        )
    certify_new(passes, settings, report)
    original = graph
    graph = Pipeline(passes).run(original, ctx)
    if options.max_error is not None and samples:
        _check_error(original, graph, samples, options.max_error, report)
    passed = time.perf_counter()
    tuner = tuner_for(options, settings, target, graph, report, device)
    lowered = lower_for(graph, target, tuner)
    if tuner.measured:
        report.notes.append(f"measured the schedules of {tuner.measured} kernels")
        try:
            tuner.database.save()
        except OSError as error:
            report.notes.append(f"the schedules measured cannot be kept: {error}")
    if isinstance(tuner, GpuTuner):
        report.schedules.update(tuner.choices)
    lowered_at = time.perf_counter()
    if settings.dump is not None:
        write(settings.dump, "plan.json", lowered.plan.to_json())
        for name, source in lowered.sources.items():
            write(settings.dump, f"{name}.cpp", source)
        for text in lowered.kernels:
            write(settings.dump, f"{text.name}.py", text.launch.source)
    made = made_for(lowered, options, device)
    if settings.check >= 2 and not isinstance(made, AbsentProgram):
        _check_program(graph, made, samples)
    report.phases["passes"] = passed - start
    report.phases["lower"] = lowered_at - passed
    report.phases["build"] = time.perf_counter() - lowered_at
    report.native_nodes = lowered.report.native_nodes
    report.aten_nodes = lowered.report.aten_nodes
    report.fallbacks.update(lowered.report.reasons)
    if options.batch_invariant and report.fallbacks:
        listed = ", ".join(sorted(report.fallbacks))
        report.notes.append(f"batch_invariant does not cover what torch runs: {listed}")
    report.kernels.update(lowered.report.native)
    report.memory["weights"] = sum(_bytes(t) for t in lowered.constants)
    hints = {d.name: d.hint for d in graph.dims}
    if all(d.name in hints for d in lowered.plan.dims):
        report.memory["arena"] = made.arena_bytes([hints[d.name] for d in lowered.plan.dims])
    invariant = target.batch_invariant
    return Built(graph, lowered, made, report, ctx.derived, invariant, options, device, ctx.held)


def made_for(
    lowered: Lowered, options: Options, device: Device | None = None
) -> Program | AbsentProgram:
    """The program of a lowered graph as the options ask for it, on a GPU or this machine."""
    if device is not None:
        constants = originals(lowered.constants, device.where)
        lowered = replace(lowered, constants=constants)
    return program(lowered, options.threads, device, options.cuda_graphs)


def tuner_for(
    options: Options,
    settings: Settings,
    target: Target,
    graph: Graph,
    report: Report,
    device: Device | None = None,
) -> Tuner | GpuTuner:
    """Schedules measured before, and measured now where that is asked for and possible: on this
    machine's processor, or on the GPU that is given or that runs the target's code."""
    database = Database()
    if settings.cache is not None:
        database.file = settings.cache / TUNING
        try:
            database = Database.load(database.file)
        except BadTuning as error:
            report.notes.append(f"measured schedules are ignored: {error}")
    effort = settings.tune if options.tune is None else options.tune
    if target.kind == "gpu":
        bench = _bench(target, device) if effort else None
        if effort and bench is None:
            report.notes.append(f"tune={effort}: there is no GPU here to measure on")
        return GpuTuner(database, effort, target, graph.dims, bench)
    if target.name != Target.detect().name:
        effort = 0  # nothing can be measured here
    return Tuner(database, effort, target, graph.dims)


def known_schedules(graph: Graph, target: Target) -> Tuner | GpuTuner:
    """Schedules of a further machine that a program is lowered for: nothing is measured."""
    unmeasured, settings = Options(tune=0), Settings.from_environment()
    return tuner_for(unmeasured, settings, target, graph, Report())


def _bench(target: Target, device: Device | None) -> Bench | None:
    """Where schedules are measured, if there is such a GPU."""
    if device is None and (gpu := gpu_for(target.level, find_gpus())) is not None:
        device = CudaDevice(gpu.index)
    clock = clock_of(device)
    return None if device is None or clock is None else Bench(device, clock, target)


def _check_error(
    original: Graph,
    graph: Graph,
    samples: Sequence[tuple[Any, ...]],
    limit: float,
    report: Report,
) -> None:
    """The finished graph against the traced one, end to end. Raises ContractBroken beyond limit."""
    worst = 0.0
    for sample in samples:
        copies = [
            [v.clone() if isinstance(v, torch.Tensor) else v for v in sample] for _ in range(2)
        ]
        pairs = zip(interpret(original, copies[0]), interpret(graph, copies[1]), strict=True)
        errors = [compare(a, b).rms_rel for a, b in pairs if isinstance(a, torch.Tensor)]
        worst = max([worst, *errors])
    report.notes.append(f"end to end: relative RMS error {worst:.2e}, limit {limit:.2e}")
    if worst > limit:
        raise ContractBroken(
            f"max_error={limit}: on the example inputs the compiled model is off by {worst:.2e} "
            f"(relative RMS); allow more, or ask for less than compute or passes do"
        )


def _check_program(graph: Graph, made: Program, samples: Sequence[tuple[Any, ...]]) -> None:
    """The program against the references of its graph: INFOPT_CHECK=2. Raises ContractBroken."""
    for sample in samples:
        copies = [
            [v.clone() if isinstance(v, torch.Tensor) else v for v in sample] for _ in range(2)
        ]
        results = zip(interpret(graph, copies[0]), made(copies[1]), strict=True)
        for position, (expected, found) in enumerate([*results, *zip(*copies, strict=True)]):
            reason = isinstance(expected, torch.Tensor) and Exact().accepts(expected, found)
            if reason:
                raise ContractBroken(f"the program's result {position} {reason}: a kernel is wrong")


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
