"""Which buffers a step touches, when each arena buffer lives, and a program's native words."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from infopt.runtime.expression import encode, evaluate
from infopt.runtime.plan import LaunchStep, Mutation, NativeStep, Plan, Step, View

_KINDS = {"arena": 0, "input": 1, "const": 1, "output": 1, "torch": 1}


def step_buffers(views: Sequence[View], step: Step) -> Iterator[int]:
    """The buffers a step reads or writes."""
    if isinstance(step, NativeStep):
        yield from (buffer for buffer, _ in step.pointers if buffer >= 0)
    elif isinstance(step, LaunchStep):
        yield from (buffer for buffer, _ in step.arguments if buffer >= 0)
    else:
        yield from (views[v].buffer for v in step.outputs if v is not None)
        templates = (step.args, tuple(step.kwargs.values()))
        yield from (views[v].buffer for v in template_views(templates))


def template_views(value: Any) -> Iterator[int]:
    """The views that an aten step's argument template names."""
    if isinstance(value, Mapping):
        if "tensor" in value:
            yield value["tensor"]
        for v in value.values():
            yield from template_views(v)
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from template_views(v)


def spans(
    steps: Sequence[Step], views: Sequence[View], mutations: Sequence[Mutation]
) -> dict[int, tuple[int, int]]:
    """First and last step that touches each buffer; mutations come after the last step."""
    found: dict[int, tuple[int, int]] = {}
    touches = [(i, list(step_buffers(views, step))) for i, step in enumerate(steps)]
    touches.append((len(steps), [views[m.view].buffer for m in mutations]))
    for time, buffers in touches:
        for buffer in buffers:
            found[buffer] = (found.get(buffer, (time, time))[0], time)
    return found


def lifetimes(plan: Plan) -> dict[int, tuple[int, int]]:
    """First and last step of every arena buffer, (-1, -1) for one that no step touches."""
    found = spans(plan.steps, plan.views, plan.mutations)
    return {i: found.get(i, (-1, -1)) for i, b in enumerate(plan.buffers) if b.kind == "arena"}


def arena_bytes(plan: Plan, dims: Sequence[int] = ()) -> int:
    """Bytes of the arena for these dim values, placed as csrc/arena.h does, without the threads'
    scratch: what a program will need, known before it is built."""
    slots = evaluate(plan.expressions, list(dims))
    lives = lifetimes(plan)
    asked = {i: slots[plan.buffers[i].bytes] for i in lives}
    sizes = {i: -(-size // 64) * 64 for i, size in asked.items()}
    by_size = sorted(lives, key=lambda i: -asked[i])
    by_span = sorted(by_size, key=lambda i: lives[i][0] - lives[i][1])
    return min(_placed(order, lives, sizes) for order in (by_size, by_span))


def _placed(
    order: Sequence[int], lives: Mapping[int, tuple[int, int]], sizes: Mapping[int, int]
) -> int:
    """Bytes of an arena in which each buffer in turn has the first place free during its life."""
    placed: list[tuple[int, int]] = []  # (offset, buffer), sorted
    for i in order:
        if not sizes[i]:
            continue
        first, last = lives[i]
        offset = 0
        for start, other in placed:
            if lives[other][0] > last or first > lives[other][1]:
                continue
            if start >= offset + sizes[i]:
                break
            offset = max(offset, start + sizes[other])
        insort(placed, (offset, i), key=lambda p: p[0])
    return max((offset + sizes[i] for offset, i in placed), default=0)


def native_words(plan: Plan) -> tuple[list[int], list[tuple[str, str]]]:
    """The plan for `infopt_program_new`, and the (library, kernel) of each kernel index."""
    code, starts = encode(plan.expressions)
    lives = [time for life in lifetimes(plan).values() for time in life]
    kinds = [_KINDS[b.kind] for b in plan.buffers]
    words: list[int] = []
    for part in (code, starts, kinds, [b.bytes for b in plan.buffers], lives):
        words += (len(part), *part)
    kernels: dict[tuple[str, str], int] = {}
    steps = [step for step in plan.steps if isinstance(step, NativeStep)]
    words.append(len(steps))
    for step in steps:
        index = kernels.setdefault((step.library, step.kernel), len(kernels))
        scratch = -1 if step.scratch is None else step.scratch
        words += (index, step.tasks, scratch, int(step.error is not None))
        words += (2 * len(step.pointers), *(n for pair in step.pointers for n in pair))
        words += (len(step.numbers), *step.numbers)
    return words, list(kernels)
