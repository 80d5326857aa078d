"""A torch program as plain data: it runs, and it prints as Python that anybody can run.

`Program.script()` is a whole file that needs torch and infopt only.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

WIDE = ("torch.float16", "torch.bfloat16", "torch.float32")


def make(shape, dtype, layout="dense", values="normal", seed=0, bound=1):  # type: ignore[no-untyped-def]
    """A tensor; the same arguments give the same one. `bound`: indices lie in 0 .. bound - 1."""
    g = torch.Generator().manual_seed(seed)
    held = list(shape)
    if layout == "transposed" and len(held) > 1:
        held[-1], held[-2] = held[-2], held[-1]
    elif layout == "reversed":
        held.reverse()
    elif layout == "every second" and held:
        held[-1] *= 2
    elif layout == "part of rows" and held:
        held[-1] += 5
    elif layout == "offset":
        held = [torch.Size(held).numel() + 3]
    elif layout == "expanded" and held:
        held[0] = 1
    if values == "index":
        t = torch.randint(0, max(bound, 1), held, generator=g)
    elif values == "permutation":
        t = torch.randperm(max(bound, 1), generator=g)[: torch.Size(held).numel()].reshape(held)
    elif dtype == torch.bool:
        t = torch.rand(held, generator=g) < 0.6
    elif not dtype.is_floating_point:
        low = torch.iinfo(dtype).min
        t = torch.randint(0 if low == 0 else -9, 10, held, generator=g)
        if values == "extreme":
            ends = torch.tensor([low, torch.iinfo(dtype).max, 0, 1, low + 1])
            t = ends[torch.randint(0, 5, held, generator=g)]
    else:
        t = torch.randn(held, generator=g, dtype=torch.float64)
        some = torch.randint(0, 12, held, generator=g)
        if values in ("special", "extreme"):
            odd = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1.0, 1e-41]
            if values == "extreme":
                odd = [0.0, -0.0, torch.finfo(dtype).max, torch.finfo(dtype).min, 1.0, -1.0, 1e-41]
            for i, value in enumerate(odd):
                t = t.masked_fill(some == i, value)
        elif values == "whole":
            t = (t * 3).round()
        elif values == "small":
            t = t * 0.25
        elif values == "positive":
            t = t.abs() + 0.5
    t = t.to(dtype)
    if layout == "transposed" and len(held) > 1:
        return t.transpose(-1, -2)
    if layout == "reversed":
        return t.permute(list(reversed(range(t.dim()))))
    if layout == "every second" and held:
        return t[..., ::2]
    if layout == "part of rows" and held:
        return t[..., 2 : 2 + shape[-1]]
    if layout == "offset":
        return t[3:].reshape(shape)
    if layout == "channels last" and len(held) == 4:
        return t.contiguous(memory_format=torch.channels_last)
    return t.expand(*shape) if layout == "expanded" and held else t


@dataclass(frozen=True)
class Input:
    """One argument. shapes and bounds hold one entry per call; `view_of` is an expression over an
    earlier input whose memory this one shares.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype = torch.float32
    layout: str = "dense"
    values: str = "normal"
    seed: int = 0
    bounds: tuple[int, ...] = ()
    view_of: str = ""

    def code(self, call: int) -> str:
        """The Python expression that makes this input for one call."""
        if self.view_of:
            return self.view_of
        bound = f", bound={self.bounds[call]}" if self.bounds else ""
        what = f"{self.shapes[call]}, {self.dtype}, {self.layout!r}, {self.values!r}"
        return f"make({what}, {self.seed + 1000 * call}{bound})"


@dataclass(frozen=True)
class Statement:
    """`name = code` with {0}, {1} .. for the values in args; name "" where it only writes.

    free: the order in which it rounds is the compiler's.
    """

    name: str
    code: str
    args: tuple[str, ...]
    free: bool = False

    def __str__(self) -> str:
        text = self.code.format(*self.args)
        return f"{self.name} = {text}" if self.name else text

    @property
    def noisy(self) -> str:
        """The same with its arguments off by a rounding, where its rounding is free anyway."""
        if not self.free or not self.name or "_(" in self.code:
            return str(self)
        return f"{self.name} = {self.code.format(*(f'noisy({a})' for a in self.args))}"


