"""NVIDIA's and AMD's drivers through ctypes: load machine code, launch it. No Triton here."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import Any

import torch

from infopt.runtime.errors import CannotRecord, DeviceMissing, LibraryError
from infopt.runtime.plan import DeviceKernel

USUAL_SHARED = 48 << 10  # bytes a block may have without asking for more
_one_capture = Lock()  # torch captures in one thread at a time
_MOST_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES


@dataclass(frozen=True)
class Driver:
    """The few functions of a driver, by their names; both vendors' take the same arguments."""

    library: str
    load: str
    function: str
    launch: str
    describe: str
    attribute: str | None


DRIVERS = {
    "cuda": Driver(
        "libcuda.so.1",
        "cuModuleLoadData",
        "cuModuleGetFunction",
        "cuLaunchKernel",
        "cuGetErrorString",
        "cuFuncSetAttribute",
    ),
    "hip": Driver(
        "libamdhip64.so",
        "hipModuleLoadData",
        "hipModuleGetFunction",
        "hipModuleLaunchKernel",
        "hipDrvGetErrorString",
        None,
    ),
}


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine. arch: as levels are named, "sm90"."""

    platform: str
    index: int
    arch: str
    name: str

    def __str__(self) -> str:
        return f"{self.platform}:{self.index} ({self.name}, {self.arch})"


@cache
def find_gpus() -> tuple[Gpu, ...]:
    """Those that torch can use; none with a torch for the CPU."""
    if not torch.cuda.is_available():
        return ()
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        if torch.version.hip:
            platform, arch = "hip", properties.gcnArchName.partition(":")[0]
        else:
            platform, arch = "cuda", f"sm{properties.major}{properties.minor}"
        found.append(Gpu(platform, index, arch, properties.name))
    return tuple(found)


class CudaDevice:
    """A `Device` of torch's "cuda" kind, which AMD's are too. Raises DeviceMissing."""

    def __init__(self, index: int = 0) -> None:
        gpus = find_gpus()
        if index >= len(gpus):
            raise DeviceMissing(
                f"expected a GPU cuda:{index}, found {len(gpus)} that torch {torch.__version__} "
                "can use"
            )
        self.gpu = gpus[index]
        self.arch, self.where = self.gpu.arch, torch.device("cuda", index)
        self._driver = DRIVERS[self.gpu.platform]
        self._library = _open(self._driver.library)
        torch.cuda.init()
        address = ctypes.cast(self._call(self._driver.launch), ctypes.c_void_p).value
        assert address is not None
        self.launcher = address
        self._capturing: torch.cuda.Stream | None = None

    def load(self, kernel: DeviceKernel, code: bytes) -> int:
        with torch.cuda.device(self.where):
            torch.cuda.current_stream().synchronize()  # makes the device's context, if need be
            module, function = ctypes.c_void_p(), ctypes.c_void_p()
            image = ctypes.create_string_buffer(code, len(code))
            what = f"{kernel.library} on {self.gpu}"
            self._check(self._call(self._driver.load)(ctypes.byref(module), image), what)
            get = self._call(self._driver.function)
            self._check(get(ctypes.byref(function), module, kernel.entry.encode()), what)
            if kernel.shared > USUAL_SHARED and self._driver.attribute is not None:
                ask = self._call(self._driver.attribute)
                self._check(ask(function, _MOST_SHARED, ctypes.c_int(kernel.shared)), what)
        assert function.value is not None
        return function.value

    def current(self) -> AbstractContextManager[None]:
        if torch.cuda.current_device() == self.where.index:
            return nullcontext()
        return torch.cuda.device(self.where)

    def stream(self) -> int:
        return torch.cuda.current_stream(self.where).cuda_stream

    def explain(self, status: int) -> str:
        text = ctypes.c_char_p()
        self._call(self._driver.describe)(ctypes.c_int(status), ctypes.byref(text))
        return (text.value or b"unknown").decode() + f" (error {status})"

    def pool(self) -> Any:
        return torch.cuda.graph_pool_handle()

    def record(self, run: Callable[[], Any], pool: Any) -> tuple[torch.cuda.CUDAGraph, Any]:
        if self._capturing is None:  # torch's own would be of the GPU that was current first
            self._capturing = torch.cuda.Stream(self.where)
        graph = torch.cuda.CUDAGraph()
        options: Any = {"stream": self._capturing, "capture_error_mode": "thread_local"}
        try:
            with _one_capture, torch.cuda.graph(graph, pool=pool, **options):
                outputs = run()
        except RuntimeError as error:
            torch.cuda.synchronize(self.where)
            raise CannotRecord(str(error).strip().partition("\n")[0]) from error
        return graph, outputs

    def mark(self, old: Any = None) -> torch.cuda.Event:
        event = torch.cuda.Event() if old is None else old
        event.record(torch.cuda.current_stream(self.where))
        return event

    def wait(self, mark: Any) -> None:
        torch.cuda.current_stream(self.where).wait_event(mark)

    def lend(self, tensors: Iterable[torch.Tensor]) -> None:
        stream = torch.cuda.current_stream(self.where)
        for tensor in tensors:
            tensor.record_stream(stream)

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.where)

    def _call(self, name: str) -> Any:
        return getattr(self._library, name)

    def _check(self, status: int, what: str) -> None:
        if status:
            raise LibraryError(f"{what}: {self.explain(status)}")


@cache
def _open(name: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise DeviceMissing(f"the GPU's driver cannot be loaded: {error}") from None
