"""From a path to a program: everything is verified before anything of the artifact is used."""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from infopt.runtime import folder, packed, signature_file, trust, weights
from infopt.runtime.adapters import Room
from infopt.runtime.artifact import EXECUTOR
from infopt.runtime.code import map_code
from infopt.runtime.decoding.causal_lm import CausalLM
from infopt.runtime.decoding.compaction import FILTER
from infopt.runtime.decoding.spec import CausalSpec
from infopt.runtime.device import Device
from infopt.runtime.errors import (
    ArtifactCorrupt,
    ArtifactIncompatible,
    ArtifactUnsafe,
    LibraryError,
    PlanError,
)
from infopt.runtime.executor import Program
from infopt.runtime.loaded import LoadedProgram
from infopt.runtime.manifest import GRAPH, NAME, WEIGHTS, Manifest, VariantEntry
from infopt.runtime.native import load_executor, typed_executor
from infopt.runtime.opened import Opened, manifest_of, verified
from infopt.runtime.parts import Parts
from infopt.runtime.placing import Place, choose_for, device_of, maker_on
from infopt.runtime.plan import AtenStep, Plan
from infopt.runtime.stream import ENDING, Stream, StreamSpec
from infopt.runtime.trust import NativeCodeRefused
from infopt.runtime.verdict import RUNS, Verdict

__all__ = ["LoadedProgram", "load", "read_manifest", "sign", "verify"]


