"""What the tests of matrix-product kernels share: the library of every level of instructions,
calls as the executor makes them, the layouts of operands in plain torch."""

import ctypes
import pathlib
import subprocess

import torch
import torch.nn.functional as F

import infopt.codegen
from infopt.codegen.build import prebuilt

CSRC = pathlib.Path(infopt.codegen.__file__).resolve().parent / "csrc"
AVX512 = ["avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"]
LEVELS = {  # name: the /proc/cpuinfo flags it needs
    "scalar": [],
    "avx2": ["avx2", "fma", "f16c"],
    "avx512": AVX512,
    "avx512_bf16": [*AVX512, "avx512_bf16"],
    "amx": [*AVX512, "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8"],
    "amx_emulated": [],
}
ROW = {torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
PANEL = {torch.float32: 4, torch.bfloat16: 5}
NAME = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
ACTIVATIONS = [
    lambda x: x,
    F.relu,
    F.gelu,
    lambda x: F.gelu(x, approximate="tanh"),
    F.silu,
    lambda x: x * torch.sigmoid(1.702 * x),
    torch.sigmoid,
    torch.tanh,
    F.relu6,
    F.hardswish,
]
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
EMULATED = ("linear", "grouped", "group_sparse", "stored")
GUARD = 64  # elements around every output that must stay untouched


def cpu_flags():
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((x for x in lines if x.startswith(("flags", "Features"))), "").split())


class Call(ctypes.Structure):
    _fields_ = [
        ("pointers", ctypes.POINTER(ctypes.c_void_p)),
        ("numbers", ctypes.POINTER(ctypes.c_int64)),
        ("scratch", ctypes.c_void_p),
    ]


def emulated(folder):
    """The kernels with AMX's tiles in plain C++, for machines without them."""
    path = folder / "amx_emulated.so"
    command = [
        "g++",
        "-O1",
        "-std=c++17",
        "-fPIC",
        "-shared",
        "-fvisibility=hidden",
        "-fno-math-errno",
        "-ffp-contract=off",
        "-w",
        "-DINFOPT_EMULATE_AMX",
        *(str(CSRC / f"kernels_{name}.cpp") for name in EMULATED),
        "-o",
        str(path),
    ]
    subprocess.run(command, check=True)
    return path


class Kernels:
    """One level's library; `run` calls a kernel as the executor would, in two task ranges."""

    def __init__(self, level, folder):
        path = emulated(folder) if level == "amx_emulated" else prebuilt(level)
        self.level, self.library = level, ctypes.CDLL(str(path))
        assert self.library.infopt_request_features() == 0, "the system refused the AMX tiles"

    def run(self, name, tensors, numbers, tasks, scratch_bytes):
        pointers = [None if t is None else t.data_ptr() for t in tensors]
        scratch = torch.full((scratch_bytes // 4 + 32,), float("nan"))
        aligned = scratch.data_ptr() + 63 & ~63
        call = Call(
            (ctypes.c_void_p * len(pointers))(*pointers),
            (ctypes.c_int64 * len(numbers))(*[int(n) for n in numbers]),
            aligned,
        )
        kernel = getattr(self.library, f"infopt_{name}")
        kernel.argtypes = [ctypes.POINTER(Call), ctypes.c_int64, ctypes.c_int64]
        kernel.restype = None
        kernel(call, tasks // 2, tasks)
        kernel(call, 0, tasks // 2)
        last = (aligned - scratch.data_ptr() + scratch_bytes) // 4
        assert torch.isnan(scratch[last:]).all(), "the kernel wrote past its declared scratch"


def ceil_div(a, b):
    return -(-a // b)


def guarded(*shape, dtype, offset=0):
    """A poisoned output inside a larger buffer, and a check that the rest stayed untouched."""
    size = torch.Size(shape).numel()
    buffer = torch.full((GUARD + offset + size + GUARD,), float("nan"), dtype=dtype)
    view = buffer[GUARD + offset : GUARD + offset + size].view(shape)

    def check():
        assert buffer[: GUARD + offset].isnan().all(), "wrote before the output"
        assert buffer[GUARD + offset + size :].isnan().all(), "wrote behind the output"

    return view, check


def panel_stride(k, dtype):
    return k * 16 if dtype == F32 else ceil_div(k, 2) * 32


def to_panels(x, dtype):
    """The reference layout of docs/architecture.md, in plain torch."""
    m, k = x.shape
    padded = torch.zeros(ceil_div(m, 16) * 16, k + k % 2, dtype=dtype)
    padded[:m, :k] = x.to(dtype)
    if dtype == F32:
        return padded[:, :k].reshape(-1, 16, k).transpose(1, 2).contiguous()
    return padded.reshape(-1, 16, (k + 1) // 2, 2).transpose(1, 2).contiguous()


def random(*shape, dtype=F32, offset=0):
    """Values of unit size at an address that is not aligned if offset is odd."""
    size = torch.Size(shape).numel()
    return torch.randn(size + offset).to(dtype)[offset:].view(shape)


def linear_scratch(k, panel_chunk, gated):
    depth = min(ceil_div(k, 32) * 32, 2048)
    return 6144 * panel_chunk * (2 if gated else 1) + 384 * (depth + 32)


def assert_close(actual, expected, dtype, k, message=""):
    """Rounding of k partial sums of size sqrt(k) or less, then of the output's type."""
    eps = {F32: 2.0**-23, BF16: 2.0**-8, F16: 2.0**-11}[dtype]
    limit = eps * expected.abs() + 2.0**-23 * (3 * k + 16)
    wrong = ~((actual.double() - expected).abs() <= limit)
    assert not wrong.any(), (
        f"{message} {int(wrong.sum())} of {wrong.numel()} differ, the largest by "
        f"{(actual.double() - expected).abs().max():.3g}"
    )


SIZES = [1, 2, 3, 15, 16, 17, 31, 33, 127]
