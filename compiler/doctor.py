"""What this machine has, which kernels it gets, and what is missing or broken."""

import os
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import infopt
import infopt.codegen.kernels
from infopt.codegen import build, toolchain
from infopt.codegen.cache import UnsafeCache, check_folder
from infopt.codegen.kernel import kernel_names
from infopt.codegen.load_gpu import has_triton
from infopt.compiler.settings import Settings
from infopt.compiler.target import Target
from infopt.runtime.cuda_device import find_gpus
from infopt.runtime.errors import LibraryError
from infopt.runtime.native import load_executor


@dataclass
class Health:
    """Findings by section. lost: what runs slower than it could; broken: what cannot be right."""

    sections: dict[str, dict[str, str]] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        lines = []
        for title, entries in self.sections.items():
            lines.append(title)
            lines += [f"  {name:14} {value}" for name, value in entries.items()]
        lines += [f"lost: {what}" for what in self.lost]
        lines += [f"broken: {what}" for what in self.broken]
        return "\n".join(lines if self.lost or self.broken else [*lines, "all is well"])


def examine() -> Health:
    """Look at everything; builds missing libraries as a first call would."""
    health = Health()
    health.sections["versions"] = {
        "infopt": infopt.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    target = Target.detect()
    health.sections["machine"] = {
        "cpu": f"{target.name} ({target.arch})",
        "level": target.level,
        "cores": f"{target.cores} usable, torch uses {torch.get_num_threads()}",
        "caches": ", ".join(f"{size / 2**20:.3g} MiB" for size in target.caches),
        "above level": _lacking(target),
    }
    health.sections["gpu"] = {
        "found": ", ".join(map(str, find_gpus())) or "none that torch can use",
        "triton": version("triton") if has_triton() else "not installed: compiles for no GPU",
    }
    _examine_compiler(health)
    _examine_libraries(health, target)
    health.sections["kernels"] = _kernels(target)
    _examine_cache(health)
    return health


def _kernels(target: Target) -> dict[str, str]:
    """The ops that can run natively here, infopt's own and torch's."""
    names = kernel_names(target)
    own = [n for n in names if not n.startswith("aten.")]
    torch_ops = [n.removeprefix("aten.") for n in names if n.startswith("aten.")]
    return {
        f"{len(own)} of infopt's": ", ".join(own),
        f"{len(torch_ops)} of torch's": ", ".join(torch_ops),
        "generated": "pointwise operations" if build.find_compiler() else "none: no C++ compiler",
    }


def _lacking(target: Target) -> str:
    """Why the next level is out of reach."""
    names = list(toolchain.LEVELS)
    above = names[names.index(target.level) + 1 :] if target.level in names else []
    return (target.lacks(above[0]) or above[0]) if above else "none"


def _examine_compiler(health: Health) -> None:
    compiler = build.find_compiler()
    if compiler is None:
        wanted = Settings.from_environment().cxx or "g++, c++ or clang++"
        health.sections["compiler"] = {"found": f"none; expected {wanted}"}
        health.lost.append("no C++ compiler: nothing new can be compiled, torch runs those parts")
    else:
        health.sections["compiler"] = {
            "found": " ".join(compiler.command),
            "version": compiler.version,
            "levels": ", ".join(compiler.levels()),
        }


def _examine_libraries(health: Health, target: Target) -> None:
    """Only this machine's level is needed; the others are listed for artifacts made here."""
    entries = health.sections["libraries"] = {}
    try:
        executor = build.executor_library()
        entries["executor"] = _where(executor)
        if executor is None:
            health.lost.append("no native executor: programs run as torch runs them")
        else:
            load_executor(executor)
    except (toolchain.BuildFailed, LibraryError) as reason:
        entries["executor"] = "broken"
        health.broken.append(f"executor: {reason}")
    names = list(toolchain.LEVELS)
    for level in names[: names.index(target.level) + 1]:
        installed = build.RUNTIME / "lib" / f"kernels_{level}.so"
        if level != target.level:
            entries[level] = "installed" if installed.exists() else "not installed"
            continue
        try:
            library = build.prebuilt(level)
            entries[level] = f"{_where(library)}  <- this machine's kernels"
            if library is None:
                health.lost.append(f"no kernels for {level}: only generated code runs natively")
        except toolchain.BuildFailed as reason:
            entries[level] = "broken"
            health.broken.append(f"kernels for {level}: {reason}")


def _where(library: Path | None) -> str:
    if library is None:
        return "missing"
    return "installed" if build.is_installed(library) else f"rebuilt, {library}"


def _examine_cache(health: Health) -> None:
    root = Settings.from_environment().cache
    entries = health.sections["cache"] = {"folder": str(root or "none: no home folder")}
    if root is None:
        health.lost.append("no cache folder: every process compiles again; set INFOPT_CACHE")
        return
    folder = root / "native"
    try:
        check_folder(folder)
        files = [file for file in folder.glob("*/*") if file.is_file()]
        size = sum(file.stat().st_size for file in files)
        entries["holds"] = f"{len({f.parent for f in files})} entries, {size / 2**20:.1f} MiB"
    except FileNotFoundError:
        entries["holds"] = "nothing yet"
        nearest = next(parent for parent in folder.parents if parent.exists())
        if not os.access(nearest, os.W_OK):
            health.lost.append(f"the cache folder cannot be made: {nearest} is not writable")
    except (OSError, UnsafeCache) as reason:
        entries["holds"] = "not used"
        health.lost.append(f"the cache is not used: {reason}")
