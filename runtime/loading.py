"""From a path to a program: everything is verified before anything of the artifact is used."""

from __future__ import annotations

import ctypes
import hashlib
import os
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from infopt.runtime import folder, signature_file, trust, weights
from infopt.runtime.artifact import EXECUTOR
from infopt.runtime.causal_lm import CausalLM, CausalSpec
from infopt.runtime.code import map_code
from infopt.runtime.errors import (
    ArtifactCorrupt,
    ArtifactError,
    ArtifactIncompatible,
    ArtifactUnsafe,
    ArtifactUntrusted,
    LibraryError,
    PlanError,
)
from infopt.runtime.executor import Program
from infopt.runtime.loaded import LoadedProgram
from infopt.runtime.manifest import GRAPH, NAME, WEIGHTS, Manifest, VariantEntry
from infopt.runtime.native import load_executor, typed_executor
from infopt.runtime.plan import AtenStep, Plan
from infopt.runtime.trust import NativeCodeRefused
from infopt.runtime.verdict import RUNS, choose

__all__ = ["LoadedProgram", "load", "read_manifest", "sign", "verify"]

_MAX_MANIFEST = 64 << 20
_MAX_FILE = 1 << 30  # of any file but the weights, which are mapped
_MAX_SIGNATURE = 16 << 20


def load(
    path: str | Path,
    *,
    threads: int | None = None,
    native: str = "same-owner",
    verify_with: str | Path | None = None,
    check: bool = False,
    allow_ops: Collection[str] = (),
) -> LoadedProgram | CausalLM:
    """Load an artifact after every byte of it was verified.

    What compile_causal_lm made comes back as a CausalLM.

    native: whose native code may run: "same-owner" (this user's or root's, or verified by a key),
    "signed" (only verified by a key), "any", "never". Code that may not run is not mapped: the
    program then runs by torch calls, slower, with a NativeCodeRefused warning and a note.
    verify_with: a PEM public key; the artifact must be signed by it.
    check: replay the golden calls stored in it.
    allow_ops: names or namespaces of torch ops permitted besides aten and prims.
    Raises ArtifactUnsafe, ArtifactTooNew, ArtifactCorrupt, ArtifactUntrusted, ArtifactIncompatible;
    before that, nothing of the artifact was run. GoldenMismatch if check fails.
    """
    program = load_program(
        path,
        threads=threads,
        native=native,
        verify_with=verify_with,
        check=check,
        allow_ops=allow_ops,
    )
    return _in_its_form(program)


def load_program(
    path: str | Path,
    *,
    threads: int | None = None,
    native: str = "same-owner",
    verify_with: str | Path | None = None,
    check: bool = False,
    allow_ops: Collection[str] = (),
) -> LoadedProgram:
    """As `load`, but always the program itself."""
    if native not in trust.POLICIES:
        raise ValueError(f"native: expected one of {trust.POLICIES}, found {native!r}")
    with _verified(Path(path), verify_with) as opened:
        entry, notes = _permitted(opened, native, verify_with is not None)
        program = _build(Path(path), opened, entry, notes, threads, allow_ops)
        if check:
            program.check_golden()
        return program


def verify(path: str | Path, *, verify_with: str | Path | None = None) -> Manifest:
    """Check every byte, and the signature where a PEM public key is given; runs nothing.

    Raises as `load` does.
    """
    with _verified(Path(path), verify_with) as opened:
        for entry in opened.manifest.programs:
            _plan_of(opened, entry.plan)
        _tensors_of(opened)
        return opened.manifest


def sign(path: str | Path, key: str | Path, *, password: bytes | None = None) -> Path:
    """Sign an artifact with a PEM private key: writes model.sig into it, after verifying it.

    Raises as `verify` does.
    """
    with _verified(Path(path), None) as opened:
        text = signature_file.write_bundle(Path(path).name, opened.digests(), Path(key), password)
    target = Path(path) / signature_file.NAME
    with folder.replaced(target) as temporary:
        temporary.write_text(text)
    return target


