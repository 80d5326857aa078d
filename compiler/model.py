"""What infopt.compile returns: a model to call, to read about and to save."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import infopt
from infopt.codegen.build import executor_library
from infopt.codegen.load import library_files, lower_for
from infopt.compiler.compiled import Built
from infopt.compiler.errors import FallbackRefused
from infopt.compiler.export import Exported
from infopt.compiler.graph import Graph
from infopt.compiler.report import Report
from infopt.compiler.target import Target
from infopt.runtime.artifact import EXECUTOR, Artifact, Parameter, Signature, Source, Variant
from infopt.runtime.structure import describe


class Compiled:
    """A compiled model: call it as the model was called.

    report  what was done and why; printable, `report.json()` for machines
    graph   the final graph, None where the whole model runs as torch runs it
    """

    def __init__(self, exported: Exported, built: Built) -> None:
        self.report: Report = built.report
        self.graph: Graph | None = built.graph
        self._exported, self._built = exported, built
        self.signature = signature_of(exported)
        self._rebuild = exported.rebuild

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run. Raises InputMismatch naming the argument that does not fit the program."""
        return self._rebuild(self._built.program(self._inputs(args, kwargs)))

    def profile(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Seconds that each native kernel takes in one call, the fastest of five; also kept in
        report.times. What torch runs is not in it.
        """
        inputs = self._inputs(args, kwargs)
        found: dict[str, float] = {}
        for _ in range(5):
            total: Counter[str] = Counter()
            for kernel, nanoseconds in self._built.program.profile(inputs):
                total[kernel] += nanoseconds
            for kernel, spent in total.items():
                found[kernel] = min(found.get(kernel, float("inf")), spent / 1e9)
        self.report.times = dict(sorted(found.items(), key=lambda item: -item[1]))
        return self.report.times

    def _inputs(self, args: tuple, kwargs: dict[str, Any]) -> list[Any]:
        """The program's flat inputs for a call. Raises InputMismatch."""
        flat = self.signature.bind(args, kwargs)
        count = len(self._exported.graph.inputs) - len(self._exported.state)
        given = [flat[i] for i in self._exported.leaves]
        return given[:count] + self._exported.state + given[count:]

    def save(
        self, path: str | Path, *, targets: Sequence[str | Target] = (), overwrite: bool = False
    ) -> Path:
        """Write the artifact, a folder (docs/artifact-format.md); infopt.load reads it.

        targets: further machines it shall run on, "cpu:avx2" or "cpu:scalar"; the best one is
        chosen at load. Raises FileExistsError, and LoweringDeclined or BuildFailed for a target.
        """
        built, exported = self._built, self._exported
        variants = [_variant(built.lowered)]
        for target in targets:
            machine = target if isinstance(target, Target) else Target.parse(target)
            variants.append(_variant(lower_for(built.graph, machine)))
        count = len(exported.graph.inputs) - len(exported.state)
        sources = [Source(leaf=i) for i in exported.leaves]
        state = [Source(state=i) for i in range(len(exported.state))]
        artifact = Artifact(
            signature=self.signature,
            inputs=sources[:count] + state + sources[count:],
            outputs=describe(exported.outputs),
            variants=list({v.level: v for v in reversed(variants)}.values()),
            state=exported.state,
            graph_text=str(built.graph),
            passes=self.report.to_json()["passes"],
            about={"target": self.report.target},
            versions={"infopt": infopt.__version__},
        )
        return artifact.save(path, overwrite=overwrite)

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


def _variant(lowered: Any) -> Variant:
    libraries = dict(library_files(lowered))
    executor = executor_library()
    if libraries and executor is not None:
        libraries[EXECUTOR] = executor  # for machines where infopt was installed without a compiler
    return Variant(lowered.level, lowered.plan, lowered.constants, libraries)
