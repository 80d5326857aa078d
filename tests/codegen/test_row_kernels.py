"""Norms, softmax, embeddings, rotary embedding and copies against torch in float64."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.codegen.kernel_call import (
    DTYPE_CODES,
    call_kernel,
    every_level,
    panels,
    poisoned,
)

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
# One rounding to the type, and f32 arithmetic before it.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 5e-3, torch.float16: 6e-4}
every_float = pytest.mark.parametrize("dtype", FLOATS, ids=str)


def row_scratch(width: int, rows: int = 1) -> int:
    return 4 * rows * (-(-width // 16) * 16)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=tolerance, atol=tolerance, equal_nan=True
    )


def norm(
    level: str,
    x: torch.Tensor,
    *,
    residual: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    out: torch.Tensor,
    total: torch.Tensor | None = None,
    rms: bool = False,
    in_panels: bool = False,
    rows_per_task: int = 16,
    round_first: bool = False,
    one_plus_weight: bool = False,
) -> torch.Tensor:
    rows, width = x.shape

    def code(t: torch.Tensor | None) -> int:
        return DTYPE_CODES[(x if t is None else t).dtype]

    numbers = [
        rows,
        width,
        rows_per_task,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        0 if in_panels else out.stride(0),
        0 if total is None else total.stride(0),
        eps,
        in_panels,
        code(x),
        code(residual),
        code(weight),
        code(out),
        code(total),
        0,
        round_first,
        one_plus_weight,
    ]
    name = "infopt_rms_norm" if rms else "infopt_layer_norm"
    tasks = -(-rows // rows_per_task)
    tensors = [x, residual, weight, bias, out, total]
    call_kernel(level, name, tensors, numbers, tasks, row_scratch(width, 18))
    return out


NORM_SHAPES = [(1, 1), (3, 7), (16, 16), (17, 33), (40, 384), (5, 768), (33, 100)]


@every_level
@every_float
class TestNorm:
    @pytest.mark.parametrize("shape", NORM_SHAPES, ids=str)
    def test_layer_norm(self, level: str, dtype: torch.dtype, shape: tuple[int, int]) -> None:
        x, weight, bias = torch.randn(shape), torch.randn(shape[1]), torch.randn(shape[1])
        x, weight, bias = (3 * x + 1).to(dtype), weight.to(dtype), bias.to(dtype)
        expected = F.layer_norm(x.double(), shape[1:], weight.double(), bias.double(), 1e-5)
        out = norm(level, x, weight=weight, bias=bias, out=poisoned(shape, dtype))
        assert_close(out, expected, dtype)
        bare = norm(level, x, out=poisoned(shape, dtype), rows_per_task=5)
        assert_close(bare, F.layer_norm(x.double(), shape[1:]), dtype)
        if dtype != torch.float16:
            written = norm(
                level,
                x,
                weight=weight,
                bias=bias,
                in_panels=True,
                out=poisoned(panels(x).shape, dtype),
            )
            assert torch.equal(written[:, : shape[1]], written[:, : shape[1]]), "NaN in panels"
            torch.testing.assert_close(written, panels(out), rtol=1e-2, atol=1e-6)

    @pytest.mark.parametrize("shape", NORM_SHAPES, ids=str)
    def test_sum_first(self, level: str, dtype: torch.dtype, shape: tuple[int, int]) -> None:
        wide = torch.randn(shape[0], shape[1] + 3).to(dtype)
        x, residual = wide[:, :-3], torch.randn(shape).to(dtype)
        weight = torch.randn(shape[1])
        total = poisoned(shape, dtype)
        out = norm(
            level, x, residual=residual, weight=weight, out=poisoned(shape, dtype), total=total
        )
        assert torch.equal(total, x + residual)
        expected = F.layer_norm((x + residual).double(), shape[1:], weight.double())
        assert_close(out, expected, dtype)
        # The residual stream may be written over.
        again = norm(level, x, residual=residual, weight=weight, out=residual)
        assert torch.equal(again, out)

    @pytest.mark.parametrize("form", ["torch", "transformers", "gemma"])
    @pytest.mark.parametrize("shape", NORM_SHAPES, ids=str)
    def test_rms_norm(
        self, level: str, dtype: torch.dtype, shape: tuple[int, int], form: str
    ) -> None:
        x, weight = torch.randn(shape).to(dtype), torch.randn(shape[1]).to(dtype)
        scaled = x.double() * torch.rsqrt(x.double().square().mean(-1, keepdim=True) + 1e-6)
        if form == "transformers":
            expected = scaled.to(dtype).double() * weight.double()
        else:
            expected = scaled * (weight.double() + (form == "gemma"))
        out = norm(
            level,
            x,
            weight=weight,
            eps=1e-6,
            out=poisoned(shape, dtype),
            rms=True,
            round_first=form == "transformers",
            one_plus_weight=form == "gemma",
        )
        if form == "transformers" and dtype != torch.float32:
            # A value between two floats may fall to either side before the second rounding.
            expected_step = torch.finfo(dtype).eps * 2
            torch.testing.assert_close(
                out.double(), expected, rtol=expected_step, atol=expected_step
            )
        else:
            assert_close(out, expected, dtype)


@every_level
class TestNormNumbers:
    def test_mixed_types(self, level: str) -> None:
        x, weight = torch.randn(20, 64), torch.randn(64, dtype=torch.bfloat16)
        out = norm(level, x, weight=weight, out=poisoned((20, 64), torch.bfloat16))
        assert_close(out, F.layer_norm(x.double(), (64,), weight.double()), torch.bfloat16)

    def test_large_common_offset(self, level: str) -> None:
        x = torch.randn(4, 768) + 1e4
        out = norm(level, x, out=poisoned(x.shape, x.dtype))
        expected = F.layer_norm(x.double(), (768,))
        ours = (out - expected).abs().max()
        assert ours <= 2e-5, "the deviations are exact, so only the mean's last bits may show"

    def test_constant_rows_and_non_finite_values(self, level: str) -> None:
        x = torch.ones(5, 40)
        x[1, 3], x[2, 4], x[3, 5] = math.inf, -math.inf, math.nan
        out = norm(level, x, out=poisoned(x.shape, x.dtype))
        assert torch.equal(out.isnan(), F.layer_norm(x, (40,)).isnan())
        assert_close(out, F.layer_norm(x, (40,)), torch.float32)


def softmax(
    level: str,
    x: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    logarithm: bool = False,
    scale: float = 1.0,
    out: torch.Tensor,
) -> torch.Tensor:
    sizes, rows_per_task = x.shape, 3
    spread = torch.zeros(()).expand(x.shape) if mask is None else mask.expand(x.shape)
    numbers = [
        *sizes,
        rows_per_task,
        *x.stride()[:3],
        *spread.stride(),
        *out.stride()[:3],
        DTYPE_CODES[x.dtype],
        0 if mask is None else DTYPE_CODES[mask.dtype],
        DTYPE_CODES[out.dtype],
        logarithm,
        scale,
    ]
    tasks = -(-sizes[0] * sizes[1] * sizes[2] // rows_per_task)
    tensors = [x, mask, out]
    call_kernel(level, "infopt_softmax", tensors, numbers, tasks, row_scratch(sizes[3]))
    return out


@every_level
@every_float
@pytest.mark.parametrize("width", [1, 5, 16, 31, 128, 1000])
@pytest.mark.parametrize("logarithm", [False, True], ids=["softmax", "log"])
class TestSoftmax:
    def test_rows(self, level: str, dtype: torch.dtype, width: int, logarithm: bool) -> None:
        function = torch.log_softmax if logarithm else torch.softmax
        x = (5 * torch.randn(2, 3, 4, width)).to(dtype).transpose(0, 1)
        out = softmax(level, x, logarithm=logarithm, out=poisoned(x.shape, dtype))
        assert_close(out, function(x.double(), -1), dtype)

    def test_masks(self, level: str, dtype: torch.dtype, width: int, logarithm: bool) -> None:
        function = torch.log_softmax if logarithm else torch.softmax
        x = torch.randn(2, 3, 4, width).to(dtype)
        masks = [
            torch.randn(2, 1, 1, width),
            torch.randn(1, 3, 4, width).to(dtype),
            torch.randn(2, 3, 4, 1),
        ]
        for mask in masks:
            out = softmax(
                level, x, mask, logarithm=logarithm, scale=0.25, out=poisoned(x.shape, x.dtype)
            )
            assert_close(out, function(x.double() * 0.25 + mask.double(), -1), dtype)
        keep = torch.rand(2, 1, 4, width) > 0.4
        keep[..., 0] = True
        out = softmax(level, x, keep, logarithm=logarithm, out=poisoned(x.shape, x.dtype))
        assert_close(out, function(x.double().masked_fill(~keep, -math.inf), -1), dtype)

    def test_non_finite(self, level: str, dtype: torch.dtype, width: int, logarithm: bool) -> None:
        function = torch.log_softmax if logarithm else torch.softmax
        x = torch.randn(1, 1, 5, width).to(dtype)
        x[0, 0, 0, -1], x[0, 0, 1, 0], x[0, 0, 2, -1] = math.inf, -math.inf, math.nan
        x[0, 0, 3] = -math.inf
        x[0, 0, 4] = torch.finfo(dtype).min
        out = softmax(level, x, logarithm=logarithm, out=poisoned(x.shape, dtype))
        assert_close(out, function(x.double(), -1), dtype)


@every_level
@every_float
class TestEmbedding:
    @pytest.mark.parametrize("ids_dtype", [torch.int64, torch.int32], ids=str)
    def test_rows(self, level: str, dtype: torch.dtype, ids_dtype: torch.dtype) -> None:
        table = torch.randn(11, 40).to(dtype)[:, :33]
        ids = torch.randint(0, 11, (37,), dtype=ids_dtype)
        for out_dtype in (dtype, torch.float32):
            out, error = poisoned((37, 33), out_dtype), torch.zeros(1, dtype=torch.int32)
            numbers = [37, 33, 10, 11, 40, 33]
            numbers += [DTYPE_CODES[t] for t in (ids_dtype, dtype, out_dtype)]
            call_kernel(level, "infopt_embedding", [ids, table, out, error], numbers, 4, 0)
            assert error.item() == 0
            assert torch.equal(out, F.embedding(ids, table).to(out_dtype))

    def test_bad_ids_are_reported_and_read_nothing(self, level: str, dtype: torch.dtype) -> None:
        table = torch.randn(11, 32).to(dtype)
        for bad in (-1, 11, 2**40, -(2**62)):
            ids = torch.tensor([3, bad, 10])
            out, error = poisoned((3, 32), dtype), torch.zeros(1, dtype=torch.int32)
            code = DTYPE_CODES[dtype]
            numbers = [3, 32, 2, 11, 32, 32, DTYPE_CODES[torch.int64], code, code]
            call_kernel(level, "infopt_embedding", [ids, table, out, error], numbers, 2, 0)
            assert error.item() == 1
            assert torch.equal(out[::2], table[[3, 10]]) and not out[1].any()

    @pytest.mark.parametrize("in_panels", [False, True], ids=["rows", "panels"])
    @pytest.mark.parametrize("tokens,width", [(1, 16), (7, 33), (16, 64), (20, 20)])
    def test_sum_and_norm(
        self, level: str, dtype: torch.dtype, tokens: int, width: int, in_panels: bool
    ) -> None:
        if in_panels and dtype == torch.float16:
            pytest.skip("token panels are f32 or bf16")
        batches = 3
        words, places, kinds = (torch.randn(n, width).to(dtype) for n in (50, 30, 2))
        ids = torch.randint(0, 50, (batches, tokens))
        kind_ids = torch.randint(0, 2, (1, tokens), dtype=torch.int32)
        weight, bias = torch.randn(width), torch.randn(width)
        rows = batches * tokens
        total = (words[ids] + kinds[kind_ids]) + places[:tokens]
        expected = F.layer_norm(total.double(), (width,), weight.double(), bias.double(), 1e-12)
        expected = expected.view(rows, width)
        code = DTYPE_CODES[dtype]
        numbers = [batches, tokens, width, 16, width, 1e-12, in_panels, code, 0, code]
        numbers += [4, tokens, 1, 50, width]
        numbers += [5, 0, 1, 2, width]
        numbers += [4, 0, 0, 30, width]
        shape = panels(expected.to(dtype)).shape if in_panels else (rows, width)
        out, error = poisoned(shape, dtype), torch.zeros(1, dtype=torch.int32)
        tensors = [ids, kind_ids, None, words, kinds, places, weight, bias, out, error]
        scratch = row_scratch(width, 18)
        call_kernel(level, "infopt_embedding_norm", tensors, numbers, -(-rows // 16), scratch)
        assert error.item() == 0
        assert_close(out, panels(expected.to(dtype)) if in_panels else expected, dtype)
        ids[1, 0] = 50
        call_kernel(level, "infopt_embedding_norm", tensors, numbers, -(-rows // 16), scratch)
        assert error.item() == 1


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat((-b, a), -1)


def rotate_pairs(x: torch.Tensor) -> torch.Tensor:
    return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)


@every_level
@every_float
@pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "pairs"])
@pytest.mark.parametrize("per_pair", [False, True], ids=["full", "half"])
@pytest.mark.parametrize("depth,rotated", [(64, 64), (10, 10), (80, 32), (7, 6), (36, 36)])
def test_rotary(
    level: str, dtype: torch.dtype, interleaved: bool, per_pair: bool, depth: int, rotated: int
) -> None:
    batches, tokens, heads, kv_heads = 2, 5, 3, 1
    q = torch.randn(batches, tokens, heads, depth).to(dtype).transpose(1, 2)
    k = torch.randn(batches, kv_heads, tokens, depth).to(dtype)
    angles = torch.randn(batches, tokens, rotated // 2)
    if not per_pair:
        angles = angles.repeat_interleave(2, -1) if interleaved else torch.cat([angles] * 2, -1)
    cos, sin = angles.cos(), angles.sin()
    q_out, k_out = poisoned(q.shape, dtype), poisoned(k.shape, dtype)
    numbers = [batches, tokens, depth, rotated, interleaved, per_pair, *cos.stride()[:2]]
    numbers += [DTYPE_CODES[dtype], 0, 2]
    numbers += [heads, *q.stride()[:3], *q_out.stride()[:3]]
    numbers += [kv_heads, *k.stride()[:3], *k_out.stride()[:3]]
    scratch = 2 * row_scratch(rotated)
    tensors = [q, k, cos, sin, q_out, k_out]
    call_kernel(level, "infopt_rotary", tensors, numbers, 5, scratch)
    if per_pair:
        spread = [
            t.repeat_interleave(2, -1) if interleaved else torch.cat([t, t], -1) for t in (cos, sin)
        ]
    else:
        spread = [cos, sin]
    c, s = (t.double()[:, None] for t in spread)
    turn = rotate_pairs if interleaved else rotate_half

    def expected(x: torch.Tensor) -> torch.Tensor:
        head, rest = x.double()[..., :rotated], x.double()[..., rotated:]
        return torch.cat((head * c + turn(head) * s, rest), -1)

    assert_close(q_out, expected(q), dtype)
    assert_close(k_out, expected(k), dtype)
    before = q_out.clone()
    same = q.clone(memory_format=torch.preserve_format)
    numbers[12:18] = [*same.stride()[:3]] * 2
    call_kernel(level, "infopt_rotary", [same, None, cos, sin, same, None], numbers, 5, scratch)
    assert torch.equal(same, before)


def copy(level: str, x: torch.Tensor, out: torch.Tensor, tasks: int = 4) -> torch.Tensor:
    def padded(values: tuple[int, ...]) -> list[int]:
        return [*values, *[0] * (6 - len(values))]

    numbers = [x.dim(), DTYPE_CODES[x.dtype], DTYPE_CODES[out.dtype], tasks]
    numbers += padded(x.shape) + padded(x.stride()) + padded(out.stride())
    call_kernel(level, "infopt_copy", [x, out], numbers, tasks, 0)
    return out


def samples(dtype: torch.dtype, count: int) -> torch.Tensor:
    """Values that are hard to cast: negative, out of range, halfway, not finite, denormal."""
    if dtype == torch.bool:
        return torch.rand(count) > 0.5
    if not dtype.is_floating_point:
        info = torch.iinfo(dtype)
        x = torch.randint(info.min, info.max, (count,), dtype=dtype)
        x[:4] = torch.tensor([info.min, info.max, 0, 1], dtype=dtype)
        return x
    x = torch.randn(count, dtype=torch.float64) * 10.0 ** torch.randint(-6, 12, (count,))
    special = [0.0, -0.0, 0.5, -0.5, 300.7, -300.7, 3e9, -3e9, 1e20, 2.0**31, -(2.0**31)]
    special += [2.0**63, -(2.0**63), 2.0**31 - 0.5, -(2.0**31) - 0.5, 1e-40, -3e-39, 65520.0]
    special += [math.inf, -math.inf, math.nan]
    x[: len(special)] = torch.tensor(special, dtype=torch.float64)
    return x.to(dtype)


@every_level
class TestCopy:
    @pytest.mark.parametrize("source", DTYPE_CODES, ids=str)
    def test_casts_are_torch_s(self, level: str, source: torch.dtype) -> None:
        x = samples(source, 701)
        for target in DTYPE_CODES:
            if target == torch.bool or target.is_floating_point or not source.is_floating_point:
                expected = x.to(target)
            else:  # one at a time: torch's vector code and its scalar code must agree first
                expected = torch.stack([value.to(target) for value in x])
            for tasks in (1, 3):
                out = copy(level, x, poisoned(x.shape, target), tasks)
                torch.testing.assert_close(out, expected, rtol=0, atol=0, equal_nan=True)
            strided = copy(level, torch.stack([x, x], 1)[:, 1], poisoned(x.shape, target))
            torch.testing.assert_close(strided, expected, rtol=0, atol=0, equal_nan=True)

    @pytest.mark.parametrize(
        "dtype", [torch.float32, torch.bfloat16, torch.int64, torch.uint8], ids=str
    )
    @pytest.mark.parametrize("tasks", [1, 2, 7])
    def test_layouts(self, level: str, dtype: torch.dtype, tasks: int) -> None:
        base = samples(dtype, 2 * 5 * 3 * 40).view(2, 5, 3, 40)
        sources = [
            base,
            base.transpose(1, 2),
            base.permute(0, 2, 3, 1),
            base.permute(3, 2, 1, 0),
            base[:, ::2, :, ::3],
            base[:, :, :1].expand(2, 5, 3, 40),
            base[..., :1].expand(2, 5, 3, 40),
            base.flatten(),
            base[0, 0, 0, 0],
            base[:, :0],
            base.view(10, 120).t(),
            samples(dtype, 130 * 70).view(130, 70).t(),
            samples(dtype, 64 * 64).view(64, 64).t(),
            samples(dtype, 10000),
            base.view(2, 5, 3, 2, 4, 5).permute(5, 0, 4, 1, 3, 2),
        ]
        for x in sources:
            out = copy(level, x, poisoned(x.shape, dtype), tasks)
            assert torch.equal(
                out.view(torch.uint8) if x.dim() else out,
                x.contiguous().view(torch.uint8) if x.dim() else x,
            )
            other = torch.float32 if dtype != torch.float32 else torch.bfloat16
            cast = copy(level, x, poisoned(x.shape, other), tasks)
            torch.testing.assert_close(cast, x.to(other), rtol=0, atol=0, equal_nan=True)

    def test_into_a_strided_output(self, level: str) -> None:
        x, room = torch.randn(6, 20, 17), poisoned((20, 6, 40), torch.float32)
        out = room.transpose(0, 1)[..., 1:35:2]
        copy(level, x, out)
        assert torch.equal(out, x)
        assert room[..., ::2].isnan().all() and room[..., 35:].isnan().all()
