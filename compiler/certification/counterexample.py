"""The graphs and values with which a pass breaks its contract, and how they are told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from infopt.compiler.dump import diff, text
from infopt.compiler.graph import Graph
from infopt.compiler.pipeline import Pass

_SHOWN = 24  # elements of an input that are printed


class Broken(Exception):
    """What is wrong, with the graphs and values where it is."""

    is_loud = False  # an error was raised, no wrong result given

    def __init__(self, what: str, before: Graph, after: Graph | None, inputs: Sequence[Any]):
        super().__init__(what)
        self.before, self.after, self.inputs = before, after, inputs


def elements(broken: Broken) -> int:
    """How large it is: the numbers in its inputs."""
    return sum(t.numel() for t in broken.inputs if isinstance(t, torch.Tensor))


def message(pass_: Pass, broken: Broken) -> str:
    """What the pass did, both graphs, what changed between them, and the inputs."""
    lines = [
        f"pass {pass_.name} {broken}",
        "counterexample, the graph before:",
        text(broken.before),
    ]
    if broken.after is not None:
        lines += [
            "and after:",
            text(broken.after),
            "the change:",
            diff(broken.before, broken.after),
        ]
    for index, value in enumerate(broken.inputs):
        lines.append(f"x{index} = {shown(value)}")
    return "\n".join(lines)


def shown(value: Any) -> str:
    """A value as a counterexample prints it."""
    if not isinstance(value, torch.Tensor):
        return repr(value)
    kind = f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)} strides {value.stride()}"
    if value.numel() > _SHOWN:
        flat = [round(v, 6) for v in value.flatten()[:_SHOWN].tolist()]
        return f"{kind} {flat} ..."
    return f"{kind} {value.tolist()}"
