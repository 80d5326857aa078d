"""An artifact: a folder that a machine without a compiler can check, load and call.

manifest.json          what it is, with size and sha256 of every other file
weights.safetensors    memory-mapped, tensors 64-byte aligned
plans/<level>.json     the plan for one instruction-set level
kernels/<level>/*.so   its native kernels
graph.txt              the final graph, for people
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from infopt.runtime import folder, weights
from infopt.runtime.code import POLICIES, check_policy, map_code
from infopt.runtime.cpu import FEATURES, LEVELS, detect, missing
from infopt.runtime.errors import (
    ArtifactCorrupt,
    ArtifactError,
    ArtifactIncompatible,
    ArtifactUnsafe,
    LibraryError,
    PlanError,
)
from infopt.runtime.executor import Program
from infopt.runtime.manifest import (
    ABI,
    GRAPH,
    NAME,
    WEIGHTS,
    DimRange,
    Manifest,
    Source,
    VariantEntry,
)
from infopt.runtime.native import load_executor, typed_executor
from infopt.runtime.plan import Plan
from infopt.runtime.records import freeze
from infopt.runtime.signature import Parameter, Signature
from infopt.runtime.structure import Structure, builder

__all__ = ["Artifact", "LoadedProgram", "Parameter", "Signature", "Source", "Variant", "load"]

EXECUTOR = "executor"  # a library of this name is used where the executor is not installed
_MAX_MANIFEST = 256 << 20


@dataclass(frozen=True)
class Variant:
    """The program for one level of cpu.LEVELS; libraries: the files, by the plan's names."""

    level: str
    plan: Plan
    constants: Sequence[torch.Tensor] = ()
    libraries: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Artifact:
    """What is saved.

    inputs: where each plan input comes from. outputs: a structure over the plan's outputs.
    state: tensors the program writes, for inputs with `Source(state=i)`. passes, about, versions:
    JSON for people and tools.
    """

    signature: Signature
    inputs: Sequence[Source]
    outputs: Structure
    variants: Sequence[Variant]
    state: Sequence[torch.Tensor] = ()
    graph_text: str = ""
    passes: Any = ()
    about: Any = None
    versions: Mapping[str, str] = field(default_factory=dict)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the folder `path`: all of it or nothing. Raises FileExistsError, PlanError."""
        target = Path(os.path.abspath(path))
        tensors = [*self.state, *(x for v in self.variants for x in v.constants)]
        kept, stored = weights.unique(tensors)
        with folder.NewFolder(target, overwrite, NAME) as temporary:
            files = {
                WEIGHTS: folder.write_file(temporary / WEIGHTS, weights.file_parts(kept)),
                GRAPH: folder.write_file(temporary / GRAPH, [self.graph_text.encode()]),
            }
            entries, first = [], len(self.state)
            for variant in self.variants:
                entry = _entry(variant, first)
                first += len(variant.constants)
                entries.append(entry)
                plan = variant.plan.to_json().encode()
                files[entry.plan] = folder.write_file(temporary / entry.plan, [plan])
                for name, file in entry.libraries.items():
                    code = Path(variant.libraries[name]).read_bytes()
                    files[file] = folder.write_file(temporary / file, [code])
            text = self._manifest(entries, stored, files).to_text()
            Manifest.from_text(text)  # what cannot be read again is not written
            folder.write_file(temporary / NAME, [text.encode()])
        return target

    def _manifest(
        self, entries: list[VariantEntry], stored: list[weights.Stored], files: dict[str, Any]
    ) -> Manifest:
        dims = self.variants[0].plan.dims
        versions = {"torch": torch.__version__, "python": platform.python_version()}
        return Manifest(
            versions={**versions, **self.versions},
            abi=ABI,
            signature=self.signature,
            inputs=tuple(self.inputs),
            outputs=self.outputs,
            dims=tuple(DimRange(d.name, d.lo, d.hi) for d in dims if not d.counted),
            variants=tuple(entries),
            tensors=tuple(stored),
            state=tuple(range(len(self.state))),
            passes=freeze(self.passes),
            about=freeze(self.about),
            files=files,
        )


def _entry(variant: Variant, first_constant: int) -> VariantEntry:
    level, native = variant.level, bool(variant.libraries)
    if level not in LEVELS:
        raise PlanError(f"expected a level of {LEVELS}, found {level!r}")
    if lacking := set(variant.plan.libraries) - set(variant.libraries):
        raise PlanError(f"the plan for {level} needs the libraries {sorted(lacking)}")
    return VariantEntry(
        level=level,
        arch=detect().arch if native else "any",
        system=sys.platform if native else "any",
        features=FEATURES[level],
        plan=f"plans/{level}.json",
        libraries={name: f"kernels/{level}/{name}.so" for name in sorted(variant.libraries)},
        constants=tuple(range(first_constant, first_constant + len(variant.constants))),
    )


class LoadedProgram:
    """A loaded artifact: call it as the model was called.

    manifest: what the artifact says of itself. level: the instruction-set level that runs.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        level: str,
        program: Program,
        state: list[torch.Tensor],
        graph_text: str,
    ) -> None:
        self.path, self.manifest, self.level, self.program = path, manifest, level, program
        self.graph_text = graph_text
        self._state = state
        self._sources = [(s.state is None, s.leaf or s.state or 0) for s in manifest.inputs]
        self._rebuild = builder(manifest.outputs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Raises InputMismatch naming the argument that does not fit."""
        flat = self.manifest.signature.bind(args, kwargs)
        inputs = [flat[i] if is_leaf else self._state[i] for is_leaf, i in self._sources]
        return self._rebuild(self.program(inputs))

    def __repr__(self) -> str:
        return f"<infopt.LoadedProgram {self.path.name} for {self.level}>"


def load(
    path: str | Path,
    *,
    threads: int | None = None,
    native: str = "same-owner",
    allow_ops: Collection[str] = (),
) -> LoadedProgram:
    """Load an artifact after every byte of it was verified.

    native: whose native code may run: "same-owner" (this user's or root's), "any", "never".
    allow_ops: names or namespaces of torch ops permitted besides aten and prims.
    Raises ArtifactUnsafe, ArtifactTooNew, ArtifactCorrupt, ArtifactIncompatible; before that,
    nothing of the artifact was run.
    """
    if native not in POLICIES:
        raise ValueError(f"native: expected one of {POLICIES}, found {native!r}")
    files: dict[str, folder.OpenFile] = {}
    try:
        manifest = _open_all(Path(path), files)
        entry = choose(manifest)
        for name, file in files.items():
            if file.size != manifest.files[name].size:
                raise ArtifactCorrupt(
                    f"{name}: expected {manifest.files[name].size} bytes, found {file.size}"
                )
        folder.verify(files, {name: list(manifest.files[name].chunks) for name in files})
        return _build(Path(path), manifest, entry, files, threads, native, allow_ops)
    except ArtifactError as error:
        raise type(error)(f"{path}: {error}") from None
    finally:
        for file in files.values():
            file.close()


def read_manifest(path: str | Path) -> Manifest:
    """What an artifact says of itself, nothing else of it read. Raises ArtifactError."""
    root = _open_root(Path(path))
    try:
        return _manifest_of(root)
    finally:
        os.close(root)


def _open_root(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        found = error.strerror
        raise ArtifactCorrupt(f"expected the folder of an artifact, found: {found}") from None


def _manifest_of(root: int) -> Manifest:
    file = folder.open_inside(root, NAME)
    try:
        if file.size > _MAX_MANIFEST:
            raise ArtifactCorrupt(f"{NAME}: {file.size} bytes are more than any manifest has")
        text = bytes(file.data()).decode()
    except UnicodeDecodeError as error:
        raise ArtifactCorrupt(f"{NAME}: expected UTF-8 text, found: {error}") from None
    finally:
        file.close()
    return Manifest.from_text(text)


def _open_all(path: Path, files: dict[str, folder.OpenFile]) -> Manifest:
    """The manifest; all other files opened into `files`, exactly those that it names."""
    root = _open_root(path)
    try:
        present = set(folder.files_inside(root)) - {NAME}
        manifest = _manifest_of(root)
        if extra := sorted(present - set(manifest.files)):
            raise ArtifactUnsafe(f"unexpected file {extra[0]}")
        for name in manifest.files:
            files[name] = folder.open_inside(root, name)
        return manifest
    finally:
        os.close(root)


def choose(manifest: Manifest) -> VariantEntry:
    """The most capable variant this machine can run. Raises ArtifactIncompatible."""
    if manifest.abi != ABI:
        raise ArtifactIncompatible(f"expected kernel interface {ABI}, found {manifest.abi}")
    cpu, reasons = detect(), []
    for variant in sorted(manifest.variants, key=lambda v: LEVELS.index(v.level), reverse=True):
        lacks = missing(variant.features, cpu.features) if variant.libraries else ()
        if variant.arch not in ("any", cpu.arch) or variant.system not in ("any", sys.platform):
            reasons.append(f"{variant.level} needs {variant.system} on {variant.arch}")
        elif lacks:
            reasons.append(f"{variant.level} needs {', '.join(lacks)}")
        else:
            return variant
    raise ArtifactIncompatible(
        f"it has no program for this machine ({sys.platform} on {cpu.arch}, level {cpu.level}): "
        + ("; ".join(reasons) or "it has none at all")
    )


def _build(
    path: Path,
    manifest: Manifest,
    entry: VariantEntry,
    files: dict[str, folder.OpenFile],
    threads: int | None,
    native: str,
    allow_ops: Collection[str],
) -> LoadedProgram:
    try:
        plan = Plan.from_json(bytes(files[entry.plan].data()).decode())
        graph_text = bytes(files[GRAPH].data()).decode()
    except (PlanError, UnicodeDecodeError) as error:
        raise ArtifactCorrupt(f"{entry.plan}: {error}") from None
    if len(plan.inputs) != len(manifest.inputs) or not set(plan.libraries) <= set(entry.libraries):
        raise ArtifactCorrupt(f"{entry.plan}: does not fit the manifest")
    memory = torch.frombuffer(files[WEIGHTS].data(), dtype=torch.uint8)
    try:
        tensors = weights.read(memory, manifest.tensors)
    except PlanError as error:
        raise ArtifactCorrupt(str(error)) from None
    for file in entry.libraries.values():
        check_policy(native, file, files[file].owner)
    libraries = {
        name: map_code(name, bytes(files[file].data()))
        for name, file in entry.libraries.items()
        if name != EXECUTOR
    }
    executor = _executor(entry, files) if plan.libraries else None
    program = Program(
        plan,
        [tensors[i] for i in entry.constants],
        libraries,
        threads,
        allow_ops=allow_ops,
        executor=executor,
    )
    state = [tensors[i].clone() for i in manifest.state]
    return LoadedProgram(path, manifest, entry.level, program, state, graph_text)


def _executor(entry: VariantEntry, files: dict[str, folder.OpenFile]) -> ctypes.CDLL:
    """The installed executor, or the artifact's own where none is installed."""
    try:
        return load_executor()
    except LibraryError as error:
        if EXECUTOR not in entry.libraries:
            raise ArtifactIncompatible(str(error)) from None
        code = bytes(files[entry.libraries[EXECUTOR]].data())
        return typed_executor(map_code(EXECUTOR, code), entry.libraries[EXECUTOR])
