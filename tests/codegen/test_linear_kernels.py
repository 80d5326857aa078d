"""The native matrix-product kernels against torch in float64, on every level this machine runs."""

import ctypes
import pathlib
import shutil
import struct
import subprocess

import pytest
import torch
import torch.nn.functional as F

import infopt.codegen
from infopt.codegen.formats import stored_format
from infopt.codegen.kernels.stored_calls import ROUNDED_BY_KERNELS
from infopt.compiler.integer_weight import quantize_rows

CSRC = pathlib.Path(infopt.codegen.__file__).resolve().parent / "csrc"
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni"]
LEVELS = {  # name: (compiler flags, /proc/cpuinfo flags it needs)
    "scalar": ([], []),
    "avx2": (["-mavx2", "-mfma", "-mf16c"], ["avx2", "fma", "f16c"]),
    "avx512": (AVX512, ["avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"]),
    "avx512_bf16": ([*AVX512, "-mavx512bf16"], ["avx512_bf16", "avx512_vnni"]),
    "amx": (
        [*AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16", "-mamx-int8"],
        ["amx_tile", "amx_bf16", "avx512_bf16"],
    ),
    "amx_emulated": (["-DINFOPT_EMULATE_AMX", "-O1"], []),
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
GUARD = 64  # elements around every output that must stay untouched

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler (g++)")
pytestmark = needs_compiler


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


class Kernels:
    """One level's library; `run` calls a kernel as the executor would, in two task ranges."""

    def __init__(self, level, folder):
        path = folder / f"linear_{level}.so"
        command = [
            "g++",
            "-O3",
            "-std=c++17",
            "-fPIC",
            "-shared",
            "-fvisibility=hidden",
            "-fno-math-errno",
            "-ffp-contract=off",
            "-w",
            *LEVELS[level][0],
            str(CSRC / "kernels_linear.cpp"),
            *([str(CSRC / "kernels_stored.cpp")] if level == "amx_emulated" else []),
            "-o",
            str(path),
        ]
        subprocess.run(command, check=True)
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


@pytest.fixture(scope="session", params=list(LEVELS))
def kernels(request, tmp_path_factory):
    missing = set(LEVELS[request.param][1]) - cpu_flags()
    if missing:
        pytest.skip(f"this machine lacks {', '.join(sorted(missing))}")
    return Kernels(request.param, tmp_path_factory.mktemp("kernels"))


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


@pytest.mark.parametrize("source", [F32, BF16, F16], ids=NAME.get)
@pytest.mark.parametrize("target", [F32, BF16], ids=NAME.get)
def test_pack_and_unpack(kernels, source, target):
    torch.manual_seed(0)
    for m, k in [(1, 1), (2, 3), (3, 2), (15, 31), (16, 32), (17, 33), (31, 16), (33, 127)]:
        x = random(m, k + 3, dtype=source, offset=1)[:, :k]
        x[0, 0], x[m - 1, k - 1] = float("nan"), float("inf")
        expected = to_panels(x, target)
        panels, check = guarded(*expected.shape, dtype=target, offset=1)
        stride = panel_stride(k, target)
        numbers = [m, k, ROW[source], x.stride(0), PANEL[target], stride]
        kernels.run("pack_panels", [x, panels], numbers, ceil_div(m, 16), 0)
        torch.testing.assert_close(panels, expected, rtol=0, atol=0, equal_nan=True)
        check()
        back, check = guarded(m, k, dtype=F32)
        numbers = [m, k, PANEL[target], stride, ROW[F32], k]
        kernels.run("unpack_panels", [panels, back], numbers, ceil_div(m, 16), 0)
        torch.testing.assert_close(back, x.to(target).float(), rtol=0, atol=0, equal_nan=True)
        check()


def run_linear(
    kernels,
    m,
    n,
    k,
    panel,
    weight,
    *,
    out=F32,
    out_panels=False,
    activation=0,
    bias=None,
    gated=False,
    multiplier=None,
    residual=None,
    chunks=(48, 8),
):
    """One linear with the given options (dtypes of the optional operands); checked."""
    x = random(m, k, dtype=panel)
    w = random(n, k + 1, dtype=weight, offset=1)[:, :k]
    up = random(n, k + 1, dtype=weight, offset=1)[:, :k] if gated else None
    b = random(n, dtype=bias, offset=1) if bias else None
    b_up = random(n, dtype=bias) if bias and gated else None
    mul = random(m, n + 2, dtype=multiplier)[:, :n] if multiplier else None
    res = random(m, n + 1, dtype=residual, offset=1)[:, :n] if residual else None

    compute = panel if kernels.level.startswith(("avx512_bf16", "amx")) else F32
    rounded = [None if t is None else t.to(compute).double() for t in (w, up)]
    y = x.double() @ rounded[0].T
    if b is not None:
        y = y + b.double()
    y = ACTIVATIONS[activation](y)
    if gated:
        u = x.double() @ rounded[1].T
        y = y * (u + b_up.double() if b_up is not None else u)
    if mul is not None:
        y = y * mul.double()
    if res is not None:
        y = y + res.double()

    if out_panels:
        shape = to_panels(torch.zeros(m, n), out).shape
        result, check = guarded(*shape, dtype=out)
        out_numbers = [PANEL[out], panel_stride(n, out)]
    else:
        wide, check = guarded(m, n + 5, dtype=out, offset=1)
        result, out_numbers = wide[:, :n], [ROW[out], n + 5]
    numbers = [
        m,
        n,
        k,
        w.stride(0),
        *chunks,
        activation,
        ROW.get(bias, 0),
        ROW.get(multiplier, 0),
        n + 2,
        ROW.get(residual, 0),
        n + 1,
        *out_numbers,
        panel_stride(k, panel),
    ]
    tasks = ceil_div(n, chunks[0]) * ceil_div(ceil_div(m, 16), chunks[1])
    tensors = [to_panels(x, panel), w, up, b, b_up, mul, res, result]
    kernels.run(
        f"linear_{NAME[panel]}_{NAME[weight]}",
        tensors,
        numbers,
        tasks,
        linear_scratch(k, chunks[1], gated),
    )
    check()
    size = k * (1 + 5 * k**0.5) if gated or multiplier else k  # a product of two sums
    if out_panels:
        full = torch.zeros(result.shape[0] * 16, n, dtype=torch.float64)
        full[:m] = y
        if out == F32:
            result = result.transpose(1, 2).reshape(-1, n)
        else:
            result = result.transpose(1, 2).reshape(-1, result.shape[1] * 2)
            assert (result[:, n:] == 0).all(), "the missing half of the last pair is not 0"
            result = result[:, :n]
        assert (result[m:] == 0).all(), "rows beyond M are not 0"
        assert_close(result, full, out, size)
    else:
        assert wide[:, n:].isnan().all(), "wrote into the gap between rows"
        assert_close(result, y, out, size)


COMBINATIONS = [(F32, F32), (F32, BF16), (F32, F16), (BF16, BF16), (BF16, F32)]
combinations = pytest.mark.parametrize(
    "panel,weight", COMBINATIONS, ids=[f"{NAME[p]}_{NAME[w]}" for p, w in COMBINATIONS]
)


@combinations
def test_linear_odd_sizes(kernels, panel, weight):
    torch.manual_seed(1)
    for i, m in enumerate(SIZES):
        for j, n in enumerate(SIZES):
            k = SIZES[(i + 2 * j) % len(SIZES)]
            run_linear(kernels, m, n, k, panel, weight)


@combinations
def test_linear_blocks_and_chunks(kernels, panel, weight):
    """K beyond one cut, several panels and groups per task, chunks that do not divide."""
    torch.manual_seed(2)
    run_linear(kernels, 50, 100, 2049, panel, weight, chunks=(96, 3))
    run_linear(kernels, 100, 70, 1100, panel, weight, chunks=(34, 2), bias=F32)
    run_linear(kernels, 33, 50, 4100, panel, weight, chunks=(48, 1), gated=True)


@combinations
@pytest.mark.parametrize("out", [F32, BF16, F16], ids=NAME.get)
def test_linear_epilogues(kernels, panel, weight, out):
    torch.manual_seed(3)
    for activation in range(len(ACTIVATIONS)):
        run_linear(kernels, 19, 37, 24, panel, weight, out=out, activation=activation, bias=F32)
    run_linear(kernels, 19, 37, 24, panel, weight, out=out, activation=4, gated=True, bias=BF16)
    run_linear(kernels, 40, 64, 33, panel, weight, out=out, residual=out, bias=F16)
    run_linear(kernels, 18, 20, 40, panel, weight, out=out, multiplier=F32, residual=BF16)


@combinations
@pytest.mark.parametrize("out", [F32, BF16], ids=NAME.get)
def test_linear_to_panels(kernels, panel, weight, out):
    torch.manual_seed(4)
    for m, n in [(1, 1), (17, 33), (32, 48), (40, 95)]:
        run_linear(kernels, m, n, 31, panel, weight, out=out, out_panels=True, bias=F32)
    run_linear(
        kernels,
        40,
        95,
        31,
        panel,
        weight,
        out=out,
        out_panels=True,
        activation=2,
        gated=True,
        residual=F32,
        multiplier=BF16,
    )


def test_residual_in_place_and_in_panels(kernels):
    """y += x wᵀ, where the residual is the output itself, row-major and in panels."""
    torch.manual_seed(5)
    m, n, k = 21, 50, 40
    x, w, y = random(m, k), random(n, k), random(m, n)
    expected = y.double() + x.double() @ w.double().T
    for panels in (False, True):
        result = to_panels(y, F32) if panels else y.clone()
        code, stride = (PANEL[F32], n * 16) if panels else (ROW[F32], n)
        numbers = [m, n, k, k, 48, 2, 0, 0, 0, 0, code, stride, code, stride, k * 16]
        tensors = [to_panels(x, F32), w, None, None, None, None, result, result]
        kernels.run("linear_f32_f32", tensors, numbers, 2, linear_scratch(k, 2, False))
        if panels:
            result = result.transpose(1, 2).reshape(-1, n)[:m]
        assert_close(result, expected, F32, k)


def test_activation_accuracy(kernels):
    """y = act(x * 1) over all magnitudes: 4 units in the last place, and IEEE's special values."""
    exponents = torch.linspace(-30, 6.2, 1000, dtype=torch.float64)
    x = torch.cat(
        [
            2**exponents,
            -(2**exponents),
            torch.linspace(-9, 9, 1000).double(),
            torch.tensor([0.0, float("nan"), float("inf"), 1e30, -1e30]),
        ]
    ).float()
    x = x.reshape(-1, 1)
    m, w = len(x), torch.ones(1, 1)
    for activation, function in enumerate(ACTIVATIONS):
        y, expected = torch.empty(m, 1), function(x.double())
        numbers = [m, 1, 1, 1, 48, 200, activation, 0, 0, 0, 0, 0, ROW[F32], 1, 16]
        kernels.run(
            "linear_f32_f32",
            [to_panels(x, F32), w, None, None, None, None, None, y],
            numbers,
            ceil_div(ceil_div(m, 16), 200),
            linear_scratch(1, 200, False),
        )
        # The GELUs multiply x by a number that is exact to one rounding of 1, as torch's are.
        atol = 6e-8 if activation in (2, 3, 5) else 2e-38
        torch.testing.assert_close(
            y.double(),
            expected,
            rtol=4 * 2.0**-23,
            atol=atol,
            equal_nan=True,
            msg=lambda m, a=activation: f"{a}: {m}",
        )


def few_numbers(m, n, k, x, w, chunk, bias, activation, residual, y):
    return [
        m,
        n,
        k,
        w.stride(0),
        chunk,
        0,
        activation,
        ROW.get(bias, 0),
        0,
        0,
        ROW.get(residual, 0),
        n,
        ROW[y.dtype],
        n,
        x.stride(0),
        ROW[x.dtype],
    ]


@pytest.mark.parametrize("weight", [F32, BF16, F16], ids=NAME.get)
@pytest.mark.parametrize("token", [F32, BF16, F16], ids=NAME.get)
def test_few_rows(kernels, weight, token):
    torch.manual_seed(6)
    for m in [1, 2, 3, 4, 5, 6, 7, 8, 9, 17]:
        for n, k in [(1, 1), (15, 33), (33, 16), (40, 127), (16, 1000)]:
            x = random(m, k + 1, dtype=token, offset=1)[:, :k]
            w = random(n, k + 2, dtype=weight, offset=1)[:, :k]
            b, res = random(n), random(m, n, dtype=weight)
            y, check = guarded(m, n, dtype=token)
            expected = F.gelu(x.double() @ w.double().T + b.double()) + res.double()
            numbers = few_numbers(m, n, k, x, w, 32, F32, 2, weight, y)
            scratch = 4 * m * (ceil_div(k, 32) * 32 + 32)
            kernels.run(
                f"few_rows_{NAME[weight]}",
                [x, w, None, b, None, None, res, y],
                numbers,
                ceil_div(n, 32),
                scratch,
            )
            check()
            assert_close(y, expected, token, k, f"m={m} n={n} k={k}")


def test_few_rows_gated(kernels):
    torch.manual_seed(7)
    m, n, k = 3, 50, 100
    x, w, up, y = random(m, k), random(n, k), random(n, k), torch.empty(m, n)
    expected = F.silu(x.double() @ w.double().T) * (x.double() @ up.double().T)
    numbers = few_numbers(m, n, k, x, w, 16, None, 4, None, y)
    kernels.run(
        "few_rows_f32",
        [x, w, up, None, None, None, None, y],
        numbers,
        ceil_div(n, 16),
        4 * m * (128 + 32),
    )
    assert_close(y, expected, F32, k * (1 + 5 * k**0.5))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_not_finite_propagates(kernels, bad):
    """A bad token or weight reaches exactly the outputs it reaches in torch."""
    torch.manual_seed(8)
    m, n, k = 18, 30, 37
    for activation, function in enumerate(ACTIVATIONS):
        x, w, y = random(m, k), random(n, k), torch.empty(m, n)
        x[17, 36], w[29, 0] = bad, bad
        expected = function(x.double() @ w.double().T)
        numbers = [m, n, k, k, 48, 2, activation, 0, 0, 0, 0, 0, ROW[F32], n, k * 16]
        kernels.run(
            "linear_f32_f32",
            [to_panels(x, F32), w, None, None, None, None, None, y],
            numbers,
            1,
            linear_scratch(k, 2, False),
        )
        torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4, equal_nan=True)
        kernels.run(
            "few_rows_f32",
            [x, w, None, None, None, None, None, y],
            few_numbers(m, n, k, x, w, 32, None, activation, None, y),
            1,
            4 * m * 96,
        )
        torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4, equal_nan=True)