@dataclass(frozen=True)
class Program:
    """inputs, statements and what is returned; rounded: names whose bits may differ from eager's
    because the order of rounding is free (sums, products, transcendental functions).
    """

    inputs: tuple[Input, ...]
    statements: tuple[Statement, ...]
    outputs: tuple[str, ...]
    calls: int = 1
    dynamic: bool = False
    returns: str = "tuple"
    rounded: frozenset[str] = field(default=frozenset())

    @property
    def source(self) -> str:
        """The function, as Python text."""
        return self._source([str(s) for s in self.statements])

    def _source(self, statements: list[str]) -> str:
        names = ", ".join(i.name for i in self.inputs)
        lines = [f"def program({names}):", *(f"    {s}" for s in statements)]
        if self.returns == "one":
            result = self.outputs[0]
        elif self.returns == "dict":
            result = "{" + ", ".join(f"'k{i}': {n}" for i, n in enumerate(self.outputs)) + "}"
        else:
            result = "(" + "".join(f"{n}, " for n in self.outputs) + ")"
        return "\n".join([*lines, f"    return {result}"])

    def function(self, wide: bool = False) -> Callable[..., Any]:
        """The function itself; wide: every floating dtype it names is float64."""
        return compiled_source(widened(self.source) if wide else self.source)

    def noisy(self) -> Callable[..., Any]:
        """The function with roundings of its own, other ones at every call."""
        return compiled_source(self._source([s.noisy for s in self.statements]))

    def arguments(self, call: int = 0, wide: bool = False) -> tuple[torch.Tensor, ...]:
        """Fresh inputs of one call; wide: the same numbers in float64."""
        found: dict[str, Any] = {"make": make, "torch": torch}
        for given in self.inputs:
            value = eval(given.code(call), found)
            if wide and value.is_floating_point() and not given.view_of:
                value = value.double()
            found[given.name] = value
        return tuple(found[i.name] for i in self.inputs)

    def script(self, door: str = "torch.compile", target: str = "native") -> str:
        """A file that shows the difference where there is one."""
        lines = []
        for call in range(self.calls):
            lines += [f"def inputs{call}():"]
            lines += [f"    {i.name} = {i.code(call)}" for i in self.inputs]
            lines += ["    return (" + "".join(f"{i.name}, " for i in self.inputs) + ")", ""]
        made = (
            f"torch.compile(program, backend='infopt', dynamic={self.dynamic})"
            if door == "torch.compile"
            else f"infopt.compile(program, inputs0(), target={target!r})"
        )
        makers = "".join(f"inputs{i}, " for i in range(self.calls))
        text = _SCRIPT.format(
            make=inspect.getsource(make),
            source=self.source,
            inputs="\n".join(lines),
            made=made,
            makers=makers,
        )
        return text.replace("  # type: ignore[no-untyped-def]", "")


_SCRIPT = """import torch
import torch.nn.functional as F
import infopt


{make}

{source}


{inputs}

run = {made}
with torch.no_grad():
    for inputs in ({makers}):
        ours, theirs = inputs(), inputs()
        try:
            expected = program(*theirs)
        except Exception as error:
            expected = error
        try:
            actual = run(*ours)
        except Exception as error:
            actual = error
        print("eager ", expected, theirs)
        print("infopt", actual, ours)
        torch.testing.assert_close((actual, ours), (expected, theirs), equal_nan=True)
"""


def widened(source: str) -> str:
    """The source with float64 in the place of every other floating dtype."""
    for name in WIDE:
        source = source.replace(name, "torch.float64")
    return source.replace(".float()", ".double()")


def noisy(value: torch.Tensor) -> torch.Tensor:
    """The value with every number off by up to one unit in its last place."""
    if not value.is_floating_point():
        return value
    step = torch.finfo(value.dtype).eps * (2 * torch.rand(value.shape, dtype=torch.float64) - 1)
    return (value.double() * (1 + step)).to(value.dtype)


def compiled_source(source: str) -> Callable[..., Any]:
    """The function `program` that a text defines."""
    found: dict[str, Any] = {"torch": torch, "F": F, "noisy": noisy}
    exec(compile(source, "<random program>", "exec"), found)
    return found["program"]
