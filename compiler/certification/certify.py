"""A pass held to its contract over generated graphs, in rounding arithmetic and in exact one."""

from __future__ import annotations

import copy
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from infopt.compiler.accuracy import Exact
from infopt.compiler.certification.counterexample import Broken, elements, message
from infopt.compiler.certification.exact import exact_difference
from infopt.compiler.certification.exact_tensor import NotExact
from infopt.compiler.certification.mined_numbers import mined_sizes
from infopt.compiler.certification.pattern_programs import programs_of
from infopt.compiler.certification.programs import Case, Program, cases_of, graph_for, inputs_for
from infopt.compiler.certification.values import compare_results, copies_of
from infopt.compiler.errors import CannotInfer, ContractBroken, IllegalGraph, first_line
from infopt.compiler.graph import Graph
from infopt.compiler.interpret import interpret
from infopt.compiler.pipeline import Pass, PassContext, Pipeline
from infopt.compiler.report import Report
from infopt.compiler.rewrite import Rule
from infopt.compiler.settings import Settings
from infopt.compiler.target import Target
from infopt.compiler.verify import verify

_OTHERS = 12
_RESIDUES = 3  # independent draws; one for dtypes after the first, which mean the same function


class NotCertified(ContractBroken):
    """A pass broke its contract on a generated graph: the message holds the counterexample."""


@dataclass
class Certificate:
    """What `certify` did.

    graphs    graphs the pass was given; applied: those that it changed
    exact     of these, how many were compared over exact arithmetic
    inexact   why the others were not -> how many; declined: reasons of sites -> how many
    failed    errors raised by the pass or the pipeline's checks -> how many; see strict
    """

    name: str
    key: str
    graphs: int = 0
    applied: int = 0
    exact: int = 0
    inexact: Counter[str] = field(default_factory=Counter)
    declined: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        lines = [
            f"{self.name}: applied to {self.applied} of {self.graphs} generated graphs, kept its "
            f"contract on all; {self.exact} compared over exact arithmetic"
        ]
        lines += [f"  not exact ({n}): {reason}" for reason, n in self.inexact.most_common(5)]
        lines += [f"  failed ({n}): {reason}" for reason, n in self.failed.most_common(5)]
        lines += [f"  declined ({n}): {reason}" for reason, n in self.declined.most_common(5)]
        return "\n".join(lines)


def certify(
    pass_: Pass,
    programs: Iterable[Program] = (),
    *,
    attrs: Mapping[str, Sequence[Any]] | None = None,
    draws: int = 24,
    seed: int = 0,
    special: bool = False,
    strict: bool = True,
    patterns: bool = True,
    seconds: float | None = None,
) -> Certificate:
    """Hold a pass to its contract over generated graphs.

    programs    what to give it; for a Rule those of its pattern come first, built with drawn
                shapes, dtypes, attributes and surroundings
    attrs       values for attributes that the pattern leaves open, by name
    draws       random cases per program, beside the fixed ones (programs.cases_of)
    special     infinities, NaN and denormals too
    strict      raise also where no graph lets the pass apply, and where it raises or makes what
                the pipeline refuses: it may never meet such a graph in use, and if it does that is
                no silent error, so on first use it is only counted
    patterns    False: only the programs given
    seconds     stop when so much time is spent; programs then take turns. The fixed cases of the
                first program and one case each of a dozen others are tried however long it takes

    Checked on every graph: the result is legal and has the same interface, the same one comes from
    a second run and the pass is not changed by running, a run over the result changes nothing,
    values keep the accuracy (judged with a float64 run), inputs are not written to; and where the
    pass is Exact, both graphs agree over exact arithmetic for three draws of residues.

    Raises NotCertified with the smallest counterexample it comes upon.
    """
    end = time.monotonic() + (math.inf if seconds is None else seconds)
    certificate = Certificate(pass_.name, pass_.content.digest)
    given = list(programs)
    if isinstance(pass_, Rule) and patterns:
        given = [*programs_of(pass_, attrs or {}, seed), *given]
    sizes = mined_sizes(pass_)
    rounds = [(p, list(cases_of(p, draws, seed, sizes, special))) for p in given]
    least = 0
    if seconds is not None and rounds:
        (first, cases), *others = rounds
        fixed = len(cases) - draws
        rounds = [(first, cases[:fixed]), *_turns([*others, (first, cases[fixed:])])]
        least = fixed + min(len(given), _OTHERS)
    pairs = [(p, c) for p, cases in rounds for c in cases]
    for number, (program, case) in enumerate(pairs):
        if time.monotonic() > end and number >= least:
            break
        try:
            check_case(pass_, program, case, certificate)
        except Broken as broken:
            if broken.is_loud and not strict:
                certificate.failed[str(broken)] += 1
                continue
            raise NotCertified(_smallest(pass_, program, case, broken)) from broken.__cause__
    if strict and not certificate.applied:
        reasons = "; ".join(certificate.declined) or "nothing in them is its pattern"
        raise NotCertified(
            f"{pass_.name} applied to none of {certificate.graphs} generated graphs, so nothing is "
            f"known of it ({reasons}): give programs that it applies to, or attrs="
        )
    return certificate


