"""A GPU that is not there: its programs run on CPU tensors, kernels in Triton's interpreter.

Everything but the machine is real: the plan, its sizes and memory, the native launches and what
they pass to a kernel. It is slow, and for checking.

    compiled = infopt.compile(model, args, target="cuda:sm90", device=InterpretedDevice("sm90"))
"""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from infopt.codegen.gpu.interpret import interpreting, module
from infopt.codegen.launch import ELEMENT_NAMES, Launch
from infopt.codegen.launches import KernelText
from infopt.runtime.device import Recorded
from infopt.runtime.device_launch import LAUNCHER
from infopt.runtime.errors import LibraryError
from infopt.runtime.plan import DeviceKernel

_DTYPES = {name: dtype for dtype, name in ELEMENT_NAMES.items()}
_SCALARS: dict[str, Any] = {"i32": ctypes.c_int32, "i64": ctypes.c_int64, "fp32": ctypes.c_float}
_POINTED = 16  # bytes that stand for what a pointer points at


class InterpretedDevice:
    """A `Device` (runtime/device.py) for tests.

    launched  how often each entry was launched
    """

    def __init__(self, arch: str = "sm90") -> None:
        self.arch, self.where = arch, torch.device("cpu")
        self.texts: dict[str, KernelText] = {}
        self.launched: Counter[str] = Counter()
        self.failure: BaseException | None = None
        self._loaded: list[tuple[DeviceKernel, Launch]] = []
        self._callback = LAUNCHER(self._launch)
        address = ctypes.cast(self._callback, ctypes.c_void_p).value
        assert address is not None
        self.launcher = address

    def take(self, texts: Sequence[KernelText]) -> dict[str, bytes]:
        """What stands for the machine code of kernels."""
        self.texts.update({text.name: text for text in texts})
        return {text.name: text.launch.source.encode() for text in texts}

    def load(self, kernel: DeviceKernel, code: bytes) -> int:
        if kernel.library not in self.texts:
            raise LibraryError(f"the interpreter has no source of {kernel.library!r}")
        self._loaded.append((kernel, self.texts[kernel.library].launch))
        return len(self._loaded)

    def current(self) -> AbstractContextManager[None]:
        return nullcontext()

    def stream(self) -> int:
        return 0

    def explain(self, status: int) -> str:
        return f"{type(self.failure).__name__}: {self.failure}"

    def pool(self) -> Any:
        return None

    def record(self, run: Callable[[], Any], pool: Any) -> tuple[Recorded, Any]:
        """Nothing is captured: it runs now, which stands for the first replay, and further replays
        run again into the same results."""
        outputs = run()
        return Rerun(run, outputs), outputs

    def mark(self, old: Any = None) -> Any:
        return None

    def wait(self, mark: Any) -> None:
        pass

    def lend(self, tensors: Iterable[torch.Tensor]) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def _launch(self, function: int, *rest: Any) -> int:
        x, y, z, threads, *_, parameters, _ = rest
        described, launch = self._loaded[function - 1]
        try:
            # the memory of descriptors, which may follow, the interpreter does without
            addresses = (ctypes.c_void_p * len(launch.signature)).from_address(parameters)
            kinds = zip(launch.signature, addresses, strict=True)
            values = [_argument(kind, at) for kind, at in kinds]
            self._check(described, launch, values, threads)
            names = module(launch.source, interpreted=True)
            if "libdevice" in names:
                names["libdevice"] = Libdevice
            with interpreting(), np.errstate(all="ignore"):
                kernel = names[launch.entry]
                free = [n for n in kernel.arg_names if n not in launch.constants]
                given = dict(zip(free, values, strict=True))
                kernel[(x, y, z)](**given, **launch.constants)
        except BaseException as failure:
            self.failure = failure
            return 1
        self.launched[launch.entry] += 1
        return 0

    def _check(self, kernel: DeviceKernel, launch: Launch, values: list, threads: int) -> None:
        """What machine code takes for granted of its arguments."""
        unaligned = self.texts[kernel.library].unaligned
        for i, (value, multiple) in enumerate(zip(values, launch.divisible, strict=True)):
            number = value.data_ptr() if isinstance(value, torch.Tensor) else value
            if multiple and i not in unaligned and number % 16:
                raise ValueError(f"argument {i}: {number} is no multiple of 16")
        if threads % launch.warps:
            raise ValueError(f"{threads} threads are not {launch.warps} warps")


@dataclass
class Rerun:
    """A recorded run that simply happens again."""

    run: Callable[[], Any]
    outputs: Sequence[Any]
    ran: bool = True  # when it was recorded, and nobody has asked for it yet

    def replay(self) -> None:
        if self.ran:
            self.ran = False
            return
        for old, new in zip(self.outputs, self.run(), strict=True):
            if isinstance(old, torch.Tensor):
                old.copy_(new)


def _argument(kind: str, at: int) -> Any:
    if not kind.startswith("*"):
        return _SCALARS[kind].from_address(at).value
    address = ctypes.c_uint64.from_address(at).value
    memory = (ctypes.c_char * _POINTED).from_address(address)
    return torch.frombuffer(memory, dtype=_DTYPES[kind[1:]])


class _Functions(type):
    """Any function of the vendor's library by its name, on values of the interpreter."""

    def __getattr__(cls, name: str) -> Callable[..., Any]:
        def call(*values: Any) -> Any:
            from triton.language.core import block_type, tensor
            from triton.runtime.interpreter import TensorHandle

            arrays = [torch.from_numpy(np.asarray(v.handle.data)) for v in values]
            known = {"rint": torch.round, "fabs": torch.abs}
            made = known.get(name, getattr(torch, name, None))
            assert made is not None, f"no stand-in for libdevice.{name}"
            result = made(*torch.broadcast_tensors(*arrays)).numpy()
            scalar = values[0].dtype
            shape = list(result.shape)
            kind = block_type(scalar, shape) if shape else scalar
            return tensor(TensorHandle(result, scalar), kind)

        return call


class Libdevice(metaclass=_Functions):
    """Stands for triton.language.extra.libdevice."""