def run_matmul(kernels, a, b, d=None, alpha=1.0, beta=1.0, chunks=(64, 32)):
    """a[..., M, K] @ b[..., K, N] with up to three batch dims, any strides; checked."""
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    m, k, n = *a.shape[-2:], b.shape[-1]
    y, check = guarded(*batch, m, n, dtype=a.dtype)
    padded = [1] * (3 - len(batch)) + list(batch)

    def strides(t):
        if t is None:
            return [0] * 5
        t = t.expand(*padded, *t.shape[-2:])
        return [*t.stride()[3:], *t.stride()[:3]]

    expected = alpha * (a.double() @ b.double())
    if d is not None:
        d = d.expand(*padded, m, n)
        expected = expected + beta * d.double().view(expected.shape)
    bits = [struct.unpack("q", struct.pack("d", value))[0] for value in (alpha, beta)]
    numbers = [
        m,
        n,
        k,
        *padded,
        *chunks,
        *strides(a),
        *strides(b),
        *strides(y),
        *strides(d),
        ROW[d.dtype] if d is not None else 0,
        ROW[y.dtype],
        *bits,
    ]
    tasks = torch.Size(batch).numel() * ceil_div(m, chunks[0]) * ceil_div(n, chunks[1])
    depth = min(ceil_div(k, 32) * 32, 2048)
    columns = ceil_div(chunks[1], 16)
    scratch = 64 * chunks[0] * columns + 64 * columns * depth + 384 * (depth + 32)
    kernels.run(f"matmul_{NAME[a.dtype]}", [a, b, d, y], numbers, tasks, scratch)
    check()
    assert_close(y, expected, a.dtype, k * alpha**2)


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=NAME.get)
def test_matmul(kernels, dtype):
    torch.manual_seed(9)
    for m in SIZES:
        for n, k in [(1, 17), (2, 2), (33, 1), (31, 33), (127, 16)]:
            run_matmul(kernels, random(m, k, dtype=dtype), random(k, n, dtype=dtype))
    a, b = random(2, 3, 20, 33, dtype=dtype), random(2, 3, 40, 33, dtype=dtype)
    run_matmul(kernels, a, b.mT)  # q @ k.T
    run_matmul(kernels, a.mT, b.mT[..., :20, :])  # rows of A strided along k
    run_matmul(kernels, a, b.mT[:1, :1])  # broadcast batch
    run_matmul(kernels, a[..., ::2], b.mT[..., ::2, ::3])  # no unit stride at all
    run_matmul(kernels, random(70, 2100, dtype=dtype), random(2100, 40, dtype=dtype))
    row = random(1, 45, dtype=dtype, offset=1)
    run_matmul(kernels, random(2, 35, 9, dtype=dtype), random(9, 45, dtype=dtype), row, 0.5, 2.0)