def read_manifest(path: str | Path) -> Manifest:
    """What an artifact says of itself, nothing else of it read. Raises ArtifactError."""
    root = _open_root(Path(path))
    try:
        return Manifest.from_text(_text_of(root, NAME, _MAX_MANIFEST)[0])
    finally:
        os.close(root)


@dataclass
class _Opened:
    """The files of an artifact, open. statuses: of files and folders, for judging the owner."""

    manifest: Manifest
    manifest_sha256: str
    files: Mapping[str, folder.OpenFile]
    statuses: dict[str, os.stat_result] = field(default_factory=dict)
    signature: str | None = None

    def digests(self) -> dict[str, str]:
        """sha256 of every file that a signature covers."""
        entries = self.manifest.files.items()
        return {NAME: self.manifest_sha256, **{name: f.sha256 for name, f in entries}}


@contextmanager
def _verified(path: Path, key: str | Path | None) -> Iterator[_Opened]:
    """Opened, every byte compared with its digest; errors name the path."""
    files: dict[str, folder.OpenFile] = {}
    try:
        opened = _open_all(path, files)
        manifest = opened.manifest
        for name, file in files.items():
            if file.size != manifest.files[name].size:
                raise ArtifactCorrupt(
                    f"{name}: expected {manifest.files[name].size} bytes, found {file.size}"
                )
            if file.size > _MAX_FILE and name != WEIGHTS:
                raise ArtifactCorrupt(f"{name}: {file.size} bytes, expected at most {_MAX_FILE}")
        if key is not None:
            if opened.signature is None:
                raise ArtifactUntrusted(f"expected a signature, found no {signature_file.NAME}")
            signature_file.check_bundle(opened.signature, opened.digests(), Path(key))
        chunks = {name: manifest.files[name].chunks for name in files}
        folder.verify(files, chunks, manifest.chunk)
        yield opened
    except ArtifactError as error:
        raise type(error)(f"{path}: {error}") from None
    finally:
        for file in files.values():
            file.close()