def load(
    path: str | Path,
    *,
    threads: int | None = None,
    native: str = "same-owner",
    verify_with: str | Path | None = None,
    check: bool = False,
    allow_ops: Collection[str] = (),
    device: Place = None,
    cuda_graphs: bool = False,
) -> LoadedProgram | CausalLM | Stream:
    """Load an artifact, a folder or one file, after every byte of it was verified.

    What compile_causal_lm made comes back as a CausalLM, what compile_stream made as a Stream.

    native: whose native code may run: "same-owner" (this user's or root's, or verified by a key),
    "signed" (only verified by a key), "any", "never". Code that may not run is not mapped: the
    program then runs by torch calls, slower, with a NativeCodeRefused warning and a note.
    verify_with: a PEM public key; the artifact must be signed by it.
    check: replay the golden calls stored in it.
    allow_ops: names or namespaces of torch ops permitted besides aten and prims.
    device: "cpu", or a GPU such as "cuda:1"; None: a GPU where the artifact has a program for one
    that is here, else the processor. cuda_graphs: capture and replay runs there (recording.py).
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
        device=device,
        cuda_graphs=cuda_graphs,
    )
    form = _in_its_form(program)
    if isinstance(form, CausalLM) and form.spec.compact is not None:
        form.filter = _second(program, ("causal_lm", "filter"), FILTER, threads, check, allow_ops)
    if isinstance(form, Stream) and form.spec.rest > 0:
        form.ending = _second(program, ("stream", "ending"), ENDING, threads, check, allow_ops)
    return form


def load_program(
    path: str | Path,
    *,
    threads: int | None = None,
    native: str = "same-owner",
    verify_with: str | Path | None = None,
    check: bool = False,
    allow_ops: Collection[str] = (),
    device: Place = None,
    cuda_graphs: bool = False,
    manifest_sha256: str | None = None,
) -> LoadedProgram:
    """As `load`, but always the program itself; with manifest_sha256 only that one."""
    if native not in trust.POLICIES:
        raise ValueError(f"native: expected one of {trust.POLICIES}, found {native!r}")
    with verified(Path(path), verify_with) as opened:
        if manifest_sha256 not in (None, opened.manifest_sha256):
            raise ArtifactCorrupt(
                f"{NAME}: expected sha256 {manifest_sha256}, found {opened.manifest_sha256}"
            )
        verdict = choose_for(opened.manifest, device)
        entry, notes = _permitted(opened, verdict, native, verify_with is not None)
        gpu = device_of(verdict, entry, device)
        program = _build(Path(path), opened, entry, notes, threads, allow_ops, gpu, cuda_graphs)
        if check:
            program.check_golden()
        return program


def verify(path: str | Path, *, verify_with: str | Path | None = None) -> Manifest:
    """Check every byte, and the signature where a PEM public key is given; runs nothing.

    Raises as `load` does.
    """
    with verified(Path(path), verify_with) as opened:
        for entry in opened.manifest.programs:
            _plan_of(opened, entry.plan)
        _tensors_of(opened)
        return opened.manifest


def read_plan(path: str | Path, entry: VariantEntry) -> Plan:
    """The plan of one program, after every byte of the artifact was verified. Raises as `load`."""
    with verified(Path(path), None) as opened:
        return _plan_of(opened, entry.plan)


def sign(path: str | Path, key: str | Path, *, password: bytes | None = None) -> Path:
    """Sign an artifact with a PEM private key, after verifying it: writes model.sig into the
    folder, or the file again with it in it. What was written is returned. Raises as `verify` does.
    """
    with verified(Path(path), None) as opened:
        text = signature_file.write_bundle(Path(path).name, opened.digests(), Path(key), password)
    if not Path(path).is_dir():
        packed.with_member(Path(path), signature_file.NAME, text)
        return Path(path)
    target = Path(path) / signature_file.NAME
    with folder.replaced(target) as temporary:
        temporary.write_text(text)
    return target


def read_manifest(path: str | Path) -> Manifest:
    """What an artifact says of itself, nothing else of it read. Raises ArtifactError."""
    return manifest_of(Path(path))


def _permitted(
    opened: Opened, verdict: Verdict, native: str, signed: bool
) -> tuple[VariantEntry, list[str]]:
    """The program to run, and why it is not the best one. Raises ArtifactUnsafe where the best
    may not run and there is no reference."""
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


def _plan_of(opened: Opened, name: str) -> Plan:
    try:
        return Plan.from_json(bytes(opened.content(name)).decode())
    except (PlanError, UnicodeDecodeError) as error:
        raise ArtifactCorrupt(f"{name}: {error}") from None


def _tensors_of(opened: Opened) -> list[torch.Tensor]:
    """Tensors over the weights, of which only the header is read."""
    memory = torch.frombuffer(opened.memory(WEIGHTS), dtype=torch.uint8)
    try:
        return weights.read(memory, opened.manifest.tensors, partial(opened.part, WEIGHTS))
    except PlanError as error:
        raise ArtifactCorrupt(str(error)) from None


def _build(
    path: Path,
    opened: Opened,
    entry: VariantEntry,
    notes: list[str],
    threads: int | None,
    allow_ops: Collection[str],
    gpu: Device | None,
    cuda_graphs: bool,
) -> LoadedProgram:
    manifest = opened.manifest
    plan = _plan_of(opened, entry.plan)
    try:
        graph_text = bytes(opened.content(GRAPH)).decode()
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
    parts, room = _parts_of(manifest, plan), _room_of(manifest, entry)
    tensors = _tensors_of(opened)
    code = {name: bytes(opened.content(file)) for name, file in entry.libraries.items()}
    opened.check_all()  # no code of the artifact runs before, and no weight is read
    if room is not None:  # the file is not written to
        banks = room[0].constants
        for name, index in zip(entry.names, entry.constants, strict=True):
            if name in banks:
                tensors[index] = tensors[index].clone()
    if gpu is not None:
        on_gpu = maker_on(gpu, plan, code, allow_ops, cuda_graphs)
        return LoadedProgram(
            path, manifest, entry, tensors, on_gpu, graph_text, weights_plan, notes, parts, room
        )
    libraries = {name: map_code(name, own) for name, own in code.items() if name != EXECUTOR}
    executor = _executor(entry, code) if plan.libraries else None

    def make(constants: Sequence[torch.Tensor]) -> Program:
        return Program(plan, constants, libraries, threads, allow_ops=allow_ops, executor=executor)

    return LoadedProgram(
        path, manifest, entry, tensors, make, graph_text, weights_plan, notes, parts, room
    )


def _parts_of(manifest: Manifest, plan: Plan) -> Parts | None:
    if not isinstance(manifest.about, Mapping) or "parts" not in manifest.about:
        return None
    try:
        return Parts.from_json(manifest.about["parts"], plan)
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactCorrupt(f"{NAME}: about.parts: {error!r}") from None


def _room_of(manifest: Manifest, entry: VariantEntry) -> tuple[Room, dict[str, int]] | None:
    """The room for adapters that a program has, and in which slot those that are saved lie."""
    if not isinstance(manifest.about, Mapping) or "adapters" not in manifest.about:
        return None
    record = manifest.about["adapters"]
    try:
        room = Room.from_json(record)
        loaded = {str(name): int(slot) for name, slot in record["loaded"]}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArtifactCorrupt(f"{NAME}: about.adapters: {error!r}") from None
    slots = set(loaded.values())
    fits = len(slots) == len(loaded) and all(0 <= slot < room.slots for slot in slots)
    leaves = manifest.signature.leaf_count
    fits = fits and 0 <= room.leaf < leaves and 0 <= room.batch < leaves
    fits = fits and len(entry.names) == len(entry.constants)
    if not fits or not room.constants <= set(entry.names):
        raise ArtifactCorrupt(f"{NAME}: about.adapters: does not fit the manifest")
    return room, loaded


def _in_its_form(program: LoadedProgram) -> LoadedProgram | CausalLM | Stream:
    about = program.manifest.about
    name = ""
    try:
        if isinstance(about, Mapping) and (name := "causal_lm") in about:
            return CausalLM(CausalSpec.from_json(about[name]), program)
        if isinstance(about, Mapping) and (name := "stream") in about:
            return Stream(StreamSpec.from_json(about[name]), program)
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactCorrupt(f"{NAME}: about.{name}: {error!r}") from None
    return program


def _second(
    program: LoadedProgram,
    place: tuple[str, str],
    file: str,
    threads: int | None,
    check: bool,
    allow_ops: Collection[str],
) -> LoadedProgram:
    """A second program of a form, an artifact within the artifact. That one's manifest names its
    manifest, so its code may run where that one's may."""
    form, key = place
    try:
        path, digest = program.attached(file), str(program.manifest.about[form][key])
    except KeyError as error:
        raise ArtifactCorrupt(f"{NAME}: about.{form}: {error!r}") from None
    native = "any" if program.is_native else "never"
    return load_program(
        path,
        threads=threads,
        native=native,
        check=check,
        allow_ops=allow_ops,
        device="cpu",
        manifest_sha256=digest,
    )


def _executor(entry: VariantEntry, code: Mapping[str, bytes]) -> ctypes.CDLL:
    """The installed executor, or the artifact's own where none is installed."""
    try:
        return load_executor()
    except LibraryError as error:
        if EXECUTOR not in code:
            raise ArtifactIncompatible(str(error)) from None
        return typed_executor(map_code(EXECUTOR, code[EXECUTOR]), entry.libraries[EXECUTOR])
