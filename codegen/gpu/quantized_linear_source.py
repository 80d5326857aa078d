"""The Triton source of linear layers with weights in few bits, and of rows as bytes."""

from infopt.codegen.gpu.linear_source import EPILOGUE, FEW, PLACE
from infopt.codegen.gpu.text import ACTIVATE, HEADER

PRODUCTS = '''

@triton.jit
def multiply(w, a, COMPUTE: tl.constexpr):
    """Integers w times activations a, the sums in f32, or in i32 where both are bytes."""
    if COMPUTE == "int8":
        y = tl.dot(w, a, out_dtype=tl.int32)
    elif COMPUTE == "bf16":
        y = tl.dot(w.to(tl.bfloat16), a.to(tl.bfloat16))
    else:
        y = tl.dot(w.to(tl.float32), a.to(tl.float32), input_precision="ieee")
    return y


@triton.jit
def take(x_at, depth, k, EVEN_K: tl.constexpr):
    """x[rows, depth] with k downwards, 0 behind its end."""
    if EVEN_K:
        a = tl.load(x_at + depth[:, None])
    else:
        a = tl.load(x_at + depth[:, None], mask=(depth < k)[:, None], other=0)
    return a


@triton.jit
def group_sum(x_at, w_at, scale_at, start, k, BITS: tl.constexpr, GROUP: tl.constexpr,
              COMPUTE: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr):
    """BLOCK_K of k: products summed, and each group's sum times its factor."""
    if BITS == 8:
        depth = start + tl.arange(0, BLOCK_K)
        a = take(x_at, depth, k, EVEN_K)
        if EVEN_K:
            w = tl.load(w_at + depth[None, :], eviction_policy="evict_first")
        else:
            w = tl.load(w_at + depth[None, :], mask=(depth < k)[None, :], other=0,
                        eviction_policy="evict_first")
        y = multiply(w, a, COMPUTE)
        if GROUP > 0:
            y = y.to(tl.float32) * tl.load(scale_at + start // GROUP).to(tl.float32)[:, None]
    else:
        # byte j of a block of 64 holds integers j and j + 32
        byte = tl.arange(0, BLOCK_K // 2)
        depth = start + byte // 32 * 64 + byte % 32
        # a row ends with a whole block: the bytes are there
        last = tl.cdiv(k, 64) * 32
        byte += start // 2
        if EVEN_K:
            packed = tl.load(w_at + byte[None, :], eviction_policy="evict_first")
        else:
            packed = tl.load(w_at + byte[None, :], mask=(byte < last)[None, :], other=0,
                             eviction_policy="evict_first")
        low = (packed & 15).to(tl.int8) - 8
        high = (packed >> 4).to(tl.int8) - 8
        y = multiply(low, take(x_at, depth, k, EVEN_K), COMPUTE).to(tl.float32)
        other = multiply(high, take(x_at, depth + 32, k, EVEN_K), COMPUTE).to(tl.float32)
        if GROUP == 32:
            y *= tl.load(scale_at + start // 32).to(tl.float32)[:, None]
            # behind the last group there are no products
            following = tl.minimum(start // 32 + 1, tl.cdiv(k, 32) - 1)
            y += other * tl.load(scale_at + following).to(tl.float32)[:, None]
        else:
            y = (y + other) * tl.load(scale_at + start // GROUP).to(tl.float32)[:, None]
    return y


@triton.jit
def stored_product(x, steps, zeros, values, scales, sums, rows, columns, m, n, k, begin, end,
                   x_stride, value_stride, scale_stride, BITS: tl.constexpr,
                   GROUP: tl.constexpr, COMPUTE: tl.constexpr, BLOCK_M: tl.constexpr,
                   BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr,
                   STAGES: tl.constexpr):
    """x[rows] weight[columns]T over a part of k, in f32, [rows, columns]."""
    near = tl.where(columns < n, columns, 0).to(tl.int64)
    rows = tl.where(rows < m, rows, 0).to(tl.int64)
    x_at = x + rows[None, :] * x_stride
    w_at = values + near[:, None] * value_stride
    scale_at = scales + near * scale_stride
    exact: tl.constexpr = COMPUTE == "int8" and GROUP == 0
    acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.int32 if exact else tl.float32)
    for start in tl.range(begin, end, BLOCK_K, num_stages=STAGES):
        acc += group_sum(x_at, w_at, scale_at, start, k, BITS, GROUP, COMPUTE, BLOCK_K, EVEN_K)
    if COMPUTE == "int8":
        if begin == 0:  # codes stand for themselves less the zero point of their row
            total = tl.load(sums + near)[:, None]
            zero = tl.load(zeros + rows)[None, :]
            if exact:
                acc -= total.to(tl.int32) * zero
            else:
                acc -= total * zero.to(tl.float32)
    y = acc.to(tl.float32)
    if GROUP == 0:
        y *= tl.load(scale_at).to(tl.float32)[:, None]
    if COMPUTE == "int8":
        y *= tl.load(steps + rows)[None, :]
    return tl.trans(y)


@triton.jit
def quantized_tiles(x, steps, zeros, values, scales, sums, up, up_scales, up_sums, bias, up_bias,
                    residual, out, parts, m, n, k, x_stride, value_stride, scale_stride,
                    residual_stride, out_stride, ACTIVATION: tl.constexpr, GATED: tl.constexpr,
                    BITS: tl.constexpr, GROUP: tl.constexpr, COMPUTE: tl.constexpr,
                    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
                    EVEN_K: tl.constexpr, SPLIT: tl.constexpr, STAGES: tl.constexpr):
    """act(x weightT + bias) * (x upT + up_bias) + residual; one tile, one of SPLIT shares of k."""
    row, column = place(tl.program_id(0), tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N), 8)
    rows = row * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = column * BLOCK_N + tl.arange(0, BLOCK_N)
    share = tl.cdiv(tl.cdiv(k, BLOCK_K), SPLIT) * BLOCK_K
    begin = tl.program_id(1) * share
    end = tl.minimum(begin + share, k)
    acc = stored_product(x, steps, zeros, values, scales, sums, rows, columns, m, n, k, begin, end,
                         x_stride, value_stride, scale_stride, BITS, GROUP, COMPUTE, BLOCK_M,
                         BLOCK_N, BLOCK_K, EVEN_K, STAGES)
    acc_up = acc
    if GATED:
        acc_up = stored_product(x, steps, zeros, up, up_scales, up_sums, rows, columns, m, n, k,
                                begin, end, x_stride, value_stride, scale_stride, BITS, GROUP,
                                COMPUTE, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K, STAGES)
    if SPLIT > 1:
        store_part(acc, parts, tl.program_id(1), rows, columns, m, n)
        if GATED:
            store_part(acc_up, parts, SPLIT + tl.program_id(1), rows, columns, m, n)
    else:
        finish(acc, acc_up, bias, up_bias, residual, out, rows, columns, m, n,
               residual_stride, out_stride, ACTIVATION, GATED)


@triton.jit
def nearest(x):
    """The nearest whole number, the even one of two, for |x| < 2**22."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def quantize_rows(x, codes, steps, zeros, m, k, x_stride, code_stride, ROWS: tl.constexpr,
                  BLOCK: tl.constexpr):
    """A row as bytes: step * (code - zero), both less 128 to be signed; see the op. A row with NaN
    or an infinity gets a step of NaN."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    in_rows = rows < m
    at = x + rows.to(tl.int64)[:, None] * x_stride
    low = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    high = low
    bad = low
    for start in range(0, k, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = in_rows[:, None] & (columns < k)[None, :]
        v = tl.load(at + columns[None, :], mask=inside, other=0.0).to(tl.float32)
        low = tl.minimum(low, v)
        high = tl.maximum(high, v)
        bad = tl.where(tl.abs(v) < float("inf"), bad, 1.0)
    least = tl.min(low, axis=1)
    width = tl.max(high, axis=1) - least
    inverse = tl.where(width > 1e-35, 255.0 / tl.where(width > 1e-35, width, 1.0), 0.0)
    zero = nearest(-least * inverse)
    step = tl.where(tl.max(bad, axis=1) > 0, float("nan"), width / 255)
    tl.store(steps + rows, step, mask=in_rows)
    tl.store(zeros + rows, zero.to(tl.int32) - 128, mask=in_rows)
    for start in range(0, k, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = in_rows[:, None] & (columns < k)[None, :]
        v = tl.load(at + columns[None, :], mask=inside, other=0.0).to(tl.float32)
        code = nearest(tl.where(tl.abs(v) < float("inf"), v, 0.0) * inverse[:, None])
        code = tl.minimum(tl.maximum(code + zero[:, None], 0.0), 255.0)
        to = codes + rows.to(tl.int64)[:, None] * code_stride + columns[None, :]
        tl.store(to, (code.to(tl.int32) - 128).to(tl.int8), mask=inside)
'''

SOURCE = HEADER + ACTIVATE + EPILOGUE + PLACE + FEW + PRODUCTS
