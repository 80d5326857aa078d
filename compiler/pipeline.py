"""Passes, their contract, and the pipeline that enforces it."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import torch

from infopt.compiler.accuracy import Accuracy, Exact
from infopt.compiler.content import Content, content_of
from infopt.compiler.dump import diff, text
from infopt.compiler.dump_folder import write
from infopt.compiler.errors import ContractBroken, IllegalGraph, IllegalTrace
from infopt.compiler.exchange import exchange
from infopt.compiler.graph import Graph, Node, Stage
from infopt.compiler.infer import Builder, builder_for
from infopt.compiler.interpret import interpret
from infopt.compiler.ops import CONST
from infopt.compiler.report import PassReport, Report, Site, Step
from infopt.compiler.settings import Settings
from infopt.compiler.target import Target
from infopt.compiler.verify import verify, verify_same_interface

__all__ = ["Pass", "PassContext", "Pipeline", "Reference", "SiteLimit", "Stage", "results_of"]


@dataclass
class SiteLimit:
    """Lets a pass apply only its first `left` sites: how bisection finds a wrong one."""

    left: int
    applied: list[Node] = field(default_factory=list)

    def admits(self, node: Node) -> bool:
        if self.left == 0:
            return False
        self.left -= 1
        self.applied.append(node)
        return True


@dataclass
class Reference:
    """What searches measure errors against where several programs are searched for one model: the
    results of the first, which loses nothing beside."""

    results: list[list[Any]] | None = None


@dataclass(frozen=True)
class PassContext:
    """What a pass may know: an argument, never a global.

    target    the machine the program is for
    samples   example inputs of the whole program, for measuring accuracy; may be empty
    report    where decisions are recorded
    limit     None, or how many sites may be applied
    derived   constant -> how passes made it from the model's own, see `derive`
    held      those of which that is true for the values that the model has now alone
    calibration  further example inputs, to choose by: what they chose is not judged on them
    timed     inputs of a call whose time counts; None: the first of samples
    own_state  whether what the program updates is read by its own later calls alone: errors of
              lossy passes are then those of its outputs
    reference  None, or what a search measures errors against in place of the graph's own results
    """

    target: Target
    samples: tuple[tuple[Any, ...], ...] = ()
    report: Report = field(default_factory=Report)
    settings: Settings = field(default_factory=Settings)
    builder: Builder = field(default_factory=Builder)
    entry: PassReport | None = None
    limit: SiteLimit | None = None
    derived: dict[str, Node] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    calibration: tuple[tuple[Any, ...], ...] = ()
    timed: tuple[Any, ...] | None = None
    own_state: bool = False
    reference: Reference | None = None

    def results(self, graph: Graph) -> list[list[Any]]:
        """The results that errors are measured on, of every sample."""
        return results_of(graph, self.samples, updates=not self.own_state)

    def expected(self, graph: Graph) -> list[list[Any]]:
        """What a search that begins with this graph measures errors against."""
        if self.reference is None:
            return self.results(graph)
        if self.reference.results is None:
            self.reference.results = self.results(graph)
        return self.reference.results

    def derive(self, name: str, expression: Node, held: bool = False) -> None:
        """Say how the new constant `name` is computed from constants, so that the weights of a
        compiled model can be exchanged; one that is not explained here holds them fixed.

        held: the pass looked at the values to find the expression, which others may not obey
        (integers that fit into four bits): those it reads then stay as they are.
        """
        images: dict[Node, Node] = {}

        def image(arg: Any) -> Any:
            if isinstance(arg, tuple):
                return tuple(map(image, arg))
            if not isinstance(arg, Node):
                return arg
            if arg not in images:
                if arg.op is CONST and arg.attr("name") in self.derived:
                    images[arg] = self.derived[arg.attr("name")]
                else:
                    args = image(arg.args)
                    kept = arg if args == arg.args else None
                    images[arg] = kept or Node(arg.op, args, arg.attrs, arg.type, arg.serial)
            return images[arg]

        self.derived[name] = image(expression)
        if held:
            self.held.add(name)

    def site(
        self, where: Node | str, applied: bool, reason: str = "", gain: float | None = None
    ) -> None:
        """Record one place where the running pass applied, or declined and why."""
        if self.entry is not None:
            name = where if isinstance(where, str) else repr(where)
            self.entry.sites.append(Site(name, applied, reason, gain))

    def exchange(
        self, graph: Graph, changes: Mapping[Node, Node], images: dict[Node, Node] | None = None
    ) -> Graph:
        """The graph with nodes exchanged for others everywhere they are read, see exchange.py.

        Each change is a site that bisection may leave out, so each must be right by itself.
        """
        if self.limit is not None:
            changes = {old: new for old, new in changes.items() if self.limit.admits(old)}
        return exchange(graph, changes, self.builder, images)

    def admits(self, node: Node) -> bool:
        """True unless bisection leaves this site out: asked by a pass that does not use exchange,
        once per site, when all else speaks for it."""
        return self.limit is None or self.limit.admits(node)

    @property
    def is_spent(self) -> bool:
        """True where no site may be applied any more."""
        return self.limit is not None and self.limit.left == 0


@dataclass(frozen=True)
class Pass:
    """A function from graph to graph with a contract. Options are dataclass fields.

    name      kebab-case, unique in a pipeline
    stage     the stage it belongs to; stages never decrease along a pipeline
    after     names of passes that must come earlier; checked, never solved
    accuracy  how far results may move; measured on samples where the pass is not Exact
    parts     passes that it runs itself: later ones may ask to come after those
    searches  whether what it promises holds against the reference of its context, if there is one
    """

    name: ClassVar[str] = ""
    stage: ClassVar[Stage] = Stage.NORMALIZE
    after: ClassVar[tuple[str, ...]] = ()
    accuracy: ClassVar[Accuracy] = Exact()
    searches: ClassVar[bool] = False

    @property
    def parts(self) -> tuple[Pass, ...]:
        return ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        named = isinstance(cls.name, str) and cls.name  # FxPass computes its name
        if named and not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", cls.name):
            raise ContractBroken(f"pass name {cls.name!r} of {cls.__name__}: expected kebab-case")

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        """The rewritten graph. Same graph and options must give the same result."""
        raise NotImplementedError(f"{type(self).__name__} must define run")

    @cached_property
    def content(self) -> Content:
        """The content of class and options, with what could not be looked into."""
        return content_of(type(self), {f.name: getattr(self, f.name) for f in fields(self)})

    @cached_property
    def key(self) -> str:
        """Content hash of the class and its options: part of every cache key.

        A pass that holds something without content (an object written in C, a uuid() of None)
        gets a key that no other object has: whatever is cached under it is never found again.
        """
        digest = self.content.digest
        return f"{digest}-{uuid4().hex}" if self.content.opaque else digest


@dataclass(frozen=True)
class Pipeline:
    """An explicit list of passes. Order is checked when it is made, never changed.

    alone: one pass out of its context, as tests run it; nothing is asked to come before it
    measured: False where somebody else holds what passes lose against a limit of its own
    """

    passes: tuple[Pass, ...]
    measured: bool

    def __init__(
        self, passes: Iterable[Pass], *, alone: bool = False, measured: bool = True
    ) -> None:
        object.__setattr__(self, "passes", tuple(passes))
        object.__setattr__(self, "measured", measured)
        done: dict[str, Pass] = {}
        stage = Stage.NORMALIZE
        for p in self.passes:
            if not isinstance(p, Pass):
                raise ContractBroken(f"expected a Pass, found {p!r}; wrap an fx function in FxPass")
            if not p.name:
                raise ContractBroken(f"{type(p).__name__} has no name")
            if p.name in done and type(done[p.name]) is not type(p):
                raise ContractBroken(f"two different passes are called {p.name!r}")
            if p.stage < stage:
                raise ContractBroken(f"{p.name} ({p.stage.name}) comes after stage {stage.name}")
            missing = [a for a in p.after if a not in done and not alone]
            if missing:
                raise ContractBroken(f"{p.name} must come after {', '.join(missing)}")
            stage = p.stage
            done |= {part.name: part for part in (*p.parts, p)}

    @property
    def key(self) -> str:
        return hashlib.sha256("".join(p.key for p in self.passes).encode()).hexdigest()

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        """All passes in order; each result is verified, and measured where its contract asks.

        Raises IllegalGraph or ContractBroken naming the pass that broke the graph.
        """
        try:
            verify(graph, after="trace")
        except IllegalGraph as error:
            raise IllegalTrace(str(error)) from error
        if ctx.settings.dump is not None:
            write(ctx.settings.dump, "traced.txt", text(graph))
        for index, p in enumerate(self.passes):
            if p.name in ctx.settings.skip:
                ctx.report.notes.append(f"pass {p.name} skipped by INFOPT_SKIP")
                continue
            if p.content.opaque:
                ctx.report.notes.append(
                    f"pass {p.name} holds {', '.join(p.content.opaque)}, whose content is unknown: "
                    f"no cache will find what it makes"
                )
            graph = self._run_one(index, p, graph, replace(ctx, builder=builder_for(graph.dims)))
        ctx.report.machine, ctx.report.graph = ctx.target, _without_data(graph)
        return graph

    def _run_one(self, index: int, p: Pass, graph: Graph, ctx: PassContext) -> Graph:
        start = time.perf_counter()
        if p.stage > graph.stage:
            graph = replace(graph, stage=p.stage)
        entry = PassReport(p.name, p.stage.name, str(p.accuracy), len(graph.nodes()), key=p.key)
        result = p.run(graph, replace(ctx, entry=entry))
        if result is not graph:
            result = result.with_consts({})
        _dump(index, p, graph, result, ctx.settings.dump)  # also what is found wrong below
        if result is not graph:
            verify_same_interface(graph, result, p.name)
            verify(result, after=p.name)
            if self.measured:
                self._measure(p, entry, graph, result, ctx)
        entry.nodes_after = len(result.nodes())
        entry.milliseconds = (time.perf_counter() - start) * 1e3
        ctx.report.passes.append(entry)
        if result is not graph:
            before, after = _without_data(graph), _without_data(result)
            ctx.report.history.append(Step(p.name, len(ctx.report.passes) - 1, before, after))
        return result

    def _measure(
        self, p: Pass, entry: PassReport, before: Graph, after: Graph, ctx: PassContext
    ) -> None:
        """Lossy passes always, exact ones if INFOPT_CHECK asks: it costs two interpreted runs."""
        exact = isinstance(p.accuracy, Exact)
        if not ctx.samples or (exact and not ctx.settings.check):
            return
        lossy = ctx if not exact else replace(ctx, own_state=False)
        expected = ctx.expected(before) if p.searches else lossy.results(before)
        found = lossy.results(after)
        for sample in zip(expected, found, strict=True):
            for position, (a, b) in enumerate(zip(*sample, strict=True)):
                if not isinstance(a, torch.Tensor):
                    continue
                reason = p.accuracy.accepts(a, b)
                if reason is not None:
                    raise ContractBroken(
                        f"pass {p.name} promises {p.accuracy}, but result {position} {reason}; "
                        f"see its rewrite, or INFOPT_DUMP for the graphs before and after"
                    )
                entry.error = max(entry.error, p.accuracy.describe(a, b), key=len)


def _without_data(graph: Graph) -> Graph:
    """The graph with its constants of one element only: it keeps no weights alive."""
    return replace(graph, consts={k: v for k, v in graph.consts.items() if v.numel() == 1})


def results_of(
    graph: Graph, samples: Sequence[tuple[Any, ...]], updates: bool = True
) -> list[list[Any]]:
    """The graph's results on copies of the samples, with the inputs that it updates or without."""
    results = []
    for sample in samples:
        copies = [v.clone() if isinstance(v, torch.Tensor) else v for v in sample]
        flat = interpret(graph, copies)
        results.append(flat + [copies[i] for i, _ in graph.updates if updates])
    return results


def _dump(index: int, p: Pass, before: Graph, after: Graph, folder: Path | None) -> None:
    if folder is None:
        return
    stem = f"{index:02}_{p.name.replace('-', '_')}"
    write(folder, f"{stem}.txt", text(after))
    if before is not after:
        write(folder, f"{stem}.diff", diff(before, after))
