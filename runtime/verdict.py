"""What a machine can do with an artifact: which of its programs, at which speed, and why."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from infopt.runtime.cpu import LEVELS, Cpu, detect, missing
from infopt.runtime.errors import ArtifactIncompatible
from infopt.runtime.manifest import ABI, Manifest, VariantEntry

RUNS, SLOWER, CANNOT = "runs", "runs slower", "cannot run"


@dataclass(frozen=True)
class Verdict:
    """program: a level of cpu.LEVELS, or "reference" (torch calls alone).

    answer: "runs" (made for the machine's own level), "runs slower" (for a lower one, or the
    reference), "cannot run"; reason: why not the best, "" for "runs".
    """

    program: str
    answer: str
    reason: str
    entry: VariantEntry


def verdicts(
    manifest: Manifest, cpu: Cpu | None = None, system: str | None = None
) -> list[Verdict]:
    """One per program of the artifact, the most capable first; the reference last.

    cpu, system: another machine (system as in sys.platform); default this one.
    """
    cpu, system = cpu or detect(), system or sys.platform
    ordered = sorted(manifest.variants, key=lambda v: LEVELS.index(v.level), reverse=True)
    found = [Verdict(v.level, *_answer(manifest, v, cpu, system), v) for v in ordered]
    if manifest.reference is not None:
        answer, reason = _answer(manifest, manifest.reference, cpu, system)
        reason = reason or "torch calls alone, no native kernels"
        found.append(
            Verdict(
                "reference",
                CANNOT if answer == CANNOT else SLOWER,
                reason,
                manifest.reference,
            )
        )
    return found


def _answer(manifest: Manifest, variant: VariantEntry, cpu: Cpu, system: str) -> tuple[str, str]:
    if manifest.abi != ABI:
        return CANNOT, f"kernel interface {manifest.abi}, here {ABI}"
    if variant.arch not in ("any", cpu.arch) or variant.system not in ("any", system):
        return CANNOT, f"needs {variant.system} on {variant.arch}"
    if not variant.libraries:
        return SLOWER, "torch calls alone, no native kernels"
    if lacks := missing(variant.features, cpu.features):
        return CANNOT, f"needs {', '.join(lacks)}"
    if variant.level != cpu.level:
        return SLOWER, f"made for {variant.level}, the machine has {cpu.level}"
    return RUNS, ""


def choose(manifest: Manifest) -> Verdict:
    """The best program for this machine. Raises ArtifactIncompatible with every reason."""
    if manifest.abi != ABI:
        raise ArtifactIncompatible(f"expected kernel interface {ABI}, found {manifest.abi}")
    found = verdicts(manifest)
    for verdict in found:
        if verdict.answer != CANNOT:
            return verdict
    cpu = detect()
    raise ArtifactIncompatible(
        f"it has no program for this machine ({sys.platform} on {cpu.arch}, level {cpu.level}): "
        + ("; ".join(f"{v.program} {v.reason}" for v in found) or "it has none at all")
    )