def byte_panels(codes, steps, zeros):
    """The memory of codegen/csrc/byte_panels.h for codes [M, K], steps and zeros [M, 1]."""
    m, k = codes.shape
    panels = ceil_div(m, 16)
    padded = torch.zeros(panels * 16, ceil_div(k, 4) * 4, dtype=torch.uint8)
    padded[:m, :k] = codes.to(torch.uint8)
    ordered = padded.reshape(panels, 16, -1, 4).transpose(1, 2).reshape(-1)
    numbers = torch.zeros(2, panels * 16)
    numbers[0, :m], numbers[1, :m] = steps[:, 0], zeros[:, 0].to(torch.int32).view(F32)
    return torch.cat([ordered, numbers.reshape(-1).view(torch.uint8)])


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=NAME.get)
def test_quantize_panels(kernels, dtype):
    """Codes, steps and zero points are those of the reference, to the bit, in every rounding."""
    torch.manual_seed(20)
    for m, k in [(1, 1), (3, 2), (17, 5), (16, 64), (31, 67), (2, 200), (40, 129)]:
        x = random(m, k + 3, dtype=dtype, offset=1)[:, :k]
        for row, value in zip(range(1, m), (0.0, 3.5, -2.0, 1e-38), strict=False):
            x[row] = value
        for number, rounding in enumerate(ROUNDED_BY_KERNELS):
            if dtype is not F32 and "per-token" in rounding:
                continue
            codes, steps, zeros = quantize_rows(x, rounding)
            if number == 0:  # rows of zeros, whatever their step is
                steps[x.float().abs().amax(-1) < 1e-35] = 0
            expected = byte_panels(codes, steps, zeros)
            found = torch.full_like(expected, 77)
            numbers = [m, k, ROW[dtype], k + 3, number]
            kernels.run("quantize_panels", [x, found], numbers, ceil_div(m, 16), 0)
            assert torch.equal(found, expected), (m, k, rounding)


