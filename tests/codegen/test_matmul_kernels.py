"""The native batched product against torch in float64, on every level this machine runs."""

import struct

import pytest
import torch

from tests.codegen.product_kernels import (
    BF16,
    F16,
    F32,
    NAME,
    ROW,
    SIZES,
    assert_close,
    ceil_div,
    guarded,
    random,
)


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
