"""The kernel that rebuilds heads from thin factors, at every level, against its op."""

import pytest
import torch

from infopt.codegen.kernels.low_rank_attention import low_rank_attention
from tests.codegen.kernel_call import call_kernel, every_level, poisoned

NAMES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
FORMATS = {torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
LOOSE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
# B, heads, heads of keys, queries, keys, depth, depth of values, ranks
SHAPES = [
    (1, 1, 1, 1, 1, 1, 1, (1, 1, 1)),
    (2, 2, 2, 17, 7, 7, 5, (3, 8, 17)),
    (1, 4, 2, 33, 130, 16, 24, (16, 33, 5)),
    (2, 3, 3, 129, 65, 64, 64, (48, 48, 192)),
    (1, 2, 2, 20, 300, 50, 64, (70, 20, 31)),
]


def run(level, dtype, tensors, biases, mask, attrs):
    """The kernel with exactly the scratch that it asks for."""
    q, k, v, *ups = tensors
    heads, kv_heads = attrs["heads"], attrs["kv_heads"]
    (b, t, _), s = q.shape, k.shape[1]
    d, dv = ups[0].shape[0] // heads, ups[2].shape[0] // kv_heads
    out = poisoned((b, t, heads, dv), dtype).transpose(1, 2)
    steps = (0, 0, 0, 0) if mask is None else mask.expand(b, heads, t, s).stride()
    numbers = [b, heads, kv_heads, t, s, d, dv, 0, 0, d, 1, 0, 0, d, 1, 0, 0, dv, 1, *steps]
    numbers += [0 if mask is None else 1, *out.stride(), 0, attrs.get("causal", False), 0]
    numbers += [attrs.get("window", 0), attrs["scale"], 0.0, *(x.shape[2] for x in (q, k, v))]
    for x, up in zip((q, k, v), ups, strict=True):
        numbers += [*x.stride()[:2], up.stride(0)]
    numbers += [0 if x is None else FORMATS[x.dtype] for x in biases]

    def lines(size):
        return -(-size // 64) * 64

    rank = max(up.shape[1] for up in ups)
    scratch = lines(4 * (64 * (d + dv) + 128 * 64 + 128 * (d + 1 + dv)))
    scratch += sum(lines(n * q.element_size()) for n in (t * d, s * d, s * dv))
    scratch += 512 * (rank + 1) + 49152 + 384 * (min(-(-rank // 32) * 32, 2048) + 32)
    symbol = f"infopt_low_rank_attention_{NAMES[dtype]}"
    call_kernel(level, symbol, [q, k, v, mask, out, *ups, *biases], numbers, b * kv_heads, scratch)
    return out


@every_level
@pytest.mark.parametrize("dtype", NAMES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_levels(level, dtype, shape):
    torch.manual_seed(0)
    b, heads, kv_heads, t, s, d, dv, ranks = shape
    wide = [torch.randn(b, n, r + 3).to(dtype) for n, r in zip((t, s, s), ranks, strict=True)]
    factors = [x[:, :, 1:-2] for x in wide]  # rows that lie apart
    rows = (heads * d, kv_heads * d, kv_heads * dv)
    ups = [(torch.randn(n, r) / r**0.5).to(dtype) for n, r in zip(rows, ranks, strict=True)]
    biases = [torch.randn(rows[0]), None, torch.randn(rows[2]).to(dtype)]
    mask = torch.rand(b, 1, t, s) > 0.2
    attrs = {"heads": heads, "kv_heads": kv_heads, "scale": 0.3}
    for given, more in ((None, {"causal": True, "window": 9}), (mask, {})):
        found = run(level, dtype, [*factors, *ups], biases, given, attrs | more)
        operands = [*factors, *ups, *biases]
        expected = low_rank_attention.reference(*operands, given, **attrs, **more)
        # levels round weights of bf16 as torch does, not to the bit
        torch.testing.assert_close(found, expected, rtol=LOOSE[dtype], atol=LOOSE[dtype])
        assert found.dtype is dtype