def _open_root(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        found = error.strerror
        raise ArtifactCorrupt(f"expected the folder of an artifact, found: {found}") from None


def _text_of(root: int, name: str, limit: int) -> tuple[str, os.stat_result]:
    file = folder.open_inside(root, name)
    try:
        if file.size > limit:
            raise ArtifactCorrupt(f"{name}: {file.size} bytes, expected at most {limit}")
        return bytes(file.data()).decode(), file.status
    except UnicodeDecodeError as error:
        raise ArtifactCorrupt(f"{name}: expected UTF-8 text, found: {error}") from None
    finally:
        file.close()


def _open_all(path: Path, files: dict[str, folder.OpenFile]) -> _Opened:
    """All files opened into `files`, exactly those that the manifest names, and a signature."""
    root = _open_root(path)
    statuses: dict[str, os.stat_result] = {}
    try:
        present = set(folder.files_inside(root, statuses)) - {NAME}
        text, statuses[NAME] = _text_of(root, NAME, _MAX_MANIFEST)
        manifest = Manifest.from_text(text)
        signature = None
        if signature_file.NAME in present:
            signature, _ = _text_of(root, signature_file.NAME, _MAX_SIGNATURE)
        if extra := sorted(present - set(manifest.files) - {signature_file.NAME}):
            raise ArtifactUnsafe(f"unexpected file {extra[0]}")
        for name in manifest.files:
            files[name] = file = folder.open_inside(root, name)
            statuses[name] = file.status
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        return _Opened(manifest, sha256, files, statuses, signature)
    finally:
        os.close(root)


def _permitted(opened: _Opened, native: str, signed: bool) -> tuple[VariantEntry, list[str]]:
    """The program to run, and why it is not the best one. Raises ArtifactUnsafe where the best
    may not run and there is no reference."""
    verdict = choose(opened.manifest)
    entry, notes = verdict.entry, []
    reason = trust.refusal(native, signed, opened.statuses.items()) if entry.libraries else None
    if reason is not None:
        reference = opened.manifest.reference
        if reference is None:
            raise ArtifactUnsafe(f"native code is refused, and it has nothing else: {reason}")
        notes.append(f"its native code is not used, torch calls compute everything: {reason}")
        if native != "never":
            warnings.warn(notes[0], NativeCodeRefused, stacklevel=4)
        return reference, notes
    if verdict.answer != RUNS:
        notes.append(verdict.reason)
    return entry, notes


def _varies_with_batch(manifest: Manifest, plan: Plan) -> str | None:
    """Why a row's result may depend on its batch although the artifact was made so that it does
    not, or None."""
    ops = sorted({step.op for step in plan.steps if isinstance(step, AtenStep)})
    if not manifest.batch_invariant or not ops:
        return None
    listed = ", ".join(ops[:5]) + (", ..." if len(ops) > 5 else "")
    return f"batch_invariant does not cover what torch runs: {listed}"


def _plan_of(opened: _Opened, name: str) -> Plan:
    try:
        return Plan.from_json(bytes(opened.files[name].data()).decode())
    except (PlanError, UnicodeDecodeError) as error:
        raise ArtifactCorrupt(f"{name}: {error}") from None


def _tensors_of(opened: _Opened) -> list[torch.Tensor]:
    memory = torch.frombuffer(opened.files[WEIGHTS].data(), dtype=torch.uint8)
    try:
        return weights.read(memory, opened.manifest.tensors)
    except PlanError as error:
        raise ArtifactCorrupt(str(error)) from None


def _build(
    path: Path,
    opened: _Opened,
    entry: VariantEntry,
    notes: list[str],
    threads: int | None,
    allow_ops: Collection[str],
) -> LoadedProgram:
    manifest, files = opened.manifest, opened.files
    plan = _plan_of(opened, entry.plan)
    try:
        graph_text = bytes(files[GRAPH].data()).decode()
    except UnicodeDecodeError as error:
        raise ArtifactCorrupt(f"{GRAPH}: {error}") from None
    fits = len(plan.inputs) == len(manifest.inputs)
    if not fits or not set(plan.libraries) <= set(entry.libraries):
        raise ArtifactCorrupt(f"{entry.plan}: does not fit the manifest")
    recompute = manifest.weights.plan if manifest.weights is not None else None
    weights_plan = _plan_of(opened, recompute) if recompute is not None else None
    if weights_plan is not None and weights_plan.libraries:
        raise ArtifactCorrupt(f"{recompute}: expected torch calls alone")
    if reason := _varies_with_batch(manifest, plan):
        notes.append(reason)
    tensors = _tensors_of(opened)
    libraries = {
        name: map_code(name, bytes(files[file].data()))
        for name, file in entry.libraries.items()
        if name != EXECUTOR
    }
    executor = _executor(entry, files) if plan.libraries else None

    def make(constants: Sequence[torch.Tensor]) -> Program:
        return Program(plan, constants, libraries, threads, allow_ops=allow_ops, executor=executor)

    return LoadedProgram(path, manifest, entry, tensors, make, graph_text, weights_plan, notes)


def _in_its_form(program: LoadedProgram) -> LoadedProgram | CausalLM:
    about = program.manifest.about
    if not isinstance(about, Mapping) or "causal_lm" not in about:
        return program
    try:
        return CausalLM(CausalSpec.from_json(about["causal_lm"]), program)
    except (KeyError, TypeError) as error:
        raise ArtifactCorrupt(f"{NAME}: about.causal_lm: {error!r}") from None


def _executor(entry: VariantEntry, files: Mapping[str, folder.OpenFile]) -> ctypes.CDLL:
    """The installed executor, or the artifact's own where none is installed."""
    try:
        return load_executor()
    except LibraryError as error:
        if EXECUTOR not in entry.libraries:
            raise ArtifactIncompatible(str(error)) from None
        code = bytes(files[entry.libraries[EXECUTOR]].data())
        return typed_executor(map_code(EXECUTOR, code), entry.libraries[EXECUTOR])