_Cases = list[tuple[Program, list[Case]]]


def _turns(rounds: _Cases) -> _Cases:
    """The first case of every program, then the second of every program .."""
    longest = max(len(cases) for _, cases in rounds)
    return [(p, cases[n : n + 1]) for n in range(longest) for p, cases in rounds]


def check_case(pass_: Pass, program: Program, case: Case, certificate: Certificate) -> None:
    """One graph. Cases that are no program at all are skipped."""
    inputs = inputs_for(program, case)
    try:
        before = graph_for(program, case, pass_.stage)
        verify(before)
        expected = interpret(before, copies_of(inputs))
    except (CannotInfer, IllegalGraph, RuntimeError, IndexError, ValueError, TypeError):
        return  # no program of these sizes and dtypes, or not at this stage
    certificate.graphs += 1
    after, report, derived = _run(pass_, before, inputs)
    entry = report.passes[0]
    certificate.declined.update(s.reason for s in entry.declined)
    if after.key == before.key:
        return
    certificate.applied += 1
    again, _, _ = _run(pass_, before, inputs)
    if again.key != after.key:
        raise Broken("makes another graph of the same one in a second run", after, again, inputs)
    twice, _, _ = _run(pass_, after, inputs)
    if twice.key != after.key:
        raise Broken("is not idempotent: it changes its own result", after, twice, inputs)
    if _fresh(pass_).content.digest != certificate.key:
        raise Broken("was changed by running: its content is another", before, after, inputs)
    for given in _other_sizes(program, case, inputs):
        compare_results(pass_, before, after, given, expected if given is inputs else None)
    if isinstance(pass_.accuracy, Exact):
        residues = _RESIDUES if case.dtype is program.drawn[0] else 1
        seeds = [97 * case.seed + i for i in range(residues)]
        _compare_exactly(before, after, inputs, derived, certificate, seeds)


def _run(pass_: Pass, graph: Graph, inputs: Sequence[Any]) -> tuple[Graph, Report, Any]:
    report = Report()
    # lossy passes are measured below, where the counterexample is at hand
    samples = (tuple(inputs),) if isinstance(pass_.accuracy, Exact) and not graph.dims else ()
    ctx = PassContext(Target.detect(), samples, report, Settings(), derived={})
    try:
        return Pipeline([pass_], alone=True).run(graph, ctx), report, ctx.derived
    except Exception as error:
        legal = isinstance(error, ContractBroken | IllegalGraph)  # found by the pipeline's checks
        what = f"failed: {error}" if legal else f"raised {type(error).__name__}: {error}"
        broken = Broken(what, graph, None, inputs)
        broken.is_loud = True
        raise broken from error


def _fresh(pass_: Pass) -> Pass:
    """The pass without what it remembers of its content."""
    made = copy.copy(pass_)
    for name in ("content", "key"):
        made.__dict__.pop(name, None)
    return made


def _other_sizes(program: Program, case: Case, inputs: list[Any]) -> Iterable[list[Any]]:
    """The inputs, and for open sizes those of other sizes: one more, twice, and all the same."""
    yield inputs
    if case.dynamic:
        for change in (lambda n: n + 1, lambda n: 2 * n, lambda n: 4):
            sizes = {n: change(s) if n in case.dynamic else s for n, s in case.sizes.items()}
            yield inputs_for(program, replace(case, sizes=sizes))


def _compare_exactly(
    before: Graph,
    after: Graph,
    inputs: Sequence[Any],
    derived: Mapping[str, Any],
    certificate: Certificate,
    seeds: Sequence[int],
) -> None:
    try:
        for seed in seeds:
            reason = exact_difference(before, after, inputs, seed, derived)
            if reason is not None:
                what = f"is another function: over exact arithmetic {reason}"
                raise Broken(what, before, after, inputs)
    except NotExact as error:
        certificate.inexact[first_line(error)] += 1
    else:
        certificate.exact += 1


def _smallest(pass_: Pass, program: Program, case: Case, broken: Broken) -> str:
    """The message of the same failure at the smallest sizes and plainest values that show it."""
    plain = replace(case, layouts=("dense",) * len(case.layouts), values="normal")
    tried = [plain] if plain != case else []
    for size in (1, 2, 3, 4):
        tried += [replace(c, sizes=dict.fromkeys(case.sizes, size)) for c in (plain, case)]
    for name in case.sizes:
        tried += [replace(plain, sizes={**case.sizes, name: size}) for size in (1, 2)]
    best = broken
    for candidate in tried:
        try:
            check_case(pass_, program, candidate, Certificate(pass_.name, pass_.content.digest))
        except Broken as smaller:
            if elements(smaller) < elements(best):
                best = smaller
        except Exception:  # another failure than the one to show
            continue
    return message(pass_, best)
