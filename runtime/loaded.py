"""A loaded artifact: called as the model was, replayed against its golden calls, given weights."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from infopt.runtime import golden, packed, swap
from infopt.runtime.adapters import AdapterSet, Room
from infopt.runtime.errors import GoldenMismatch, InfoptRuntimeError, WeightsMismatch
from infopt.runtime.executor import Program
from infopt.runtime.manifest import ATTACHED, GoldenCase, Manifest, VariantEntry
from infopt.runtime.parts import Parts
from infopt.runtime.plan import AtenStep, Plan
from infopt.runtime.structure import builder, paths

Make = Callable[[Sequence[torch.Tensor]], Program]  # a program from its constants


class LoadedProgram:
    """A loaded artifact: call it as the model was called.

    manifest  what the artifact says of itself
    level     the instruction-set level or GPU architecture that runs, or "reference": torch calls
              alone
    notes     what a user should know of this load: why it is not the best program
    adapters  of a model that has room for such, what is loaded; as those of Compiled
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        entry: VariantEntry,
        tensors: list[torch.Tensor],
        make: Make,
        graph_text: str,
        weights_plan: Plan | None,
        notes: Sequence[str],
        parts: Parts | None = None,
        adapters: tuple[Room, Mapping[str, int]] | None = None,
    ) -> None:
        self.path, self.manifest, self.notes = path, manifest, tuple(notes)
        self.level = "reference" if entry is manifest.reference else entry.level
        self.graph_text = graph_text
        self.program = make([tensors[i] for i in entry.constants])
        self._entry, self._tensors, self._make = entry, tensors, make
        self._weights_plan = weights_plan
        where = self.program.where
        self._state = [tensors[i].to(where, copy=True) for i in manifest.state]
        self._sources = [(s.state is None, s.leaf or s.state or 0) for s in manifest.inputs]
        self._rebuild = builder(manifest.outputs)
        self._parts = parts
        self.adapters = None if adapters is None else self._adapters(*adapters)
        self._copies: tempfile.TemporaryDirectory[str] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Raises InputMismatch naming the argument that does not fit."""
        if self.adapters is None:
            flat, _held = self.manifest.signature.bind(args, kwargs), None
        else:
            flat, _held = self.adapters.bind(self.manifest.signature, args, kwargs)
        inputs = self._inputs(flat, self._state)
        if self._parts is None:
            return self._rebuild(self.program(inputs))
        return self._rebuild(self._parts.run(self.program.plan, self.program, inputs))

    @property
    def where(self) -> torch.device:
        """The device of its inputs and results."""
        return self.program.where

    def run(self, inputs: list[Any]) -> list[Any]:
        """The flat outputs of all inputs of the program, in its own order, which need not be that
        of the call's arguments: for those who know the program."""
        return self.program(inputs)

    def attached(self, name: str) -> Path:
        """Where a file lies that was saved along: in the artifact's folder, or, where the artifact
        is one file, a copy that goes with this object. Raises KeyError that lists them.
        """
        names = [n.removeprefix(ATTACHED) for n in self.manifest.files if n.startswith(ATTACHED)]
        if name not in names:
            raise KeyError(f"no {name!r} is attached, only {sorted(names)}")
        if self.path.is_dir():
            return self.path / ATTACHED / name
        if self._copies is None:
            self._copies = tempfile.TemporaryDirectory(prefix="infopt-")
        copy = Path(self._copies.name) / name
        if not copy.exists():
            inside = ATTACHED + name
            copy.write_bytes(packed.content(self.path, inside, self.manifest.files[inside].sha256))
        return copy

    @property
    def batch_invariant(self) -> bool:
        """Whether a row's result is bitwise the same in whatever batch it is: the artifact was
        made so, and nothing of what runs here is torch's."""
        steps = self.program.plan.steps
        return self.manifest.batch_invariant and not any(isinstance(s, AtenStep) for s in steps)

    @property
    def is_native(self) -> bool:
        """Whether native kernels run; otherwise torch calls compute everything."""
        return bool(self.program.plan.libraries)

    def check_golden(self) -> int:
        """Replay every stored call on fresh state; how many there are.

        Raises GoldenMismatch naming the output and how far it is from the stored one.
        """
        for number, case in enumerate(self.manifest.golden):
            self._check(number, case)
        return len(self.manifest.golden)

    def load_weights(self, weights: swap.Weights) -> None:
        """Exchange weights without compiling: a mapping of the module's parameter and buffer names
        to tensors (its state_dict()), or the path of a safetensors file with those.

        Calls that run meanwhile end with the old weights. Tensors that fit as they are stay
        shared with the caller. Raises WeightsMismatch; nothing was changed then.
        """
        entry = self.manifest.weights
        if entry is None or len(self._entry.names) != len(self._entry.constants):
            raise WeightsMismatch("this artifact does not say where its constants come from")
        given = swap.checked(entry, weights)
        current = dict(zip(self._entry.names, self.program.constants, strict=True))
        changed = swap.constants(entry, self._weights_plan, given, current)
        program = self._make([changed.get(name, old) for name, old in current.items()])
        for name, index in entry.states.items():
            if name in given:
                self._state[index] = given[name].to(program.where, copy=True)
        self.program = program

    def _adapters(self, room: Room, loaded: Mapping[str, int]) -> AdapterSet:
        every = dict(zip(self._entry.names, self.program.constants, strict=True))
        return AdapterSet(room, [{name: every[name] for name in room.constants}], loaded)

    def _inputs(self, flat: Sequence[Any], state: Sequence[torch.Tensor]) -> list[Any]:
        return [flat[i] if is_leaf else state[i] for is_leaf, i in self._sources]

    def _check(self, number: int, case: GoldenCase) -> None:
        where = self.program.where
        flat = [self._value(v, copy=True) for v in case.inputs]
        state = [self._tensors[i].to(where, copy=True) for i in self.manifest.state]
        place = f"golden call {number}"
        try:
            found = self.program(self._inputs(flat, state))
        except InfoptRuntimeError as error:
            raise GoldenMismatch(f"{place}: it cannot be made: {error}") from None
        if len(found) != len(case.outputs):
            raise GoldenMismatch(f"{place}: {len(case.outputs)} outputs, found {len(found)}")
        names = paths(self.manifest.outputs)
        for i, (stored, result) in enumerate(zip(case.outputs, found, strict=True)):
            if isinstance(result, torch.Tensor):
                result = result.cpu()
            reason = golden.difference(self._value(stored), result, case.limits[i])
            if reason:
                raise GoldenMismatch(f"{place}, output {names.get(i, i)}: {reason}")

    def _value(self, stored: Any, copy: bool = False) -> Any:
        if isinstance(stored, Mapping):
            if "tensor" not in stored:
                return float(stored["float"])
            tensor = self._tensors[stored["tensor"]]
            return tensor.to(self.program.where, copy=True) if copy else tensor
        return stored

    def __repr__(self) -> str:
        return f"<infopt.LoadedProgram {self.path.name} for {self.level}>"
