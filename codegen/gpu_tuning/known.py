"""What was measured on GPUs, found again on the same one, on its like, or on its family.

Keys in the database (codegen/schedules.py) say what a kernel's time depends on, and where it was
measured: the device's name, its architecture and Triton's version. Sizes are rounded up to three
binary digits (..., 1024, 1280, 1536, 1792, 2048, ...), open ones by the size seen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from infopt.codegen.schedules import Database, Measured
from infopt.compiler.graph import Node
from infopt.compiler.target import Target
from infopt.compiler.target_gpu import ROWS
from infopt.compiler.types import Dim, TensorType, hint
from infopt.runtime.device import Device

_KEY = re.compile(r"(?P<what>.*) on (?P<device>.*) \((?P<arch>\w+), triton (?P<triton>[^ ]+)\)")


@dataclass(frozen=True)
class Place:
    """Where something was measured. device: as it names itself; arch: as levels are named."""

    device: str
    arch: str
    triton: str

    @classmethod
    def of(cls, target: Target, device: Device | None) -> Place:
        """A GPU of this machine, or the product that stands for a target that is not here."""
        name = getattr(getattr(device, "gpu", None), "name", ROWS[target.name].product)
        return cls(name, target.arch if device is None else device.arch, version("triton"))

    @property
    def family(self) -> str:
        """Architectures that differ in the last digit share their instructions."""
        return self.arch[:-1]

    def __str__(self) -> str:
        return f"{self.device} ({self.arch}, triton {self.triton})"


def what_of(node: Node, dims: Sequence[Dim]) -> str:
    """What the time of a node depends on beside the place."""
    attrs = ", ".join(f"{name}={_text(value, dims)}" for name, value in node.attrs)
    return f"{node.op.name}{_text(node.args, dims)} {attrs}".rstrip()


def rounded(size: int) -> int:
    """The least number of three binary digits and zeros that is not less."""
    step = 1 << max(0, size.bit_length() - 3)
    return -(-size // step) * step


def _text(value: Any, dims: Sequence[Dim]) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(_text(v, dims) for v in value)})"
    if isinstance(value, Node):
        return _text(value.type, dims)
    if isinstance(value, TensorType):
        shape = ", ".join(str(rounded(hint(s, dims))) for s in value.shape)
        strided = "" if value.is_contiguous else " strided"
        return f"{value.dtype}[{shape}]{strided}".removeprefix("torch.")
    return str(hint(value, dims)) if hasattr(value, "free_symbols") else str(value)


@dataclass(frozen=True)
class Found:
    """An entry of the database and how near its place is: "here", "the same architecture", "the
    same family"."""

    measured: Measured
    place: Place
    near: str


class Known:
    """A database by what was measured; entries of other machines' kernels are left alone."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._places: dict[str, dict[Place, Measured]] = {}
        for key, entry in database.entries.items():
            if match := _KEY.fullmatch(key):
                place = Place(match["device"], match["arch"], match["triton"])
                self._places.setdefault(match["what"], {})[place] = entry

    def nearest(self, what: str, here: Place) -> Found | None:
        """The same device, else its architecture, else its family; among equally near ones the
        same version of Triton, then the more thorough."""
        found = self._places.get(what, {})
        ranked = sorted(
            (_distance(place, here), -entry.effort, str(place), place)
            for place, entry in found.items()
            if place.family == here.family
        )
        if not ranked:
            return None
        (near, _), _, _, place = ranked[0]
        return Found(found[place], place, _NEAR[near])

    def exact(self, what: str, here: Place) -> Measured | None:
        """Measured on this very device with this version of Triton."""
        return self._places.get(what, {}).get(here)

    def add(self, what: str, here: Place, entry: Measured) -> None:
        """Remember a measurement, also in the database."""
        self._places.setdefault(what, {})[here] = entry
        self.database.entries[f"{what} on {here}"] = entry


_NEAR: Mapping[int, str] = {0: "here", 1: "the same architecture", 2: "the same family"}


def _distance(place: Place, here: Place) -> tuple[int, bool]:
    if (place.device, place.arch) == (here.device, here.arch):
        near = 0
    else:
        near = 1 if place.arch == here.arch else 2
    return near, place.triton != here.triton
