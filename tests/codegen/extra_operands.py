"""Does native code read numbers or pointers that its call has not given it?

Calls of one plan lie behind one another in memory, so that such a read finds what belongs to the
next call: nothing fails, and the result may even be right. Here every call is followed by operands
of its own, different ones each time, and the results must not differ.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from infopt.codegen.load import program
from infopt.codegen.lower import Lowered
from infopt.runtime.plan import NativeStep
from tests.codegen.traced import bits_equal

MORE = 16


def check_reads(made: Lowered, args: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> None:
    """`found`: the program's results for `args`; the same whatever lies behind each call."""
    for number, null in ((0, True), (1, False)):
        for a, b in zip(found, program(_followed(made, number, null), 2)(list(args))):
            assert bits_equal(a, b), f"a call of {_symbols(made)} reads more than it is given"


def _followed(made: Lowered, number: int, null: bool) -> Lowered:
    plan = made.plan
    slot = len(plan.expressions)
    steps = []
    for step in plan.steps:
        if isinstance(step, NativeStep):
            step = replace(step, numbers=(*step.numbers, *[slot] * MORE))
            if step.error is None:  # the place of the error is the last pointer
                pointer = (-1, slot + 1) if null else step.pointers[0]
                step = replace(step, pointers=(*step.pointers, *[pointer] * MORE))
        steps.append(step)
    expressions = (*plan.expressions, (number,), (0,))
    return replace(made, plan=replace(plan, expressions=expressions, steps=tuple(steps)))


def _symbols(made: Lowered) -> list[str]:
    return [s.kernel for s in made.plan.steps if isinstance(s, NativeStep)]
