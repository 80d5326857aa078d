"""The driver's side of a GPU, against functions that stand for the driver's."""

import contextlib
import ctypes
from types import SimpleNamespace

import pytest
import torch

from infopt.runtime import cuda_device
from infopt.runtime.cuda_device import CudaDevice, Gpu
from infopt.runtime.errors import CannotRecord, DeviceMissing, LibraryError
from infopt.runtime.plan import DeviceKernel

POINTER = ctypes.c_void_p


class Driver:
    """What libcuda exports, as far as it is used; it remembers its calls."""

    def __init__(self):
        self.calls = []
        integer = ctypes.c_int

        @ctypes.CFUNCTYPE(integer, POINTER, POINTER)
        def load(module, image):
            self.calls.append(("load", ctypes.string_at(image, 4)))
            POINTER.from_address(module).value = 0x100
            return 0 if ctypes.string_at(image, 4) == b"\x7fELF" else 200

        @ctypes.CFUNCTYPE(integer, POINTER, POINTER, ctypes.c_char_p)
        def function(found, module, name):
            self.calls.append(("function", module, name))
            POINTER.from_address(found).value = 0x200
            return 0

        @ctypes.CFUNCTYPE(integer, POINTER, integer, integer)
        def attribute(function, which, value):
            self.calls.append(("attribute", function, which, value))
            return 0

        self.message = ctypes.create_string_buffer(b"device kernel image is invalid")

        @ctypes.CFUNCTYPE(integer, integer, POINTER)
        def describe(status, text):
            POINTER.from_address(text).value = ctypes.addressof(self.message)
            return 0

        self.cuModuleLoadData, self.cuModuleGetFunction = load, function
        self.cuFuncSetAttribute, self.cuGetErrorString = attribute, describe
        self.cuLaunchKernel = ctypes.CFUNCTYPE(integer)(lambda: 0)


@pytest.fixture
def driver(monkeypatch):
    made = Driver()
    gpus = (Gpu("cuda", 0, "sm90", "H200"), Gpu("cuda", 1, "sm80", "A100"))
    monkeypatch.setattr(cuda_device, "find_gpus", lambda: gpus)
    monkeypatch.setattr(cuda_device, "_open", lambda name: made)
    stream = SimpleNamespace(synchronize=lambda: None, cuda_stream=77)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device", lambda where: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda where=None: stream)
    return made


def kernel(shared):
    return DeviceKernel("k.cubin", "entry", ("pointer",), 128, shared)


def test_code_is_loaded_and_its_function_found(driver):
    device = CudaDevice(1)
    assert (device.arch, device.where) == ("sm80", torch.device("cuda:1"))
    assert device.stream() == 77 and device.launcher
    assert device.load(kernel(1024), b"\x7fELF-code") == 0x200
    assert driver.calls == [("load", b"\x7fELF"), ("function", 0x100, b"entry")]


def test_much_shared_memory_is_asked_for(driver):
    CudaDevice(0).load(kernel(100 << 10), b"\x7fELF-code")
    assert driver.calls[-1] == ("attribute", 0x200, 8, 100 << 10)


def test_code_that_the_driver_refuses(driver):
    with pytest.raises(LibraryError, match=r"k\.cubin on cuda:0 \(H200, sm90\): device kernel"):
        CudaDevice(0).load(kernel(0), b"junk")
    assert "error 200" in CudaDevice(0).explain(200)


def test_a_gpu_that_is_not_there(driver):
    with pytest.raises(DeviceMissing, match="expected a GPU cuda:2, found 2"):
        CudaDevice(2)


def test_runs_are_captured_on_a_stream_of_the_gpu(driver, monkeypatch):
    captures = []

    @contextlib.contextmanager
    def graph(graph, **options):
        captures.append(options)
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: "graph")
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "Stream", lambda where: ("stream of", where))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda where: None)
    device = CudaDevice(1)
    assert device.record(lambda: 3, "pool") == device.record(lambda: 3, "pool") == ("graph", 3)
    first, second = captures
    assert first == second and first["pool"] == "pool"
    assert first["stream"] == ("stream of", torch.device("cuda:1"))
    assert first["capture_error_mode"] == "thread_local"  # other threads may allocate meanwhile

    def fails():
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    with pytest.raises(CannotRecord, match=r"^operation not permitted when stream is capturing$"):
        device.record(fails, "pool")
    assert device.record(lambda: 4, "pool") == ("graph", 4)  # nobody else is held up


def test_one_stream_waits_for_another(driver, monkeypatch):
    calls = []
    stream = SimpleNamespace(wait_event=lambda event: calls.append(("wait", event.stream)))

    class Event:
        def record(self, stream):
            self.stream = stream

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda where: stream)
    device = CudaDevice(0)
    mark = device.mark()
    assert device.mark(mark) is mark
    device.wait(mark)
    device.lend([SimpleNamespace(record_stream=lambda on: calls.append(("lend", on)))])
    assert calls == [("wait", stream), ("lend", stream)]


def test_without_a_driver():
    with pytest.raises(DeviceMissing, match="driver cannot be loaded"):
        cuda_device._open.__wrapped__("libnodriver.so.9")
