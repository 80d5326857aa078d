"""A compiled program that is run on flat inputs, saved alone or with a second one."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from infopt.compiler.model import Compiled
from infopt.compiler.target import Target
from infopt.runtime.loading import read_manifest


class FlatProgram(Compiled):
    """A compiled program that is run on flat inputs."""

    @property
    def where(self) -> torch.device:
        """The device of its inputs and results."""
        return self._built.program.where

    def run(self, inputs: list[Any]) -> list[Any]:
        """As of LoadedProgram."""
        return self._built.program(inputs)


def save_with(
    compiled: FlatProgram,
    second: FlatProgram,
    name: str,
    place: tuple[str, str],
    path: str | Path,
    *,
    attach: Sequence[str | Path] = (),
    targets: Sequence[str | Target] = (),
    golden: bool | int = False,
    overwrite: bool = False,
) -> Path:
    """Compiled.save; the second program is an artifact of its own, a file `name` within that of
    `compiled`, which holds the digest of its manifest under about, at `place`."""
    both: dict[str, Any] = {"targets": targets, "golden": golden}
    with tempfile.TemporaryDirectory(prefix="infopt-") as folder:
        inside = second.save(Path(folder) / name, **both)
        text = read_manifest(inside).to_text()
        form, key = place
        compiled.about[form][key] = hashlib.sha256(text.encode()).hexdigest()
        return compiled.save(path, attach=[*attach, inside], overwrite=overwrite, **both)
