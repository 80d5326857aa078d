"""An artifact: files that a machine without a compiler can check, load and call; a folder of them,
or one file with all of them in it (packed.py).

manifest.json          what it is, with size and sha256 of every other file
weights.safetensors    memory-mapped, tensors 64-byte aligned
plans/<level>.json     the plan for one instruction-set level; plans/reference.json: torch calls
plans/weights.json     how folded constants come from the model's parameters
kernels/<level>/*.so   its native kernels; *.cubin and *.hsaco those of GPUs
graph.txt              the final graph, for people
model.sig              a signature, see signature_file.py
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from infopt.runtime import folder, packed
from infopt.runtime.cpu import FEATURES, LEVELS, detect
from infopt.runtime.errors import PlanError
from infopt.runtime.gpu_levels import GPU_LEVELS
from infopt.runtime.manifest import (
    ABI,
    ATTACHED,
    GRAPH,
    NAME,
    WEIGHTS,
    DimRange,
    GoldenCase,
    Manifest,
    Source,
    VariantEntry,
    WeightsEntry,
)
from infopt.runtime.plan import Plan
from infopt.runtime.records import freeze
from infopt.runtime.signature import Parameter, Signature
from infopt.runtime.structure import Structure
from infopt.runtime.swap import PLAN as WEIGHTS_PLAN
from infopt.runtime.weights import Stored, file_parts, unique

__all__ = ["Artifact", "Golden", "Parameter", "Signature", "Source", "Variant"]

EXECUTOR = "executor"  # a library of this name is used where the executor is not installed
REFERENCE = "reference"


@dataclass(frozen=True)
class Variant:
    """The program for one level of cpu.LEVELS or gpu_levels.GPU_LEVELS.

    libraries: the files, by the plan's names; code: of a GPU, the machine code itself.
    names: what the graph calls the constants; needed to swap weights.
    """

    level: str
    plan: Plan
    constants: Sequence[torch.Tensor] = ()
    libraries: Mapping[str, Path] = field(default_factory=dict)
    names: Sequence[str] = ()
    code: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def is_native(self) -> bool:
        """Whether it holds native code, of any machine."""
        return bool(self.libraries or self.code)


@dataclass(frozen=True)
class Golden:
    """A call to be replayed: the leaves of the arguments, and the flat outputs they gave.

    limits: relative RMS error of each output, None for that of infopt.runtime.golden.LIMITS.
    """

    inputs: Sequence[Any]
    outputs: Sequence[Any]
    limits: Sequence[float | None]


@dataclass(frozen=True)
class Artifact:
    """What is saved.

    inputs: where each plan input comes from. outputs: a structure over the plan's outputs.
    state: tensors the program writes, for inputs with `Source(state=i)`. passes, about, versions:
    JSON for people and tools. attached: files that travel along, by the name they get. reference:
    a variant of torch calls only. weights: how constants come from the model's parameters, with the
    plan that makes the derived ones. batch_invariant: the kernels were chosen so that a row's
    result depends on that row alone.
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
    reference: Variant | None = None
    golden: Sequence[Golden] = ()
    weights: WeightsEntry | None = None
    weights_plan: Plan | None = None
    batch_invariant: bool = False
    attached: Mapping[str, Path] = field(default_factory=dict)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the folder `path`, or the file if it ends in ".infopt": all of it or nothing.

        Raises FileExistsError, PlanError.
        """
        target = Path(os.path.abspath(path))
        tensors = list(self.state)
        programs: dict[str, tuple[Variant, VariantEntry]] = {}
        for variant in self.variants:
            programs[variant.level] = variant, _entry(variant, variant.level, len(tensors))
            tensors += variant.constants
        if self.reference is not None:
            programs[REFERENCE] = self.reference, _entry(self.reference, REFERENCE, len(tensors))
            tensors += self.reference.constants
        cases = [_golden_case(case, tensors) for case in self.golden]
        kept, stored = unique(tensors)
        contents: dict[str, list[bytes | memoryview]] = {
            WEIGHTS: list(file_parts(kept)),
            GRAPH: [self.graph_text.encode()],
        }
        plans = {entry.plan: variant.plan for variant, entry in programs.values()}
        if self.weights_plan is not None:
            plans[WEIGHTS_PLAN] = self.weights_plan
        contents |= {name: [plan.to_json().encode()] for name, plan in plans.items()}
        for variant, entry in programs.values():
            for name, file in entry.libraries.items():
                code = variant.code.get(name)
                contents[file] = [code or Path(variant.libraries[name]).read_bytes()]
        contents |= {ATTACHED + name: [p.read_bytes()] for name, p in self.attached.items()}
        entries = {name: entry for name, (_, entry) in programs.items()}
        files = {name: folder.entry_of(parts) for name, parts in contents.items()}
        text = self._manifest(entries, stored, files, cases).to_text()
        Manifest.from_text(text)  # what cannot be read again is not written
        contents = {NAME: [text.encode()], **contents}
        if target.suffix == packed.SUFFIX:
            packed.write(target, contents, overwrite)
            return target
        with folder.NewFolder(target, overwrite, NAME) as temporary:
            for name, parts in contents.items():
                folder.write_file(temporary / name, parts)
        return target

    def _manifest(
        self,
        entries: dict[str, VariantEntry],
        stored: list[Stored],
        files: dict[str, Any],
        cases: list[GoldenCase],
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
            variants=tuple(e for name, e in entries.items() if name != REFERENCE),
            tensors=tuple(stored),
            state=tuple(range(len(self.state))),
            passes=freeze(self.passes),
            about=freeze(self.about),
            files=files,
            reference=entries.get(REFERENCE),
            golden=tuple(cases),
            weights=self.weights,
            batch_invariant=self.batch_invariant,
            chunk=folder.CHUNK,
        )


def _entry(variant: Variant, name: str, first_constant: int) -> VariantEntry:
    level, native, names = variant.level, bool(variant.libraries), list(variant.libraries)
    known = (*LEVELS, *GPU_LEVELS)
    if level not in known:
        raise PlanError(f"expected a level of {known}, found {level!r}")
    suffix = "so"
    if level in GPU_LEVELS:
        names, suffix = list(variant.code), "cubin" if level.startswith("sm") else "hsaco"
    if lacking := set(variant.plan.libraries) - set(names):
        raise PlanError(f"the plan for {level} needs the libraries {sorted(lacking)}")
    return VariantEntry(
        level=level,
        arch=detect().arch if native else "any",
        system=sys.platform if native else "any",
        features=FEATURES[level] if native else (),
        plan=f"plans/{name}.json",
        libraries={name: f"kernels/{level}/{name}.{suffix}" for name in sorted(names)},
        constants=tuple(range(first_constant, first_constant + len(variant.constants))),
        names=tuple(variant.names),
    )


def _golden_case(case: Golden, tensors: list[torch.Tensor]) -> GoldenCase:
    """The record of a case; its tensors are added to those stored."""

    def stored(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return freeze(value)
        tensors.append(value)
        return {"tensor": len(tensors) - 1}

    inputs, outputs = tuple(map(stored, case.inputs)), tuple(map(stored, case.outputs))
    return GoldenCase(inputs, outputs, tuple(case.limits))
