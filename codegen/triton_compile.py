"""Machine code of a launch for a GPU that need not be here, and what it takes of that GPU.

Triton compiles for a named architecture with the assembler that it brings (ptxas, LLVM), so this
runs on any machine with Triton and no driver.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile
from threading import RLock
from typing import Any

from infopt.codegen.gpu.interpret import module
from infopt.codegen.launch import ALIGNMENT, DESCRIPTOR, Launch
from infopt.compiler.errors import InfoptError
from infopt.compiler.target_gpu import ROWS, Gpu


class CannotCompile(InfoptError):
    """A launch has no machine code for an architecture; the message names both and says why."""


# The rows of targets by the architecture that code is made for.
ARCHITECTURES: Mapping[str, Gpu] = {row.arch: row for row in ROWS.values()}


@dataclass(frozen=True)
class Resources:
    """What one block takes. registers: of a thread; spills: bytes of a thread's local memory;
    shared: bytes; occupancy: resident threads of all that a multiprocessor could hold."""

    registers: int
    spills: int
    shared: int
    occupancy: float

    def __str__(self) -> str:
        spilled = f", {self.spills} bytes spilled" if self.spills else ""
        return (
            f"{self.registers} registers{spilled}, {self.shared} bytes shared, "
            f"{self.occupancy:.0%} occupied"
        )


@dataclass(frozen=True)
class Compiled:
    """Machine code, and all that launching it needs.

    kind       "cubin" or "hsaco"; symbol: the function in it
    signature  types of the arguments as in Launch.signature, constants left out
    hidden     how many null pointers follow the arguments, and the memory of descriptors if any
    threads    of a block; shared: dynamic shared memory of a block in bytes
    """

    arch: str
    kind: str
    binary: bytes
    symbol: str
    signature: tuple[str, ...]
    hidden: int
    threads: int
    shared: int
    resources: Resources


_compiled: dict[tuple, Compiled] = {}


def compile_launch(launch: Launch, arch: str, unaligned: frozenset[int] = frozenset()) -> Compiled:
    """Machine code for "sm80", "sm90", "sm100" or "gfx942"; the same request compiles once.

    unaligned: indices of arguments whose address may be no multiple of 16.
    Raises CannotCompile, also where a block would need more shared memory than there is.
    """
    if arch not in ARCHITECTURES:
        raise CannotCompile(f"{arch!r}: expected one of {', '.join(ARCHITECTURES)}")
    key = _key(launch, arch, unaligned)
    if key not in _compiled:
        _compiled[key] = _compile(launch, arch, _divisible(launch, unaligned))
    return _compiled[key]


def remember(launch: Launch, arch: str, unaligned: frozenset[int], made: Compiled) -> None:
    """Take what another process has compiled of the same request."""
    _compiled.setdefault(_key(launch, arch, unaligned), made)


def is_compiled(launch: Launch, arch: str, unaligned: frozenset[int]) -> bool:
    """Whether a request needs no compiling any more in this process."""
    return _key(launch, arch, unaligned) in _compiled


def _key(launch: Launch, arch: str, unaligned: frozenset[int]) -> tuple:
    constants = tuple(sorted((k, repr(v)) for k, v in launch.constants.items()))
    text = (launch.source, launch.entry, launch.signature, _divisible(launch, unaligned), constants)
    return (*text, launch.warps, launch.stages, launch.exact, arch)


def _divisible(launch: Launch, unaligned: frozenset[int]) -> tuple[bool, ...]:
    return tuple(d and i not in unaligned for i, d in enumerate(launch.divisible))


def _compile(launch: Launch, arch: str, divisible: tuple[bool, ...]) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget

    gpu = ARCHITECTURES[arch]
    function = module(launch.source)[launch.entry]
    free = [n for n in function.arg_names if n not in launch.constants]
    signature = dict(zip(free, launch.signature, strict=True))
    places = {name: i for i, name in enumerate(function.arg_names)}
    hints = {
        (places[name],): [["tt.divisibility", ALIGNMENT]]
        for name, multiple in zip(free, divisible, strict=True)
        if multiple
    }
    source = _read_in_turn()(
        function,
        signature={n: signature.get(n, "constexpr") for n in function.arg_names},
        constexprs={(places[n],): v for n, v in launch.constants.items()},
        attrs=hints,
    )
    options = {
        "num_warps": launch.warps,
        "num_stages": launch.stages,
        "enable_fp_fusion": not launch.exact,
    }
    target = GPUTarget(gpu.platform, int(arch[2:]) if gpu.platform == "cuda" else arch, gpu.warp)
    try:
        made = triton.compile(source, target=target, options=options)
    except Exception as error:  # of many kinds, from the parser to the assembler
        raise CannotCompile(f"{launch.entry} for {arch}: {error}") from error
    meta = made.metadata
    if meta.shared > gpu.shared:
        raise CannotCompile(
            f"{launch.entry} for {arch}: {meta.shared} bytes of shared memory, "
            f"expected at most {gpu.shared}: choose smaller tiles or fewer stages"
        )
    asked = [getattr(meta, f"global_scratch_{of}", 0) for of in ("size", "align")]
    given = DESCRIPTOR * launch.descriptors, DESCRIPTOR
    if asked[0] != given[0] or asked[1] > given[1] or getattr(meta, "profile_scratch_size", 0):
        raise CannotCompile(
            f"{launch.entry} for {arch}: asks for {asked[0]} bytes of memory at multiples of "
            f"{asked[1]}, {launch.descriptors} descriptors have {given[0]}"
        )
    kind = "cubin" if gpu.platform == "cuda" else "hsaco"
    # warps may be more than asked for where Triton makes some of its own
    threads = launch.warps * gpu.warp
    registers, spills = (_cuda if kind == "cubin" else _hip)(made)
    return Compiled(
        arch=arch,
        kind=kind,
        binary=made.asm[kind],
        symbol=meta.name,
        signature=launch.signature,
        hidden=2 - (launch.descriptors > 0),
        threads=threads,
        shared=meta.shared,
        resources=Resources(
            registers, spills, meta.shared, occupancy(gpu, registers, meta.shared, threads)
        ),
    )


def occupancy(gpu: Gpu, registers: int, shared: int, threads: int) -> float:
    """Threads that are resident at once, of the most possible."""
    return resident_blocks(gpu, registers, shared, threads) * threads / gpu.threads


def resident_blocks(gpu: Gpu, registers: int, shared: int, threads: int) -> int:
    """Blocks that one multiprocessor holds at once. registers: of a thread; shared: bytes of a
    block; threads: of a block."""
    per_block = -(-max(registers, 1) // 8) * 8 * threads
    reserved = 1024 if gpu.platform == "cuda" else 0  # of shared memory, for each block
    blocks = min(gpu.blocks, gpu.threads // threads, gpu.registers // per_block)
    if shared:
        blocks = min(blocks, (gpu.shared + reserved) // (shared + reserved))
    return blocks


def _cuda(made: Any) -> tuple[int, int]:
    """Registers and bytes of local memory, as cuobjdump reads them from a cubin."""
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        command = [_cuobjdump(), "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    found = {k: int(v) for k, v in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}
    return found["REG"], found["STACK"] + found["LOCAL"]


def _hip(made: Any) -> tuple[int, int]:
    """Registers and bytes of private memory, from the metadata at the end of the assembly."""
    text = made.asm["amdgcn"]
    found = {k: int(v) for k, v in re.findall(r"\.(\w+): +(\d+)$", text, re.MULTILINE)}
    # what a thread has on the stack; a spill to the other register file costs no memory
    return found["vgpr_count"], found["private_segment_fixed_size"]


@cache
def _read_in_turn() -> Any:
    """Triton's source of a kernel, for several threads: Python 3.11 counts the depth of the trees
    it parses for all threads together, and may find another at the end than at the start."""
    from triton.compiler import ASTSource

    lock = RLock()

    class ReadInTurn(ASTSource):  # type: ignore[misc]
        def hash(self) -> Any:
            with lock:
                return super().hash()

        def make_ir(self, *args: Any, **options: Any) -> Any:
            with lock:
                return super().make_ir(*args, **options)

    return ReadInTurn


@cache
def _cuobjdump() -> str:
    import triton

    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump")
