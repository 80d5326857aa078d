"""How many tokens of a prompt one call takes, so that it keeps a limit on memory."""

from __future__ import annotations

import math
from dataclasses import replace

from infopt.compiler.errors import UnreachableBudget
from infopt.compiler.report import Report
from infopt.runtime.decoding.spec import CausalSpec
from infopt.runtime.lifetime import arena_bytes
from infopt.runtime.plan import Plan

_PANEL = 16  # rows that kernels take at once: parts are multiples of it


def in_parts(spec: CausalSpec, limit: int, plan: Plan, report: Report) -> CausalSpec:
    """The spec with prompts cut into parts that keep the limit. Raises UnreachableBudget.

    Exact: a token reads the keys of all before it, whichever call they came in (mini-sequences as
    in MOM, 2025, with attention among them).
    """
    spec = replace(spec, chunk=part_within(limit, plan, spec))
    most = spec.chunk or spec.max_length
    used = bytes_of_part(most, plan, spec)
    report.notes.append(
        f"max_activations: prompts are read {most} tokens at a time, with {used} of {limit} bytes"
    )
    return spec


def part_within(limit: int, plan: Plan, spec: CausalSpec) -> int | None:
    """The most tokens of a call of a full batch that uses no more than `limit` bytes beside inputs,
    weights and results, the threads' scratch aside; None where the longest prompt does. Raises
    UnreachableBudget with what can be reached.
    """
    most = min(spec.max_length, spec.chunk or spec.max_length)
    if bytes_of_part(most, plan, spec) <= limit:
        return spec.chunk
    unit = math.lcm(_PANEL, spec.group or 1)
    if spec.chunk is not None:  # what the policy forgets depends on it
        unit = most = spec.chunk
    least = min(unit, most)
    needed = bytes_of_part(least, plan, spec)
    if needed > limit:
        raise UnreachableBudget(
            f"max_activations={limit}: a call of {least} tokens in each of {spec.batch} sequences, "
            f"the fewest that a prompt is cut into, needs {needed} bytes beside inputs, weights "
            "and results; a smaller batch needs less"
        )
    fits, fails = 1, -(-most // unit)
    while fails - fits > 1:
        middle = (fits + fails) // 2
        if bytes_of_part(middle * unit, plan, spec) <= limit:
            fits = middle
        else:
            fails = middle
    return fits * unit


def bytes_of_part(tokens: int, plan: Plan, spec: CausalSpec) -> int:
    """Bytes of a call with so many new tokens in every sequence, and logits of them all."""
    pages = spec.batch * -(-spec.max_length // spec.page) if spec.page else 0
    sizes = {"batch": spec.batch, "tokens": tokens, "rows": tokens, "room": pages * spec.page}
    return arena_bytes(plan, [sizes[d.name] for d in plan.dims])