def run_bytes(kernels, codes, weight, *, zeros=None, up=None, out=F32, chunks=(48, 8)):
    """Products of bytes [M, K] with int8 [N, K]: exact but for the scaling of the result."""
    (m, k), n = codes.shape, weight.shape[0]
    zeros = torch.randint(0, 256, (m, 1)).float() if zeros is None else zeros
    steps, scales, up_scales = torch.rand(m, 1) + 0.5, torch.rand(n), torch.rand(n)
    bias, residual = random(n), random(m, n + 1, offset=1)[:, :n]

    def product(w, scale):
        exact = (codes.long() - zeros.long()) @ w.long().T
        return exact.double() * steps.double() * scale.double()

    expected = product(weight, scales)
    size = expected.abs()
    expected = expected + bias.double()
    size = size + bias.abs()
    if up is not None:
        other = product(up, up_scales)
        expected, size = torch.relu(expected) * other, size * other.abs()
    expected, size = expected + residual.double(), size + residual.abs()
    y, check = guarded(m, n, dtype=out, offset=1)
    sums = [None if w is None else w.sum(-1, dtype=torch.int32).float() for w in (weight, up)]
    pointers = [byte_panels(codes, steps, zeros), weight, up, bias, None, None, residual, y]
    pointers += [scales, up_scales if up is not None else None, *sums]
    numbers = [m, n, k, weight.stride(0), *chunks, 0 if up is None else 1, ROW[F32], 0, 0]
    numbers += [ROW[F32], n + 1, ROW[out], n, ceil_div(k, 4) * 64]
    tasks = ceil_div(n, chunks[0]) * ceil_div(ceil_div(m, 16), chunks[1])
    kernels.run("linear_bytes", pointers, numbers, tasks, 6144 * chunks[1] * (1 + (up is not None)))
    check()
    limit = 8 * 2.0**-24 * size + {F32: 0, BF16: 2.0**-8}[out] * expected.abs()
    wrong = ~((y.double() - expected).abs() <= limit)
    assert not wrong.any(), f"m={m} n={n} k={k}: {int(wrong.sum())} of {wrong.numel()} differ"


