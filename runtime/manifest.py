"""manifest.json: all an artifact says about itself, protected by a digest of its own text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infopt.runtime import structure
from infopt.runtime.cpu import LEVELS
from infopt.runtime.errors import ArtifactCorrupt, ArtifactTooNew, PlanError
from infopt.runtime.folder import check_name
from infopt.runtime.records import load_json, read_json, write_json
from infopt.runtime.signature import Signature
from infopt.runtime.weights import Stored

FORMAT = 1
ABI = 1  # of the C interface between plans and kernels
NAME = "manifest.json"
WEIGHTS = "weights.safetensors"
GRAPH = "graph.txt"


@dataclass(frozen=True)
class FileEntry:
    """chunks: sha256 of every 8 MiB, what the loader verifies; sha256: of the whole file."""

    size: int
    sha256: str
    chunks: tuple[str, ...]


@dataclass(frozen=True)
class DimRange:
    """A named size of the inputs and its range; hi None: no upper limit."""

    name: str
    lo: int
    hi: int | None


@dataclass(frozen=True)
class Source:
    """Where a program input comes from: leaf of the arguments, or a tensor the artifact keeps."""

    leaf: int | None = None
    state: int | None = None


@dataclass(frozen=True)
class VariantEntry:
    """A program for one instruction-set level. constants: indices into the manifest's tensors."""

    level: str
    arch: str  # "any" when it needs no library
    system: str
    features: tuple[str, ...]
    plan: str
    libraries: Mapping[str, str]
    constants: tuple[int, ...]


@dataclass(frozen=True)
class Manifest:
    """Everything but the files. passes, about: what the compiler reported, for people."""

    versions: Mapping[str, str]
    abi: int
    signature: Signature
    inputs: tuple[Source, ...]
    outputs: Any
    dims: tuple[DimRange, ...]
    variants: tuple[VariantEntry, ...]
    tensors: tuple[Stored, ...]
    state: tuple[int, ...]
    passes: Any
    about: Any
    files: Mapping[str, FileEntry]

    def to_text(self) -> str:
        """The file's text, the digest of the rest in it."""
        fields = json.loads(write_json(self, FORMAT))
        return _render({**fields, "digest": _digest(fields)})

    @staticmethod
    def from_text(text: str) -> Manifest:
        """Raises ArtifactTooNew, ArtifactUnsafe for odd file names, ArtifactCorrupt."""
        try:
            fields = load_json(text)
        except PlanError as error:
            raise ArtifactCorrupt(f"{NAME}: {error}") from None
        if not isinstance(fields, dict):
            raise ArtifactCorrupt(f"{NAME}: expected a JSON object")
        version = fields.get("format")
        if type(version) is int and version > FORMAT:
            raise ArtifactTooNew(
                f"{NAME}: expected format {FORMAT} or older, found {version}; "
                "install a newer infopt"
            )
        digest = fields.pop("digest", None)
        if digest != _digest(fields) or text != _render({**fields, "digest": digest}):
            raise ArtifactCorrupt(
                f"{NAME}: the content was changed: expected sha256 {digest}, "
                f"found {_digest(fields)}"
            )
        try:
            manifest = read_json(json.dumps(fields), Manifest, FORMAT)
        except PlanError as error:
            raise ArtifactCorrupt(f"{NAME}: {error}") from None
        manifest._check()
        return manifest

    def _check(self) -> None:
        for name in self.files:
            check_name(name)
        used = [WEIGHTS, GRAPH]
        for variant in self.variants:
            used += [variant.plan, *variant.libraries.values()]
            if variant.level not in LEVELS:
                raise ArtifactCorrupt(f"{NAME}: unknown level {variant.level!r}")
            _in_range(variant.constants, len(self.tensors), "constants")
        if set(used) != set(self.files):
            odd = sorted(set(used) ^ set(self.files))[0]
            raise ArtifactCorrupt(f"{NAME}: {odd!r} is listed but not used, or used but not listed")
        _in_range(self.state, len(self.tensors), "state")
        for i, source in enumerate(self.inputs):
            if (source.leaf is None) == (source.state is None):
                raise ArtifactCorrupt(f"{NAME}: inputs[{i}]: expected either a leaf or a state")
        for parameter in self.signature.parameters:
            structure.check(parameter.structure, f"{NAME}: argument {parameter.name!r}")
        structure.check(self.outputs, f"{NAME}: outputs")
        _in_range(
            [s.leaf for s in self.inputs if s.leaf is not None], self.signature.leaf_count, "inputs"
        )
        _in_range([s.state for s in self.inputs if s.state is not None], len(self.state), "inputs")


def _in_range(values: Any, limit: int, what: str) -> None:
    if not all(0 <= v < limit for v in values):
        raise ArtifactCorrupt(f"{NAME}: {what}: expected numbers below {limit}, found {values}")


def _digest(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(_render(fields).encode()).hexdigest()


def _render(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, indent=1, sort_keys=True) + "\n"
