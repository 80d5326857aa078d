"""Makes a failing program small: the first of the simpler programs that still fails, again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from tests.conformance.program import Input, Program, Statement


def shrink(program: Program, fails: Callable[[Program], bool], tries: int = 200) -> Program:
    """A program that fails too and of which no single simplification does, or the best of `tries`
    runs of `fails`. A program that torch itself refuses counts as not failing.
    """
    improved = True
    while improved:
        improved = False
        for simpler in simplifications(program):
            if tries == 0:
                return program
            if not runs(simpler):
                continue
            tries -= 1
            if fails(simpler):
                program, improved = simpler, True
                break
    return program


def runs(program: Program) -> bool:
    """Whether torch runs every call of it."""
    try:
        for call in range(program.calls):
            program.function()(*program.arguments(call))
    except Exception:
        return False
    return True


def simplifications(program: Program) -> Iterator[Program]:
    """Programs with one thing less, the large steps first."""
    if program.calls > 1:
        for call in reversed(range(program.calls)):
            yield one_call(program, call)
    if program.dynamic:
        yield replace(program, dynamic=False)
    for name in program.outputs:
        if len(program.outputs) > 1:
            yield tidy(replace(program, outputs=tuple(n for n in program.outputs if n != name)))
    for index in reversed(range(len(program.statements))):
        for other in program.statements[index].args or (program.inputs[0].name,):
            yield without(program, index, other)
    for index, given in enumerate(program.inputs):
        for plainer in plainer_inputs(given):
            inputs = (*program.inputs[:index], plainer, *program.inputs[index + 1 :])
            yield replace(program, inputs=inputs)
    if program.returns != "tuple":
        yield replace(program, returns="tuple")


def one_call(program: Program, call: int) -> Program:
    """The program with that call only."""
    inputs = tuple(
        replace(
            i,
            shapes=(i.shapes[call],),
            seed=i.seed + 1000 * call,
            bounds=i.bounds[call : call + 1],
        )
        for i in program.inputs
    )
    return replace(program, inputs=inputs, calls=1)


def without(program: Program, index: int, other: str) -> Program:
    """The program without a statement; what read its value reads `other` instead."""
    gone = program.statements[index].name
    kept = [s for i, s in enumerate(program.statements) if i != index]

    def renamed(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(other if n == gone else n for n in names)

    statements = tuple(replace(s, args=renamed(s.args)) for s in kept)
    outputs = tuple(dict.fromkeys(renamed(program.outputs)))
    return tidy(replace(program, statements=statements, outputs=outputs))


def tidy(program: Program) -> Program:
    """Without statements that nothing sees and arguments that nothing reads."""
    statements: list[Statement] = []
    read = set(program.outputs)
    for s in reversed(program.statements):
        if not s.name or s.name in read or "_(" in s.code:
            statements.insert(0, s)
            read.update(s.args)
    viewed = " ".join(i.view_of for i in program.inputs)
    inputs = tuple(i for i in program.inputs if i.name in read or i.name in viewed)
    return replace(program, inputs=inputs or program.inputs[:1], statements=tuple(statements))


def plainer_inputs(given: Input) -> Iterator[Input]:
    """The same argument in fewer words."""
    if given.layout != "dense":
        yield replace(given, layout="dense")
    if given.values not in ("normal", "index", "permutation"):
        yield replace(given, values="normal")
    if given.view_of:
        yield replace(given, view_of="")