def bytes_of(*shape, low, high):
    return torch.randint(low, high + 1, shape).to(torch.uint8 if low == 0 else torch.int8)


def test_linear_bytes_odd_sizes(kernels):
    torch.manual_seed(21)
    for i, m in enumerate(SIZES):
        for j, n in enumerate(SIZES):
            k = [1, 3, 4, 5, 63, 64, 65, 130, 259][(i + 2 * j) % 9]
            weight = bytes_of(n, k + 3, low=-127, high=127)[:, :k]
            run_bytes(kernels, bytes_of(m, k, low=0, high=255), weight)


def test_linear_bytes_blocks_gates_and_bf16(kernels):
    """K beyond one cut of a panel, several panels and groups of rows, chunks that do not divide."""
    torch.manual_seed(22)
    codes, weight = bytes_of(50, 4100, low=0, high=255), bytes_of(150, 4100, low=-127, high=127)
    run_bytes(kernels, codes, weight, chunks=(96, 3))
    run_bytes(kernels, codes[:33], weight[:70], up=weight[80:], chunks=(34, 2), out=BF16)


@pytest.mark.parametrize("low,high", [(127, 127), (-127, -127), (-127, 127)])
def test_linear_bytes_never_saturate(kernels, low, high):
    """The largest sums there are, in 16 bits of two neighbours and in 32 of a row."""
    torch.manual_seed(23)
    k = 65536 if (low, high) != (-127, 127) else 8192
    weight = torch.where(torch.rand(18, k) < 0.5, low, high).to(torch.int8)
    zeros = torch.tensor([[0.0], [255.0], [128.0]])
    codes = torch.tensor([[255], [0], [255]], dtype=torch.uint8).expand(3, k)
    run_bytes(kernels, codes, weight, zeros=zeros, chunks=(48, 1))


