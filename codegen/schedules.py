"""Which schedule a kernel runs with: the usual one, or what was measured to be faster here.

A database of measurements is one JSON file of key -> schedule, seconds, effort. A key says all
that the time depends on: the op, its types (open sizes rounded up to a power of two), its
attributes, the processor, its level and cores. Files of several machines can be merged.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import sympy

from infopt.codegen.kernel import Emitter
from infopt.compiler.errors import InfoptError
from infopt.compiler.graph import Node
from infopt.compiler.target import Target
from infopt.compiler.types import Dim, TensorType, substitute

FORMAT = 1
TUNING = "tuning.json"  # in the cache folder


class BadTuning(InfoptError):
    """A file of measured schedules is not one; the message says what is wrong with it."""


class Schedules(Protocol):
    """Chooses among an emitter's schedules for a node."""

    def __call__(self, node: Node, emitter: Emitter) -> Mapping[str, Any]: ...


def usual(node: Node, emitter: Emitter) -> Mapping[str, Any]:
    """The first schedule an emitter declares: what runs where nothing was measured."""
    return next(emitter.schedules())


@dataclass(frozen=True)
class Measured:
    """The fastest schedule found. seconds: of it; usual: of the usual one in the same run;
    effort: how thoroughly it was looked for, 1 or 2."""

    schedule: Mapping[str, Any]
    seconds: float
    usual: float
    effort: int

    @classmethod
    def parse(cls, key: str, value: Any) -> Measured:
        """Raises BadTuning naming the entry."""
        try:
            schedule = {str(k): v for k, v in value["schedule"].items()}
            seconds, usual = float(value["seconds"]), float(value["usual"])
            return cls(schedule, seconds, usual, int(value["effort"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadTuning(
                f"entry {key!r}: expected schedule, seconds, usual and effort: {error!r}"
            ) from None


@dataclass
class Database:
    """Measured schedules by key; `file` is where they are kept, or None."""

    entries: dict[str, Measured] = field(default_factory=dict)
    file: Path | None = None

    @classmethod
    def load(cls, file: Path) -> Database:
        """The database in a file; an absent one is empty. Raises BadTuning for anything else."""
        if not file.exists():
            return cls({}, file)
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            found, entries = data["format"], data["entries"].items()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadTuning(f"{file}: expected measured schedules as JSON: {error!r}") from None
        if found != FORMAT:
            raise BadTuning(f"{file}: expected format {FORMAT}, found {found!r}; tune again")
        return cls({key: Measured.parse(key, value) for key, value in entries}, file)

    def merge(self, other: Database) -> int:
        """Take what the other knows better: new keys, and more thorough measurements of old ones.
        Returns how many."""
        better = {
            key: found
            for key, found in other.entries.items()
            if key not in self.entries or found.effort > self.entries[key].effort
        }
        self.entries.update(better)
        return len(better)

    def save(self) -> None:
        """Write the file whole; what another process wrote meanwhile is kept."""
        if self.file is None:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with suppress(BadTuning):  # what is damaged is replaced
            self.merge(Database.load(self.file))
        entries = {key: vars(self.entries[key]) for key in sorted(self.entries)}
        descriptor, name = tempfile.mkstemp(prefix=".tuning-", dir=self.file.parent)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump({"format": FORMAT, "entries": entries}, stream, indent=1)
        os.replace(name, self.file)


def key_of(node: Node, target: Target, dims: tuple[Dim, ...]) -> str:
    """What the time of a node depends on, as readable text."""
    rounded = {d.symbol: 1 << max(0, d.hint - 1).bit_length() for d in dims}

    def text(value: Any) -> str:
        if isinstance(value, tuple):
            return f"({', '.join(map(text, value))})"
        if isinstance(value, Node):
            return text(value.type)
        if isinstance(value, TensorType):
            shape = ", ".join(text(s) for s in value.shape)
            strides = ", ".join(text(s) for s in value.strides)
            return f"{value.dtype}[{shape}; {strides}]".removeprefix("torch.")
        return str(substitute(value, rounded)) if isinstance(value, sympy.Expr) else str(value)

    attrs = ", ".join(f"{name}={text(value)}" for name, value in node.attrs)
    machine = f"{target.name}, {target.level}, {target.cores} cores"
    return f"{node.op.name}{text(node.args)} {attrs} on {machine}"
