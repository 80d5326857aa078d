"""From a lowered graph to a program that runs: builds its texts, loads its libraries."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infopt.codegen import build
from infopt.codegen.load_gpu import gpu_program, lower_for_gpu
from infopt.codegen.lower import Lowered, LoweringDeclined, lower
from infopt.codegen.plan_writer import SHIPPED
from infopt.codegen.schedules import Schedules, usual
from infopt.compiler.graph import Graph
from infopt.compiler.target import Target
from infopt.runtime.absent_program import AbsentProgram
from infopt.runtime.device import Device
from infopt.runtime.errors import LibraryError
from infopt.runtime.executor import Program
from infopt.runtime.native import load_executor, open_library
from infopt.runtime.plan import AtenStep

__all__ = ["LoweringDeclined", "library_files", "lower_for", "program"]


def lower_for(graph: Graph, target: Target, schedules: Schedules = usual) -> Lowered:
    """`lower` with what this installation has: kernels of the target's level, a C++ compiler."""
    if target.kind == "gpu":
        return lower_for_gpu(graph, target, schedules)
    with _declining():
        native = build.executor_library() is not None
        shipped = native and build.prebuilt(target.level) is not None
    compiler = build.find_compiler() if native else None
    generated = compiler is not None and target.level in compiler.levels()
    return lower(graph, target, shipped=shipped, generated=generated, schedules=schedules)


def library_files(lowered: Lowered) -> dict[str, Path]:
    """The shared libraries a plan needs, built if they are not yet: name in the plan -> file."""
    files: dict[str, Path] = {}
    if SHIPPED in lowered.plan.libraries:
        found = build.prebuilt(lowered.level)
        if found is None:
            raise build.CompilerMissing(f"the kernels for {lowered.level} are not installed")
        files[SHIPPED] = found
    texts = [(text, lowered.level, name) for name, text in lowered.sources.items()]
    files.update(zip(lowered.sources, build.build_all(texts), strict=True))
    return files


def program(
    lowered: Lowered,
    threads: int | None = None,
    device: Device | None = None,
    record: bool = False,
) -> Program | AbsentProgram:
    """The program of a lowered graph, for this machine.

    device, record: of one that was lowered for a GPU (load_gpu.py). Raises BuildFailed,
    CompilerMissing, CannotCompile, and LoweringDeclined where no folder can be written to.
    """
    if lowered.kind == "gpu":
        return gpu_program(lowered, device, record=record)
    with _declining():
        try:
            libraries = _open(lowered)
        except LibraryError:  # removed or damaged since it was verified
            build.forget()
            libraries = _open(lowered)
    if SHIPPED in libraries:
        _request_features(libraries[SHIPPED])
    steps = lowered.plan.steps
    spaces = {s.op.partition(".")[0] for s in steps if isinstance(s, AtenStep)}
    executor_file = build.executor_library() if libraries else None
    executor = load_executor(executor_file) if executor_file is not None else None
    return Program(
        lowered.plan, lowered.constants, libraries, threads, allow_ops=spaces, executor=executor
    )


@contextmanager
def _declining() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LoweringDeclined(f"compiled code cannot be written anywhere: {error}") from None


def _open(lowered: Lowered) -> dict[str, ctypes.CDLL]:
    return {name: open_library(file) for name, file in library_files(lowered).items()}


def _request_features(kernels: ctypes.CDLL) -> None:
    """Ask the operating system for registers that it hands out on request (AMX tiles)."""
    request = getattr(kernels, "infopt_request_features", None)
    if request is not None and request() != 0:
        raise LibraryError("the system refused AMX tiles; use target='cpu:avx512_bf16'")
