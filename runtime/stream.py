"""A model over time as a compiled step: hop after hop, with its state in memory of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infopt.runtime.errors import ContextFull, InputMismatch, StaleState
from infopt.runtime.plan_check import dtype_of

ENDING = "stream-ending.infopt"  # the program of the steps behind the last hop, in an artifact


@dataclass(frozen=True)
class StreamSpec:
    """What a step takes and gives.

    shape, dtype  of one hop of the signal; axis: where time is in it
    hop           samples of the signal in a step
    out_shape, out_dtype  of what a step gives; out_axis: where time is in it
    delay         how many samples the step's results are behind: of all that the stream gives, the
                  first `delay` samples belong to no place of the result
    stores        sizes, dtype and start value of every tensor of the state, and whether a step
                  writes it in place; the others' next values are results behind the first
    limit         how many steps there is room for, where something grows with the signal
    rest          samples of the result that finish() gives; below 0, so many of those that the
                  steps gave are behind the result's end
    """

    shape: tuple[int, ...]
    dtype: str
    axis: int
    hop: int
    out_shape: tuple[int, ...]
    out_dtype: str
    out_axis: int
    delay: int
    stores: tuple[tuple[tuple[int, ...], str, float, bool], ...]
    limit: int | None = None
    rest: int = 0

    def to_json(self) -> dict[str, Any]:
        stores = [
            {"shape": list(shape), "dtype": dtype, "fill": str(fill), "in_place": in_place}
            for shape, dtype, fill, in_place in self.stores
        ]
        return {
            "shape": list(self.shape),
            "dtype": self.dtype,
            "axis": self.axis,
            "hop": self.hop,
            "out_shape": list(self.out_shape),
            "out_dtype": self.out_dtype,
            "out_axis": self.out_axis,
            "delay": self.delay,
            "stores": stores,
            "limit": self.limit,
            "rest": self.rest,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> StreamSpec:
        stores = tuple(
            (tuple(s["shape"]), str(s["dtype"]), float(s["fill"]), bool(s["in_place"]))
            for s in record["stores"]
        )
        return cls(
            tuple(record["shape"]),
            str(record["dtype"]),
            int(record["axis"]),
            int(record["hop"]),
            tuple(record["out_shape"]),
            str(record["out_dtype"]),
            int(record["out_axis"]),
            int(record["delay"]),
            stores,
            None if record["limit"] is None else int(record["limit"]),
            int(record["rest"]),
        )

    @property
    def out_hop(self) -> int:
        """Samples of the result that a step gives."""
        return self.out_shape[self.out_axis]

    def length(self, hops: int) -> int:
        """Samples of the result of a signal of so many hops."""
        return max(0, hops * self.out_hop - self.delay + self.rest)

    @property
    def state_bytes(self) -> int:
        """Bytes of one state."""
        return sum(t.nbytes for t in self.empty())

    def empty(self) -> list[Tensor]:
        """The stores before the first sample."""
        return [
            torch.full(shape, fill, dtype=dtype_of(name, "stores"))
            if fill
            else torch.zeros(shape, dtype=dtype_of(name, "stores"))
            for shape, name, fill, _ in self.stores
        ]


class StreamState:
    """Where a stream stands. steps: how many hops it has seen.

    A step hands the memory on to the new state; the old one is stale.
    """

    __slots__ = ("_stores", "steps")

    def __init__(self, stores: list[Tensor], steps: int = 0) -> None:
        self._stores: list[Tensor] | None = stores
        self.steps = steps

    def copy(self) -> StreamState:
        """The same state with memory of its own: both may be stepped. Raises StaleState."""
        return StreamState([s.clone() for s in self.stores], self.steps)

    @property
    def stores(self) -> list[Tensor]:
        """The tensors of the state. Raises StaleState."""
        if self._stores is None:
            raise StaleState("this state was stepped: use the state that the step gave, or copy()")
        return self._stores

    def after(self, fresh: Mapping[int, Tensor]) -> StreamState:
        """The state one step later, with the tensors that are new; it owns the memory now."""
        stores, self._stores = self.stores, None
        for index, value in fresh.items():
            stores[index] = value
        return StreamState(stores, self.steps + 1)

    def __repr__(self) -> str:
        stale = ", stale" if self._stores is None else ""
        return f"<infopt.StreamState after {self.steps} steps{stale}>"


class Stream:
    """A compiled stream.

    spec     what a step takes and gives; `hop` and `delay` are read most
    program  what was compiled or loaded: its report, its notes
    ending   the program of the steps behind the last hop; None where nothing is left then
    """

    def __init__(
        self,
        spec: StreamSpec,
        program: Any,
        save: Callable[..., Path] | None = None,
        ending: Any = None,
    ) -> None:
        self.spec, self.program, self.ending, self._save = spec, program, ending, save
        self._fresh = [i for i, (*_, in_place) in enumerate(spec.stores) if not in_place]

    @property
    def hop(self) -> int:
        """Samples of the signal that a step takes."""
        return self.spec.hop

    @property
    def delay(self) -> int:
        """Samples of the result that a step's results are behind."""
        return self.spec.delay

    @property
    def report(self) -> Any:
        """What the compiler did and why; None of a loaded model."""
        return getattr(self.program, "report", None)

    def start(self) -> StreamState:
        """The state before the first sample."""
        return StreamState(self.spec.empty())

    def step(self, x: Tensor, state: StreamState) -> tuple[Tensor, StreamState]:
        """The result of the next hop x, and the state after it; the one given is stale then.

        Step n gives the offline result at n out_hop - delay and the out_hop - 1 places behind it.
        What would be before place 0 is arbitrary.
        Raises InputMismatch, StaleState, ContextFull; the state is then as it was.
        """
        if tuple(x.shape) != self.spec.shape:
            expected = list(self.spec.shape)
            raise InputMismatch(f"x: expected a hop of {expected}, found {list(x.shape)}")
        if self.spec.limit is not None and state.steps >= self.spec.limit:
            raise ContextFull(f"the stream was compiled for {self.spec.limit} hops of the signal")
        return self._stepped(self.program, x, state)

    def finish(self, state: StreamState) -> Tensor:
        """The rest of the offline result, now that the signal has ended: all places behind those
        that the steps gave, none where spec.rest is 0 or less. The state is stale then.

        Raises InputMismatch where no hop was taken, StaleState.
        """
        spec = self.spec
        if not state.steps:
            raise InputMismatch("finish: expected a state after one hop or more, found a fresh one")
        known = min(spec.rest, spec.length(state.steps))
        count = -(-spec.rest // spec.out_hop) if known > 0 else 0
        parts = []
        for number in range(count):
            y, state = self._stepped(self.ending, torch.tensor([number]), state)
            parts.append(y)
        state.after({})
        if not parts:
            sizes = [n if i != spec.out_axis else 0 for i, n in enumerate(spec.out_shape)]
            return torch.empty(sizes, dtype=dtype_of(spec.out_dtype, "out_dtype"))
        return torch.cat(parts, spec.out_axis).narrow(spec.out_axis, spec.rest - known, known)

    def run(self, x: Tensor) -> Tensor:
        """A whole signal, streamed to its end: the offline result.

        x: a number of whole hops along the time axis. Raises InputMismatch, ContextFull.
        """
        spec = self.spec
        if x.dim() != len(spec.shape) or x.shape[spec.axis] % spec.hop or not x.numel():
            raise InputMismatch(
                f"x: expected whole hops of {list(spec.shape)}, one or more along axis "
                f"{spec.axis}, found {list(x.shape)}"
            )
        state, parts = self.start(), []
        for part in x.split(spec.hop, spec.axis):
            y, state = self.step(part.contiguous(), state)
            parts.append(y)
        length, given = spec.length(len(parts)), spec.out_hop * len(parts)
        late = min(spec.delay, given)
        whole = torch.cat(parts, spec.out_axis).narrow(spec.out_axis, late, given - late)
        if spec.rest > 0:
            whole = torch.cat((whole, self.finish(state)), spec.out_axis)
        return whole.narrow(spec.out_axis, 0, length)

    def _stepped(self, program: Any, x: Tensor, state: StreamState) -> tuple[Tensor, StreamState]:
        y, *made = program.run([x, *state.stores])
        return y, state.after(dict(zip(self._fresh, made, strict=True)))

    def save(self, path: str | Path, **options: Any) -> Path:
        """Write the artifact; infopt.load reads it. Options as those of Compiled.save."""
        if self._save is None:
            raise ValueError("this model was loaded: copy the folder that it was loaded from")
        return self._save(path, **options)

    def __repr__(self) -> str:
        s = self.spec
        return f"<infopt.Stream, hops of {s.hop}, delay {s.delay}, state {s.state_bytes} bytes>"