@pytest.mark.parametrize("format", ["int8-g32", "int8-g64", "int4-g64", "int4-g128-f32"])
def test_groups_of_bytes_on_tiles(kernels, format):
    """What tests/codegen/test_quantized_kernels.py does where there are tiles."""
    if kernels.level != "amx_emulated":
        pytest.skip("the other levels run in test_quantized_kernels.py")
    torch.manual_seed(24)
    codec = stored_format(format)
    for m, n, k in [(1, 1, 1), (17, 40, 130), (40, 100, 4400)]:
        codes, steps, zeros = quantize_rows(random(m, k))
        values, scales = codec.encode(random(n, k))
        sums, y = codec.sums(values, scales, k), torch.empty(m, n)
        pointers = [byte_panels(codes, steps, zeros), values, *[None] * 5, y]
        numbers = [m, n, k, values.stride(0), 96, 2, *[0] * 6, ROW[F32], n, ceil_div(k, 4) * 64]
        kernels.run(
            "linear_stored_bytes",
            [*pointers, scales, None, sums, None],
            [*numbers, codec.bits, codec.group, scales.stride(0), scales.itemsize],
            ceil_div(n, 96) * ceil_div(ceil_div(m, 16), 2),
            6144 * 2 + 96 * (min(ceil_div(k, 64) * 64, 4096) + 64),
        )
        x = (codes.double() - zeros.double()) * steps.double()
        expected = x @ codec.decode(values, scales, k).double().T
        assert (y - expected).norm() <= 1e-5 * expected.norm(), (m, n, k)
