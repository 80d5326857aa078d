"""The attention kernels against torch's scaled_dot_product_attention in float64."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.codegen.kernel_call import call_kernel, every_level, panels, poisoned

NAMES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
MASK_KINDS = {torch.bool: 1, torch.float32: 2, torch.bfloat16: 3, torch.float16: 4}
# bf16 machines round the weights to bf16, as torch does.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
every_float = pytest.mark.parametrize("dtype", NAMES, ids=str)


@dataclass(frozen=True)
class Options:
    mask: torch.Tensor | None = None
    causal: bool = False
    offset: int = 0
    window: int = 0
    scale: float = 0.125
    softcap: float = 0.0
    in_panels: bool = False


def attention(
    level: str,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    options: Options,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The kernel's result, [B, Hq, Tq, Dv] by default in memory as [B, Tq, Hq, Dv]."""
    batches, heads, queries, depth = q.shape
    kv_heads, keys, value_depth = k.shape[1], k.shape[2], v.shape[3]
    if options.in_panels:
        out = poisoned(panels(q.new_zeros(batches * queries, heads * value_depth)).shape, q.dtype)
    elif out is None:
        out = poisoned((batches, queries, heads, value_depth), q.dtype).transpose(1, 2)
    mask, mask_strides = options.mask, (0, 0, 0, 0)
    if mask is not None:
        mask_strides = mask.expand(batches, heads, queries, keys).stride()
    numbers = [batches, heads, kv_heads, queries, keys, depth, value_depth]
    numbers += [*q.stride(), *k.stride(), *v.stride(), *mask_strides]
    numbers += [0 if mask is None else MASK_KINDS[mask.dtype]]
    numbers += [0] * 4 if options.in_panels else [*out.stride()]
    numbers += [options.in_panels, options.causal, options.offset, options.window]
    numbers += [options.scale, options.softcap]
    if heads > kv_heads and queries <= 16:
        tasks = batches * kv_heads * -(-heads // kv_heads * queries // 64)
    else:
        tasks = batches * heads * -(-queries // 64)
    scratch = 4 * (64 * (depth + value_depth) + 128 * 64 + 128 * (depth + 1 + value_depth))
    name = f"infopt_attention_{NAMES[q.dtype]}"
    call_kernel(level, name, [q, k, v, mask, out], numbers, tasks, scratch)
    return out


def expected(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: Options) -> torch.Tensor:
    """The definition, in float64."""
    group = q.shape[1] // k.shape[1]
    q, k, v = q.double(), k.double().repeat_interleave(group, 1), v.double()
    v = v.repeat_interleave(group, 1)
    scores = options.scale * q @ k.transpose(-1, -2)
    if options.softcap:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    if options.mask is not None and options.mask.dtype == torch.bool:
        scores = scores.masked_fill(~options.mask, -math.inf)
    elif options.mask is not None:
        scores = scores + options.mask.double()
    if options.causal:
        last = torch.arange(q.shape[2])[:, None] + options.offset
        at = torch.arange(k.shape[2])
        seen = at <= last
        if options.window:
            seen &= at > last - options.window
        scores = scores.masked_fill(~seen, -math.inf)
    nothing = (scores == -math.inf).all(-1, keepdim=True)
    return torch.softmax(scores, -1).masked_fill(nothing, 0.0) @ v


def random_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, layout: str = "tokens"
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batches, heads, kv_heads, queries, keys, depth, value_depth = shape

    def make(tokens: int, heads: int, depth: int) -> torch.Tensor:
        if layout == "heads":
            return torch.randn(batches, heads, tokens, depth).to(dtype)
        if layout == "wide":  # a slice of something larger
            return torch.randn(batches, heads, tokens + 2, depth + 3).to(dtype)[:, :, 1:-1, 2:-1]
        if layout == "features":  # features are not neighbours
            return torch.randn(batches, heads, depth, tokens).to(dtype).transpose(2, 3)
        return torch.randn(batches, tokens, heads, depth).to(dtype).transpose(1, 2)

    return (
        make(queries, heads, depth),
        make(keys, kv_heads, depth),
        make(keys, kv_heads, value_depth),
    )


def assert_close(actual: torch.Tensor, reference: torch.Tensor, dtype: torch.dtype) -> None:
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(
        actual.double(), reference, rtol=tolerance, atol=tolerance, equal_nan=True
    )


# B, Hq, Hkv, Tq, Tk, D, Dv
SHAPES = [
    (1, 1, 1, 1, 1, 1, 1),
    (2, 2, 2, 7, 7, 7, 7),
    (1, 2, 2, 16, 16, 16, 16),
    (2, 3, 3, 33, 300, 17, 19),
    (1, 2, 2, 130, 129, 64, 64),
    (2, 2, 2, 64, 64, 64, 64),
    (1, 1, 1, 197, 197, 80, 80),
    (1, 4, 4, 40, 257, 32, 48),
    (3, 3, 3, 3, 3, 32, 32),
    # grouped heads, few queries and many
    (1, 4, 1, 5, 70, 32, 32),
    (2, 6, 2, 1, 129, 64, 64),
    (1, 8, 2, 16, 140, 64, 64),
    (2, 4, 2, 90, 90, 24, 24),
    (1, 32, 1, 8, 33, 16, 16),
    # decoding
    (2, 3, 3, 1, 500, 64, 64),
    (1, 2, 2, 4, 130, 33, 20),
    (1, 8, 4, 2, 257, 128, 128),
]


@every_level
@every_float
class TestAttention:
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_shapes(self, level: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        q, k, v = random_inputs(shape, dtype)
        options = Options()
        out = attention(level, q, k, v, options)
        assert_close(out, expected(q, k, v, options), dtype)
        causal = replace(options, causal=True)
        assert_close(attention(level, q, k, v, causal), expected(q, k, v, causal), dtype)
        if dtype != torch.float16:
            rows = out.transpose(1, 2).flatten(0, 1).flatten(1)
            in_panels = attention(level, q, k, v, replace(options, in_panels=True))
            assert torch.equal(in_panels, panels(rows))

    @pytest.mark.parametrize("layout", ["heads", "wide", "features"])
    @pytest.mark.parametrize(
        "shape", [(2, 4, 2, 20, 140, 33, 32), (1, 2, 2, 2, 70, 64, 64)], ids=str
    )
    def test_layouts(
        self, level: str, dtype: torch.dtype, layout: str, shape: tuple[int, ...]
    ) -> None:
        q, k, v = random_inputs(shape, dtype, layout)
        options = Options(scale=-0.2)
        out = torch.empty_like(expected(q, k, v, options).to(dtype)).fill_(math.nan)
        assert_close(attention(level, q, k, v, options, out), expected(q, k, v, options), dtype)
        apart = poisoned((*out.shape[:3], 2 * out.shape[3]), dtype)[..., ::2]
        assert torch.equal(attention(level, q, k, v, options, apart), out)

    @pytest.mark.parametrize(
        "shape", [(2, 4, 4, 90, 150, 16, 16), (2, 4, 2, 3, 150, 16, 16)], ids=str
    )
    def test_masks(self, level: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        q, k, v = random_inputs(shape, dtype)
        batches, heads, _, queries, keys = shape[:5]
        sizes = [
            (batches, 1, 1, keys),
            (1, 1, queries, keys),
            (1, heads, queries, 1),
            (batches, heads, queries, keys),
            (1, heads, 1, 1),
        ]
        for size in sizes:
            masks = [torch.rand(size) > 0.3, torch.randn(size[::-1]).permute(3, 2, 1, 0)]
            masks += [torch.randn(size).to(kind) for kind in (torch.float32, dtype)]
            for mask in masks:
                options = Options(mask=mask)
                assert_close(attention(level, q, k, v, options), expected(q, k, v, options), dtype)
        both = Options(mask=torch.randn(1, 1, queries, keys), causal=True, offset=keys - queries)
        assert_close(attention(level, q, k, v, both), expected(q, k, v, both), dtype)

    @pytest.mark.parametrize("offset", [0, 13, -5, 200])
    @pytest.mark.parametrize("window", [0, 1, 40, 1000])
    @pytest.mark.parametrize(
        "shape", [(1, 2, 1, 100, 300, 16, 16), (1, 4, 2, 3, 140, 32, 32)], ids=str
    )
    def test_causal(
        self, level: str, dtype: torch.dtype, offset: int, window: int, shape: tuple[int, ...]
    ) -> None:
        q, k, v = random_inputs(shape, dtype)
        options = Options(causal=True, offset=offset, window=window)
        assert_close(attention(level, q, k, v, options), expected(q, k, v, options), dtype)

    @pytest.mark.parametrize("queries", [1, 40])
    def test_softcap(self, level: str, dtype: torch.dtype, queries: int) -> None:
        q, k, v = random_inputs((1, 2, 2, queries, 200, 32, 32), dtype)
        for scale in (1.0, -1.0):
            options = Options(scale=scale, softcap=3.0)
            assert_close(attention(level, q, k, v, options), expected(q, k, v, options), dtype)


@every_level
@every_float
@pytest.mark.parametrize("queries", [2, 33])
class TestAsTorch:
    """Rows without keys, extreme masks and values that are not finite: exactly torch's answers."""

    def torch_answer(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: Options
    ) -> torch.Tensor:
        mask = options.mask
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.to(q.dtype)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(
                q, k, v, mask, is_causal=options.causal, scale=options.scale
            ).double()

    @pytest.mark.parametrize("kind", ["bool", "-inf", "lowest", "inf", "nan"])
    def test_masked_rows(self, level: str, dtype: torch.dtype, queries: int, kind: str) -> None:
        q, k, v = random_inputs((1, 2, 2, queries, 150, 32, 32), dtype)
        mask = torch.zeros(queries, 150)
        row = {"bool": -math.inf, "lowest": torch.finfo(torch.float32).min}
        mask[1] = row[kind] if kind in row else float(kind)
        if kind in ("inf", "nan"):
            mask[1, 1:] = 0
        mask[0, 100:] = -math.inf
        # In 16 bits torch's mask cannot hold the lowest f32, and its flash kernel forgets +inf.
        if dtype == torch.float32 or kind not in ("lowest", "inf"):
            options = Options(mask=mask if kind != "bool" else mask == 0)
            out = attention(level, q, k, v, options)
            assert_close(out, self.torch_answer(q, k, v, options), dtype)

    def test_no_keys(self, level: str, dtype: torch.dtype, queries: int) -> None:
        q, k, v = random_inputs((1, 2, 2, queries, 5, 32, 32), dtype)
        out = attention(level, q, k[:, :, :0], v[:, :, :0], Options())
        assert torch.equal(out, torch.zeros_like(out))

    def test_nan_in_hidden_keys(self, level: str, dtype: torch.dtype, queries: int) -> None:
        q, k, v = random_inputs((1, 2, 2, queries, queries, 32, 32), dtype)
        k[:, :, -1] = math.nan
        causal = Options(causal=True)
        out = attention(level, q, k, v, causal)
        assert torch.equal(out.isnan(), expected(q, k, v, causal).isnan())
        keep = torch.ones(queries, queries, dtype=torch.bool)
        keep[:, -1] = False
        masked = Options(mask=keep)
        assert attention(level, q, k, v, masked).isnan().all()
        assert self.torch_answer(q, k, v, masked).isnan().all()

    def test_large_scores(self, level: str, dtype: torch.dtype, queries: int) -> None:
        q, k, v = random_inputs((1, 2, 2, queries, 300, 32, 32), dtype)
        options = Options(scale=20.0)
        out = attention(level, q, k, v, options).double()
        reference = expected(q, k, v, options)
        if dtype == torch.float32:
            torch.testing.assert_close(out, reference, rtol=3e-4, atol=3e-4)
        else:
            torch.testing.assert_close(out, reference, rtol=4e-2, atol=4e-2)
