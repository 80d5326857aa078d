"""The Triton source of linear layers with weights in few bits."""

from infopt.codegen.gpu.linear_source import EPILOGUE, FEW, PLACE
from infopt.codegen.gpu.stored_source import DECODE
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
def stored_bytes(w_at, byte, last, EVEN_K: tl.constexpr):
    """Bytes of the weight's rows, which stream by; 0 behind the last."""
    if EVEN_K:
        w = tl.load(w_at + byte[None, :], eviction_policy="evict_first")
    else:
        w = tl.load(w_at + byte[None, :], mask=(byte < last)[None, :], other=0,
                    eviction_policy="evict_first")
    return w


@triton.jit
def group_sum(x_at, w_at, scale_at, a, b, c, d, start, k, LAYOUT: tl.constexpr,
              GROUP: tl.constexpr, COMPUTE: tl.constexpr, NATIVE: tl.constexpr,
              BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr):
    """BLOCK_K of k: products summed, and each group's sum times its factor."""
    if LAYOUT == 8 or LAYOUT >= 43:
        depth = start + tl.arange(0, BLOCK_K)
        w = stored_bytes(w_at, depth, k, EVEN_K)
        if LAYOUT >= 43:
            w = float_of(w, LAYOUT, NATIVE)
        y = multiply(w, take(x_at, depth, k, EVEN_K), COMPUTE)
    elif LAYOUT == 19:
        # 16 lanes of a block of 64 hold four codes each: a byte, and half of another
        lane = tl.arange(0, BLOCK_K // 4)
        block = start // 64 * 24 + lane // 16 * 24
        lane %= 16
        last = tl.cdiv(k, 64) * 24
        codes = stored_bytes(w_at, 8 + block + lane, 8 + last, EVEN_K).to(tl.int32)
        upper = 8 + block + 16 + lane % 2 * 4 + lane // 4
        rest = stored_bytes(w_at, upper, 8 + last, EVEN_K).to(tl.int32)
        codes |= (rest >> (lane // 2 % 2 * 4)[None, :] & 15) << 8
        even = tl.join(entry_of(codes, a, b, c, d, LAYOUT),
                       entry_of(codes >> 6, a, b, c, d, LAYOUT))
        odd = tl.join(entry_of(codes >> 3, a, b, c, d, LAYOUT),
                      entry_of(codes >> 9, a, b, c, d, LAYOUT))
        w = tl.reshape(tl.join(even, odd), (codes.shape[0], BLOCK_K))
        y = multiply(w, take(x_at, start + tl.arange(0, BLOCK_K), k, EVEN_K), COMPUTE)
    else:
        # byte j of a block of 64 holds integers j and j + 32
        byte = tl.arange(0, BLOCK_K // 2)
        depth = start + byte // 32 * 64 + byte % 32
        # a row ends with a whole block: the bytes are there
        last = tl.cdiv(k, 64) * 32
        byte += start // 2
        if LAYOUT == 4:
            packed = stored_bytes(w_at, byte, last, EVEN_K)
            low = (packed & 15).to(tl.int8) - 8
            high = (packed >> 4).to(tl.int8) - 8
        else:
            packed = stored_bytes(w_at, 16 + byte, 16 + last, EVEN_K).to(tl.int32)
            low = entry_of(packed, a, b, c, d, LAYOUT)
            high = entry_of(packed >> 4, a, b, c, d, LAYOUT)
        y = multiply(low, take(x_at, depth, k, EVEN_K), COMPUTE)
        other = multiply(high, take(x_at, depth + 32, k, EVEN_K), COMPUTE)
        if GROUP == 32:
            # behind the last group there are no products
            following = tl.minimum(start // 32 + 1, tl.cdiv(k, 32) - 1)
            other = other.to(tl.float32) * tl.load(scale_at + following).to(tl.float32)[:, None]
            y = y.to(tl.float32) * tl.load(scale_at + start // 32).to(tl.float32)[:, None] + other
        else:
            y += other
    if GROUP > 32 or (GROUP == 32 and (LAYOUT == 8 or LAYOUT >= 43)):
        y = y.to(tl.float32) * tl.load(scale_at + start // GROUP).to(tl.float32)[:, None]
    return y


@triton.jit
def stored_product(x, steps, zeros, values, scales, sums, rest, rows, columns, m, n, k, begin, end,
                   x_stride, value_stride, scale_stride, LAYOUT: tl.constexpr,
                   GROUP: tl.constexpr, COMPUTE: tl.constexpr, NATIVE: tl.constexpr,
                   BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
                   EVEN_K: tl.constexpr, STAGES: tl.constexpr):
    """x[rows] weight[columns]T over a part of k, in f32, [rows, columns]; the first part has what
    entries beside the weight give, rest [n, m]."""
    near = tl.where(columns < n, columns, 0).to(tl.int64)
    rows = tl.where(rows < m, rows, 0).to(tl.int64)
    x_at = x + rows[None, :] * x_stride
    w_at = values + near[:, None] * value_stride
    scale_at = scales + near * scale_stride
    a, b, c, d = table_of(w_at, LAYOUT)
    exact: tl.constexpr = COMPUTE == "int8" and GROUP == 0
    acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.int32 if exact else tl.float32)
    for start in tl.range(begin, end, BLOCK_K, num_stages=STAGES):
        acc += group_sum(x_at, w_at, scale_at, a, b, c, d, start, k, LAYOUT, GROUP, COMPUTE,
                         NATIVE, BLOCK_K, EVEN_K)
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
    if rest is not None:
        if begin == 0:
            y += tl.load(rest + near[:, None] * m + rows[None, :])
    return tl.trans(y)


@triton.jit
def quantized_tiles(x, steps, zeros, values, scales, sums, up, up_scales, up_sums, rest,
                    up_rest, bias, up_bias, residual, out, parts, m, n, k, x_stride, value_stride,
                    scale_stride, residual_stride, out_stride, ACTIVATION: tl.constexpr,
                    GATED: tl.constexpr,
                    LAYOUT: tl.constexpr, GROUP: tl.constexpr, COMPUTE: tl.constexpr,
                    NATIVE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
                    BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr, SPLIT: tl.constexpr,
                    STAGES: tl.constexpr):
    """act(x weightT + bias) * (x upT + up_bias) + residual; one tile, one of SPLIT shares of k."""
    row, column = place(tl.program_id(0), tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N), 8)
    rows = row * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = column * BLOCK_N + tl.arange(0, BLOCK_N)
    share = tl.cdiv(tl.cdiv(k, BLOCK_K), SPLIT) * BLOCK_K
    begin = tl.program_id(1) * share
    end = tl.minimum(begin + share, k)
    acc = stored_product(x, steps, zeros, values, scales, sums, rest, rows, columns, m, n, k,
                         begin, end, x_stride, value_stride, scale_stride, LAYOUT, GROUP,
                         COMPUTE, NATIVE, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K, STAGES)
    acc_up = acc
    if GATED:
        acc_up = stored_product(x, steps, zeros, up, up_scales, up_sums, up_rest, rows, columns,
                                m, n, k, begin, end, x_stride, value_stride, scale_stride,
                                LAYOUT, GROUP, COMPUTE, NATIVE, BLOCK_M, BLOCK_N, BLOCK_K,
                                EVEN_K, STAGES)
    if SPLIT > 1:
        store_part(acc, parts, tl.program_id(1), rows, columns, m, n)
        if GATED:
            store_part(acc_up, parts, SPLIT + tl.program_id(1), rows, columns, m, n)
    else:
        finish(acc, acc_up, bias, up_bias, residual, out, rows, columns, m, n,
               residual_stride, out_stride, ACTIVATION, GATED)

'''

SOURCE = HEADER + ACTIVATE + EPILOGUE + PLACE + FEW + DECODE + PRODUCTS
