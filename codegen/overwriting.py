"""Results that are written over what their kernels are the last to read: memory not needed twice.

While a graph is lowered, kernels and loops tell the writer which operands their result may be
written over (`Overwrite`). Who reads a value last is known when all steps are.
"""

from __future__ import annotations

from collections.abc import Sequence

from infopt.codegen.plan_writer import PlanWriter, Value
from infopt.runtime.lifetime import spans
from infopt.runtime.plan import Mutation


def overwrite(writer: PlanWriter, mutations: Sequence[Mutation]) -> None:
    """Give the two values of each overwrite one buffer, where nobody reads the old one after."""
    lives = spans(writer.steps, writer.views, mutations)
    places: dict[int, Value] = {}
    for over in writer.overwrites:
        old, new = over.old.buffer, over.new.buffer
        if old not in lives or new not in lives:  # no step is left, or it has a place already
            continue
        first, last = lives[old]
        before, after = writer.buffers[old], writer.buffers[new]
        if last > over.last or lives[new][0] < over.first or before.bytes != after.bytes:
            continue
        if before.kind != "arena" or after.kind not in ("arena", "output"):
            continue
        places[old] = over.new
        lives[new] = (first, lives[new][1])
    for old, value in places.items():  # and on, where that is overwritten too
        while value.buffer in places:
            value = places[value.buffer]
        places[old] = value
    writer.land(places)
