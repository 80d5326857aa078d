"""What a machine can do with an artifact: which of its programs, at which speed, and why."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from infopt.runtime.cpu import LEVELS, Cpu, detect, missing
from infopt.runtime.cuda_device import Gpu, find_gpus
from infopt.runtime.errors import ArtifactIncompatible
from infopt.runtime.gpu_levels import GPU_LEVELS, fits, gpu_for
from infopt.runtime.manifest import ABI, Manifest, VariantEntry

RUNS, SLOWER, CANNOT = "runs", "runs slower", "cannot run"


@dataclass(frozen=True)
class Verdict:
    """program: a level of cpu.LEVELS or gpu_levels.GPU_LEVELS, or "reference" (torch calls alone).

    answer: "runs" (made for the machine's own level), "runs slower" (for a lower one, or the
    reference), "cannot run"; reason: why not the best, "" for "runs". gpu: where it runs.
    """

    program: str
    answer: str
    reason: str
    entry: VariantEntry
    gpu: Gpu | None = None


@dataclass(frozen=True)
class Here:
    """A machine. system as in sys.platform; gpus: those that a program may run on."""

    cpu: Cpu
    system: str
    gpus: tuple[Gpu, ...]


def verdicts(
    manifest: Manifest,
    cpu: Cpu | None = None,
    system: str | None = None,
    gpus: Sequence[Gpu] | None = None,
) -> list[Verdict]:
    """One per program of the artifact: those for GPUs, then for processors, the most capable
    first; the reference last.

    cpu, system, gpus: another machine (system as in sys.platform); default this one.
    """
    here = Here(
        cpu or detect(),
        system or sys.platform,
        find_gpus() if gpus is None else tuple(gpus),
    )
    order = (*LEVELS, *GPU_LEVELS)
    ordered = sorted(manifest.variants, key=lambda v: order.index(v.level), reverse=True)
    found = [_verdict(manifest, v, here) for v in ordered]
    if manifest.reference is not None:
        answer, reason = _answer(manifest, manifest.reference, here)
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


def _verdict(manifest: Manifest, variant: VariantEntry, here: Here) -> Verdict:
    if variant.level not in GPU_LEVELS:
        return Verdict(variant.level, *_answer(manifest, variant, here), variant)
    if manifest.abi != ABI:
        return Verdict(variant.level, CANNOT, _other_abi(manifest), variant)
    if not here.gpus:
        reason = f"needs a GPU {variant.level}, found none that torch can use"
        return Verdict(variant.level, CANNOT, reason, variant)
    gpu = gpu_for(variant.level, here.gpus)
    reason = fits(variant.level, (gpu or here.gpus[0]).arch) or ""
    answer = CANNOT if gpu is None else SLOWER if reason else RUNS
    return Verdict(variant.level, answer, reason, variant, gpu)


def _answer(manifest: Manifest, variant: VariantEntry, here: Here) -> tuple[str, str]:
    if manifest.abi != ABI:
        return CANNOT, _other_abi(manifest)
    if variant.arch not in ("any", here.cpu.arch) or variant.system not in ("any", here.system):
        return CANNOT, f"needs {variant.system} on {variant.arch}"
    if not variant.libraries:
        return SLOWER, "torch calls alone, no native kernels"
    if lacks := missing(variant.features, here.cpu.features):
        return CANNOT, f"needs {', '.join(lacks)}"
    if variant.level != here.cpu.level:
        return SLOWER, f"made for {variant.level}, the machine has {here.cpu.level}"
    return RUNS, ""


def _other_abi(manifest: Manifest) -> str:
    return f"kernel interface {manifest.abi}, here {ABI}"


def choose(manifest: Manifest, gpus: Sequence[Gpu] | None = None, only: str = "") -> Verdict:
    """The best program for this machine. Raises ArtifactIncompatible with every reason.

    gpus: those that may be used, default all. only: "cpu" or "gpu", what the program must be for.
    """
    if manifest.abi != ABI:
        raise ArtifactIncompatible(f"expected kernel interface {ABI}, found {manifest.abi}")
    found = verdicts(manifest, gpus=gpus)
    if only:
        found = [v for v in found if (v.entry.level in GPU_LEVELS) == (only == "gpu")]
    for verdict in found:
        if verdict.answer != CANNOT:
            return verdict
    cpu, wanted = detect(), "this machine"
    if only == "gpu":
        wanted = "this GPU"
    raise ArtifactIncompatible(
        f"it has no program for {wanted} ({sys.platform} on {cpu.arch}, level {cpu.level}): "
        + ("; ".join(f"{v.program} {v.reason}" for v in found) or "it has none at all")
    )
