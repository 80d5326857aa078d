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
from infopt.runtime.gpu_levels import GPU_LEVELS
from infopt.runtime.records import load_json, read_json, write_json
from infopt.runtime.signature import Signature
from infopt.runtime.weights import FILE as WEIGHTS
from infopt.runtime.weights import Stored

FORMAT = 2
ABI = 1  # of the C interface between plans and kernels
NAME = "manifest.json"
ATTACHED = "attached/"  # files that travel along and are never read: a tokenizer's
GRAPH = "graph.txt"


@dataclass(frozen=True)
class FileEntry:
    """chunks: sha256 of every `Manifest.chunk` bytes, what the loader verifies; sha256: of the
    whole file, what a signature is for."""

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
    """A program for one instruction-set level, or one architecture of GPUs.

    constants: indices into the manifest's tensors; names: what the graph calls them.
    """

    level: str
    arch: str  # "any" when it needs no library
    system: str
    features: tuple[str, ...]
    plan: str
    libraries: Mapping[str, str]
    constants: tuple[int, ...]
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class GoldenCase:
    """One call and its result: {"tensor": i} of the manifest's tensors, or a scalar, for every
    leaf of the arguments and every flat output. limits: relative RMS error each output may
    have, None for that of infopt.runtime.golden.LIMITS."""

    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    limits: tuple[float | None, ...]


@dataclass(frozen=True)
class WeightType:
    """A parameter or buffer of the model. sha256: of its bytes where its values may not change,
    because rewrites may rest on them (integers, flags and single numbers)."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str | None = None


@dataclass(frozen=True)
class WeightsEntry:
    """How the constants come from the model's parameters and buffers, so that these can be swapped.

    parameters: all of them by their names in the model. aliases: other names of the same memory.
    direct: constant -> the parameter it is. plan: computes the constants `made` from the
    parameters `made_from`. fixed: a constant of unknown origin -> what is known of it.
    states: parameter -> index into the manifest's state.
    """

    parameters: Mapping[str, WeightType]
    aliases: Mapping[str, str]
    direct: Mapping[str, str]
    plan: str | None
    made: tuple[str, ...]
    made_from: tuple[str, ...]
    fixed: Mapping[str, str]
    states: Mapping[str, int]


@dataclass(frozen=True)
class Manifest:
    """Everything but the files. passes, about: what the compiler reported, for people.

    reference: the program in torch calls alone, for where no native code may or can run.
    batch_invariant: a row's result was asked to depend on that row alone, in native kernels.
    chunk: bytes of a file that are hashed as one piece.
    """

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
    reference: VariantEntry | None = None
    golden: tuple[GoldenCase, ...] = ()
    weights: WeightsEntry | None = None
    batch_invariant: bool = False
    chunk: int = 8 << 20  # of format 1, which does not say it

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
        if type(version) is not int or version < 1:
            raise ArtifactCorrupt(f"{NAME}: expected a format from 1 to {FORMAT}, found {version}")
        if version > FORMAT:
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
            manifest = read_json(json.dumps(fields), Manifest, version)
        except PlanError as error:
            raise ArtifactCorrupt(f"{NAME}: {error}") from None
        manifest._check()
        return manifest

    @property
    def programs(self) -> tuple[VariantEntry, ...]:
        """All variants and the reference."""
        return (*self.variants, *([self.reference] if self.reference else []))

    def _check(self) -> None:
        if not 1 << 16 <= self.chunk <= 1 << 26:
            raise ArtifactCorrupt(f"{NAME}: chunk: expected 64 KiB to 64 MiB, found {self.chunk}")
        for name, file in self.files.items():
            check_name(name)
            if len(file.chunks) == 1 and file.chunks[0] != file.sha256:
                raise ArtifactCorrupt(f"{NAME}: {name}: its digest and that of its chunk differ")
        used = [WEIGHTS, GRAPH]
        for variant in self.programs:
            used += [variant.plan, *variant.libraries.values()]
            if variant.level not in (*LEVELS, *GPU_LEVELS):
                raise ArtifactCorrupt(f"{NAME}: unknown level {variant.level!r}")
            _in_range(variant.constants, len(self.tensors), "constants")
            if variant.names and len(variant.names) != len(variant.constants):
                raise ArtifactCorrupt(f"{NAME}: {variant.level}: not every constant has a name")
        if self.reference is not None and self.reference.libraries:
            raise ArtifactCorrupt(f"{NAME}: the reference program has native libraries")
        if self.weights is not None and self.weights.plan is not None:
            used.append(self.weights.plan)
        used += [name for name in self.files if name.startswith(ATTACHED)]
        if len(set(used)) != len(used) or set(used) != set(self.files):
            odd = sorted({n for n in used if used.count(n) > 1} or set(used) ^ set(self.files))[0]
            raise ArtifactCorrupt(
                f"{NAME}: {odd!r} is listed but not used, used but not listed, or used twice"
            )
        _in_range(self.state, len(self.tensors), "state")
        for i, source in enumerate(self.inputs):
            if (source.leaf is None) == (source.state is None):
                raise ArtifactCorrupt(f"{NAME}: inputs[{i}]: expected either a leaf or a state")
        for parameter in self.signature.parameters:
            structure.check(parameter.structure, f"{NAME}: argument {parameter.name!r}")
        structure.check(self.outputs, f"{NAME}: outputs")
        leaves = self.signature.leaf_count
        _in_range([s.leaf for s in self.inputs if s.leaf is not None], leaves, "inputs")
        _in_range([s.state for s in self.inputs if s.state is not None], len(self.state), "inputs")
        for i, case in enumerate(self.golden):
            self._check_golden(case, f"{NAME}: golden[{i}]")
        if self.weights is not None:
            _in_range(self.weights.states.values(), len(self.state), "weights.states")

    def _check_golden(self, case: GoldenCase, place: str) -> None:
        if len(case.inputs) != self.signature.leaf_count:
            raise ArtifactCorrupt(f"{place}: expected {self.signature.leaf_count} inputs")
        if len(case.limits) != len(case.outputs):
            raise ArtifactCorrupt(f"{place}: expected a limit for every output")
        for value in (*case.inputs, *case.outputs):
            index = value.get("tensor") if isinstance(value, Mapping) else None
            if set(value) == {"tensor"} if isinstance(value, Mapping) else False:
                if type(index) is not int:
                    raise ArtifactCorrupt(f"{place}: expected a number of a tensor")
                _in_range([index], len(self.tensors), place)
            elif not isinstance(value, (type(None), bool, int, float, str)) and not (
                isinstance(value, Mapping) and set(value) == {"float"}
            ):
                raise ArtifactCorrupt(f"{place}: expected a tensor or a scalar")


def _in_range(values: Any, limit: int, what: str) -> None:
    if not all(0 <= v < limit for v in values):
        raise ArtifactCorrupt(f"{NAME}: {what}: expected numbers below {limit}, found {values}")


def _digest(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(_render(fields).encode()).hexdigest()


def _render(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, indent=1, sort_keys=True) + "\n"
