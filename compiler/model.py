"""What infopt.compile returns: a model to call, to read about and to save."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import infopt
from infopt.codegen.build import executor_library
from infopt.codegen.load import library_files, lower_for
from infopt.codegen.load_gpu import compiled_kernels
from infopt.codegen.lower import Lowered, LoweringDeclined, lower
from infopt.compiler.compiled import Built, known_schedules
from infopt.compiler.errors import FallbackRefused
from infopt.compiler.graph import Graph
from infopt.compiler.provenance import provenance
from infopt.compiler.report import Report
from infopt.compiler.target import Target
from infopt.compiler.tracing.export import Exported
from infopt.runtime import swap
from infopt.runtime.absent_program import AbsentProgram
from infopt.runtime.adapters import AdapterSet, Chosen, Room
from infopt.runtime.artifact import (
    EXECUTOR,
    Artifact,
    Golden,
    Parameter,
    Signature,
    Source,
    Variant,
)
from infopt.runtime.door import CPU
from infopt.runtime.executor import Program
from infopt.runtime.golden import limit_for
from infopt.runtime.parts import Parts
from infopt.runtime.structure import describe
from infopt.runtime.swap import Weights


class Compiled:
    """A compiled model: call it as the model was called.

    report  what was done and why; printable, `report.json()` for machines
    graph   the final graph, None where the whole model runs as torch runs it
    adapters  with infopt.compile(..., adapters=...), what is loaded: each call has an argument
            `adapters` then, a name for all rows or a list of one for each, None for the model alone
    """

    def __init__(
        self,
        exported: Exported,
        built: Built,
        examples: tuple[tuple, Mapping[str, Any]],
        also: Sequence[Target] = (),
        parts: Parts | None = None,
        room: Room | None = None,
    ) -> None:
        self.report: Report = built.report
        self.graph: Graph | None = built.graph
        self._origin = provenance(exported, built.graph, built.derived, built.held)
        state = [t.to(built.program.where) for t in exported.state]
        self._exported, self._built = replace(exported.without_tensors(), state=state), built
        self._examples, self._also = examples, tuple(also)
        self.signature = signature_of(exported)
        self._rebuild = exported.rebuild
        self.about: dict[str, Any] = {"target": built.report.target}
        self._parts = parts
        if parts is not None:
            self.about["parts"] = parts.to_json()
        self.adapters = None if room is None else AdapterSet(room, self._banks(room))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run. Raises InputMismatch naming the argument that does not fit the program."""
        inputs, _held = self._call_inputs(args, kwargs)  # until the call has ended
        program = self._built.program
        if self._parts is None:
            return self._rebuild(program(inputs))
        return self._rebuild(self._parts.run(program.plan, program, inputs))

    def profile(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Seconds that each native kernel takes in one call, the fastest of five; also kept in
        report.times. What torch runs is not in it.
        """
        inputs, _held = self._call_inputs(args, kwargs)  # until the call has ended
        found: dict[str, float] = {}
        for _ in range(5):
            total: Counter[str] = Counter()
            for kernel, nanoseconds in self._built.program.profile(inputs):
                total[kernel] += nanoseconds
            for kernel, spent in total.items():
                found[kernel] = min(found.get(kernel, float("inf")), spent / 1e9)
        self.report.times = dict(sorted(found.items(), key=lambda item: -item[1]))
        return self.report.times

    def _call_inputs(self, args: tuple, kwargs: dict[str, Any]) -> tuple[list[Any], Chosen | None]:
        """The program's flat inputs for a call, and the adapters it holds. Raises InputMismatch."""
        if self.adapters is None:
            flat, chosen = self.signature.bind(args, kwargs), None
        else:
            flat, chosen = self.adapters.bind(self.signature, args, kwargs)
        return self._inputs(flat, self._exported.state), chosen

    def _inputs(self, flat: Sequence[Any], state: list[torch.Tensor]) -> list[Any]:
        count = len(self._exported.graph.inputs) - len(state)
        given = [flat[i] for i in self._exported.leaves]
        return given[:count] + state + given[count:]

    def load_weights(self, weights: Weights) -> None:
        """Exchange weights without compiling: a mapping of the module's parameter and buffer names
        to tensors (its state_dict()), or the path of a safetensors file with those.

        What lossy passes measured, they measured with the old weights. The module that was
        compiled is not changed. Raises WeightsMismatch; nothing was changed then.
        """
        built, entry = self._built, self._origin.entry
        given = swap.checked(entry, weights)
        changed = swap.constants(entry, self._origin.plan, given, built.graph.consts)
        names = built.lowered.names
        consts = {**built.graph.consts, **changed}
        lowered = replace(built.lowered, constants=[consts[name] for name in names])
        where = built.program.where
        state = list(self._exported.state)
        for name, index in entry.states.items():
            if name in given:
                state[index] = given[name].clone().to(where)
        graph = replace(built.graph, consts=consts)
        self._built = replace(built.with_constants(lowered), graph=graph)
        self._exported, self.graph = replace(self._exported, state=state), graph
        if self.adapters is not None:
            self.adapters.use(self._banks(self.adapters.room))

    def save(
        self,
        path: str | Path,
        *,
        targets: Sequence[str | Target] = (),
        golden: bool | int = False,
        overwrite: bool = False,
        attach: Sequence[str | Path] = (),
    ) -> Path:
        """Write the artifact (docs/artifact-format.md): a folder, or one file where the path ends
        in ".infopt". infopt.load reads both.

        targets: further machines it shall run on, "cpu:avx2" or "cuda:sm90"; the best one is
        chosen at load, the weights are stored once.
        golden: store the example call and its result, or so many calls (the further ones are the
        example's tensors with their values moved around), for infopt.load(check=True). They take
        the size of their inputs and outputs.
        attach: files that travel along, such as a tokenizer's; `attached(name)` of what is loaded.
        Raises FileExistsError, and LoweringDeclined, BuildFailed or CannotCompile for a target;
        DeviceMissing for golden calls where the GPU is not here.
        """
        built, exported = self._built, self._exported
        if self.adapters is not None:
            self.about["adapters"] = self.adapters.to_json()
        variants = [_variant(built.lowered)]
        for machine in (*self._also, *_each(targets)):
            machine = replace(machine, batch_invariant=built.batch_invariant)
            known = known_schedules(built.graph, machine)
            variants.append(_variant(lower_for(built.graph, machine, known)))
        reference = reference_of(built.graph) if variants[0].is_native else None
        count = len(exported.graph.inputs) - len(exported.state)
        sources = [Source(leaf=i) for i in exported.leaves]
        state = [Source(state=i) for i in range(len(exported.state))]
        artifact = Artifact(
            signature=self.signature,
            inputs=sources[:count] + state + sources[count:],
            outputs=describe(exported.outputs),
            variants=list({v.level: v for v in reversed(variants)}.values()),
            state=[t.cpu() for t in exported.state],
            graph_text=str(built.graph),
            passes=self.report.to_json()["passes"],
            about=self.about,
            versions={"infopt": infopt.__version__},
            reference=reference,
            golden=[self._golden(i, reference) for i in range(int(golden))],
            weights=self._origin.entry,
            weights_plan=self._origin.plan,
            batch_invariant=built.batch_invariant,
            attached={Path(file).name: Path(file) for file in attach},
        )
        return artifact.save(path, overwrite=overwrite)

    def _banks(self, room: Room) -> list[Mapping[str, torch.Tensor]]:
        """The adapters' constants by name: those that are saved, and those on a GPU."""
        names = self._built.lowered.names
        sides = [self._built.lowered.constants]
        if self._built.program.where != CPU:
            sides.append(self._built.program.constants)
        every = (dict(zip(names, side, strict=True)) for side in sides)
        return [{name: side[name] for name in room.constants} for side in every]

    def _golden(self, number: int, reference: Variant | None) -> Golden:
        """The example call with its tensors' values moved `number` places, and what it gives."""
        args, kwargs = self._examples
        flat = [
            v.flatten().roll(number).view(v.shape) if isinstance(v, torch.Tensor) else v
            for v in self.signature.bind(args, kwargs)
        ]

        def run(of: Program | AbsentProgram) -> list[Any]:
            inputs = [_copied(v, of.where) for v in flat]
            results = of(self._inputs(inputs, [_copied(t, of.where) for t in self._exported.state]))
            return [v.cpu() if isinstance(v, torch.Tensor) else v for v in results]

        outputs = run(self._built.program)
        limits: list[float | None] = [None] * len(outputs)
        if reference is not None:
            spaces = {s.op.partition(".")[0] for s in reference.plan.steps if hasattr(s, "op")}
            plain = run(Program(reference.plan, reference.constants, allow_ops=spaces))
            limits = [limit_for(a, b) for a, b in zip(outputs, plain, strict=True)]
        return Golden([_copied(v, CPU) for v in flat], outputs, limits)

    def __repr__(self) -> str:
        return f"<infopt.Compiled for {self.report.target}>"


class AsTorch:
    """A model that runs as torch runs it, with the reason in its report."""

    graph: Graph | None = None

    def __init__(self, model: Callable[..., Any], report: Report) -> None:
        self._model, self.report = model, report

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._model(*args, **kwargs)

    def save(self, path: str | Path, **_: Any) -> Path:
        """Raises FallbackRefused: there is no program to save."""
        raise FallbackRefused(f"nothing to save, torch runs this model: {self.report.declined}")

    def __repr__(self) -> str:
        return f"<infopt.AsTorch: {self.report.declined}>"


def signature_of(exported: Exported) -> Signature:
    """How the program is called, as artifacts store it. PlanError for classes they cannot hold."""
    return Signature(
        tuple(
            Parameter(a.name, "keyword" if a.keyword else "positional", describe(a.tree))
            for a in exported.arguments
        )
    )


def reference_of(graph: Graph) -> Variant | None:
    """The graph in torch calls alone, or None where an op's reference has no such form."""
    try:
        lowered = lower(graph, Target.parse("cpu:scalar"), shipped=False, generated=False)
    except LoweringDeclined:
        return None
    return Variant(lowered.level, lowered.plan, lowered.constants, {}, lowered.names)


def _each(targets: Sequence[str | Target]) -> Iterator[Target]:
    """Targets given one by one, or several in a string."""
    for target in targets:
        yield from (target,) if isinstance(target, Target) else Target.parse_list(target)


def _copied(value: Any, where: torch.device) -> Any:
    return value.detach().to(where, copy=True) if isinstance(value, torch.Tensor) else value


def _variant(lowered: Lowered) -> Variant:
    if lowered.kind == "gpu":
        plan, code = compiled_kernels(lowered)
        return Variant(lowered.level, plan, lowered.constants, {}, lowered.names, code)
    libraries = dict(library_files(lowered))
    executor = executor_library()
    if libraries and executor is not None:
        libraries[EXECUTOR] = executor  # for machines where infopt was installed without a compiler
    return Variant(lowered.level, lowered.plan, lowered.constants, libraries, lowered.names)
