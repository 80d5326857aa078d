"""The Triton source of the cache in 4 bits: pages of 32 tokens and a ring of the last 64 tokens.

A byte of a page has the codes of features 32 n + i and 32 n + 16 + i. So blocks here come in two
halves, of features with i below 16 and of the others, and nothing is ever interleaved.
"""

from infopt.codegen.gpu.kv_source import FOLD
from infopt.codegen.gpu.text import HEADER, TANH

LOW_FEATURES = '''

@triton.jit
def low_features(HALF: tl.constexpr):
    """Of each place in a half, the feature in the low bits; that in the high ones is 16 more."""
    place = tl.arange(0, HALF)
    return place // 16 * 32 + place % 16
'''

APPEND = (
    HEADER
    + LOW_FEATURES
    + '''

@triton.jit
def rows_of(x, ring, start, places, feature, x_stride, D: tl.constexpr):
    """f32 [places, feature]: of x from `start` on, before it of the ring; 0 behind D."""
    new = places >= start
    known = (feature < D)[None, :]
    from_x = x + (places - start)[:, None] * x_stride + feature[None, :]
    from_ring = ring + (places % 64)[:, None] * D + feature[None, :]
    a = tl.load(from_x, mask=new[:, None] & known, other=0.0).to(tl.float32)
    b = tl.load(from_ring, mask=(places < start)[:, None] & known, other=0.0)
    return tl.where(new[:, None], a, b)


@triton.jit
def lowest(a, b):
    """The smaller one of each pair, NaN where one is."""
    return tl.where((a != a) | (b != b), float("nan"), tl.minimum(a, b))


@triton.jit
def highest(a, b):
    return tl.where((a != a) | (b != b), float("nan"), tl.maximum(a, b))


@triton.jit
def factors_of(low, high):
    """Least value and step of ranges, in bf16."""
    fifteen = tl.full(low.shape, 15.0, tl.float32)
    return low.to(tl.bfloat16), tl.div_rn(high - low, fifteen).to(tl.bfloat16)


@triton.jit
def codes_of(v, least, step):
    """Whole numbers from 0 to 15."""
    least, step = least.to(tl.float32), step.to(tl.float32)
    inverse = tl.div_rn(tl.full(step.shape, 1.0, tl.float32), step)
    usual = (inverse > 0) & (inverse < float("inf")) & (tl.abs(least) < float("inf"))
    scaled = tl.minimum(tl.maximum((v - least) * inverse, 0.0), 15.0)
    scaled = tl.where(usual, scaled, 0.0)
    return ((scaled + 12582912.0) - 12582912.0).to(tl.int32)  # to nearest, of two the even one


@triton.jit
def append_pages(x, starts, counts, out, heads, tokens, room, ring_at, x_batch, x_head, x_stride,
                 out_batch, out_head, PER_TOKEN: tl.constexpr, D: tl.constexpr,
                 WIDE: tl.constexpr, HALF: tl.constexpr):
    """One group of 32 tokens, where the new ones complete it, as a page."""
    batch = (tl.program_id(0) // heads).to(tl.int64)
    head = (tl.program_id(0) % heads).to(tl.int64)
    start = tl.load(starts + batch)
    end = tl.minimum(start + tl.minimum(tl.load(counts + batch), tokens), room)
    group = start // 32 + tl.program_id(1)
    if (group + 1) * 32 <= end:
        x += batch * x_batch + head * x_head
        out += batch * out_batch + head * out_head
        ring = (out + ring_at).to(tl.pointer_type(tl.float32))
        page = out + group * (20 * WIDE)
        row = tl.arange(0, 32)
        feature = low_features(HALF)
        low = rows_of(x, ring, start, group * 32 + row, feature, x_stride, D)
        high = rows_of(x, ring, start, group * 32 + row, feature + 16, x_stride, D)
        leasts = (page + 16 * WIDE).to(tl.pointer_type(tl.bfloat16))
        place = tl.arange(0, HALF)
        if PER_TOKEN:
            RANGES: tl.constexpr = HALF // 16
            in_low = tl.reshape(low, (32, RANGES, 16))
            in_high = tl.reshape(high, (32, RANGES, 16))
            least = tl.reduce(lowest(in_low, in_high), 2, lowest)
            most = tl.reduce(highest(in_low, in_high), 2, highest)
            least, step = factors_of(least, most)
            codes_low = tl.reshape(codes_of(in_low, least[:, :, None], step[:, :, None]),
                                   (32, HALF))
            codes_high = tl.reshape(codes_of(in_high, least[:, :, None], step[:, :, None]),
                                    (32, HALF))
            range = tl.arange(0, RANGES)
            at = leasts + row[:, None] * (WIDE // 32) + range[None, :]
            tl.store(at, least, mask=(range < WIDE // 32)[None, :])
            tl.store(at + WIDE, step, mask=(range < WIDE // 32)[None, :])
        else:
            least_low, step_low = factors_of(tl.reduce(low, 0, lowest), tl.reduce(low, 0, highest))
            least_high, step_high = factors_of(tl.reduce(high, 0, lowest),
                                               tl.reduce(high, 0, highest))
            codes_low = codes_of(low, least_low[None, :], step_low[None, :])
            codes_high = codes_of(high, least_high[None, :], step_high[None, :])
            inside = place < WIDE // 2
            tl.store(leasts + feature, least_low, mask=inside)
            tl.store(leasts + feature + 16, least_high, mask=inside)
            tl.store(leasts + WIDE + feature, step_low, mask=inside)
            tl.store(leasts + WIDE + feature + 16, step_high, mask=inside)
        codes = (codes_low | (codes_high << 4)).to(tl.uint8)
        to = page + row[:, None] * (WIDE // 2) + place[None, :]
        tl.store(to, codes, mask=(place < WIDE // 2)[None, :])


@triton.jit
def append_ring(x, starts, counts, out, heads, tokens, room, ring_at, x_batch, x_head, x_stride,
                out_batch, out_head, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """The last new tokens into 16 slots of the ring: each slot gets the newest of its places."""
    batch = (tl.program_id(0) // heads).to(tl.int64)
    head = (tl.program_id(0) % heads).to(tl.int64)
    start = tl.load(starts + batch)
    end = tl.minimum(start + tl.minimum(tl.load(counts + batch), tokens), room)
    slot = tl.program_id(1) * 16 + tl.arange(0, 16)
    place = slot + ((end - 1 - slot + 64) // 64 - 1) * 64
    columns = tl.arange(0, BLOCK_D)
    inside = (place >= start)[:, None] & (columns < D)[None, :]
    x += batch * x_batch + head * x_head + (place - start)[:, None] * x_stride
    ring = (out + batch * out_batch + head * out_head + ring_at).to(tl.pointer_type(tl.float32))
    values = tl.load(x + columns[None, :], mask=inside)
    tl.store(ring + slot[:, None] * D + columns[None, :], values.to(tl.float32), mask=inside)
'''
)

ATTENTION = (
    HEADER
    + TANH
    + FOLD
    + LOW_FEATURES
    + '''

@triton.jit
def half_of(store, ring, page, columns, exists, feature, HIGH: tl.constexpr, CODED: tl.constexpr,
            PER_TOKEN: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr, HALF: tl.constexpr,
            dtype: tl.constexpr):
    """[32, HALF] numbers of one half of the features, of a page or of the ring."""
    row = tl.arange(0, 32)
    if CODED:
        place = tl.arange(0, HALF)
        inside = (place < WIDE // 2)[None, :]
        at = store + page * (20 * WIDE) + row[:, None] * (WIDE // 2) + place[None, :]
        codes = tl.load(at, mask=inside, other=0).to(tl.int32)
        codes = ((codes >> 4) if HIGH else (codes & 15)).to(tl.float32)
        leasts = (store + page * (20 * WIDE) + 16 * WIDE).to(tl.pointer_type(tl.bfloat16))
        if PER_TOKEN:
            at_range = leasts + row[:, None] * (WIDE // 32) + (place // 16)[None, :]
        else:
            at_range = leasts + (feature + (16 if HIGH else 0))[None, :]
        least = tl.load(at_range, mask=inside, other=0.0).to(tl.float32)
        step = tl.load(at_range + WIDE, mask=inside, other=0.0).to(tl.float32)
        block = codes * step + least
    else:
        at = feature + (16 if HIGH else 0)
        block = tl.load(ring + (columns % 64)[:, None] * WIDTH + at[None, :],
                        mask=exists[:, None] & (at < WIDTH)[None, :], other=0.0)
    return block.to(dtype)


@triton.jit
def attend_half(q_low, q_high, acc_low, acc_high, total, most, keys, values, key_ring, value_ring,
                tokens, begin, end, seen, scale, CODED: tl.constexpr, WINDOW: tl.constexpr,
                SOFTCAP: tl.constexpr, D: tl.constexpr, V: tl.constexpr, WIDE_D: tl.constexpr,
                WIDE_V: tl.constexpr, HALF_D: tl.constexpr, HALF_V: tl.constexpr):
    """Keys from begin to end, which are of pages or of the ring."""
    of_keys = low_features(HALF_D)
    of_values = low_features(HALF_V)
    dtype: tl.constexpr = q_low.dtype
    for start in range(begin, end, 32):
        columns = start + tl.arange(0, 32)
        exists = columns < seen
        page = start // 32
        k = half_of(keys, key_ring, page, columns, exists, of_keys, False, CODED, False, D,
                    WIDE_D, HALF_D, dtype)
        z = tl.dot(q_low, tl.trans(k), input_precision="ieee")
        k = half_of(keys, key_ring, page, columns, exists, of_keys, True, CODED, False, D,
                    WIDE_D, HALF_D, dtype)
        z = tl.dot(q_high, tl.trans(k), z, input_precision="ieee")
        p, shrink, total, most = fold(z, total, most, columns, tokens, seen, scale, WINDOW,
                                      SOFTCAP)
        p = p.to(dtype)
        v = half_of(values, value_ring, page, columns, exists, of_values, False, CODED, True, V,
                    WIDE_V, HALF_V, dtype)
        acc_low = tl.dot(p, v, acc_low * shrink[:, None], input_precision="ieee")
        v = half_of(values, value_ring, page, columns, exists, of_values, True, CODED, True, V,
                    WIDE_V, HALF_V, dtype)
        acc_high = tl.dot(p, v, acc_high * shrink[:, None], input_precision="ieee")
    return acc_low, acc_high, total, most


@triton.jit
def attend_int4(q, keys, values, starts, counts, out, parts, heads, queries, room, key_ring_at,
                value_ring_at, q_batch, q_head, q_stride, k_batch, k_head, v_batch, v_head,
                out_batch, out_head, out_stride, scale, WINDOW: tl.constexpr,
                SOFTCAP: tl.constexpr, GROUPS: tl.constexpr, D: tl.constexpr, V: tl.constexpr,
                WIDE_D: tl.constexpr, WIDE_V: tl.constexpr, HALF_D: tl.constexpr,
                HALF_V: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
                SPLIT: tl.constexpr):
    """As attend_cached; complete groups of 32 tokens are read from pages, the others from rings."""
    batch = (tl.program_id(0) // heads).to(tl.int64)
    key_head = (tl.program_id(0) % heads).to(tl.int64)
    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    in_rows = rows < queries * GROUPS
    token = rows % queries
    far = token.to(tl.int64)
    head = key_head * GROUPS + rows // queries
    feature = low_features(HALF_D)
    at = (q + batch * q_batch + head * q_head + far * q_stride)[:, None] + feature[None, :]
    q_low = tl.load(at, mask=in_rows[:, None] & (feature < D)[None, :], other=0.0)
    q_high = tl.load(at + 16, mask=in_rows[:, None] & (feature + 16 < D)[None, :], other=0.0)
    keys += batch * k_batch + key_head * k_head
    values += batch * v_batch + key_head * v_head
    key_ring = (keys + key_ring_at).to(tl.pointer_type(tl.float32))
    value_ring = (values + value_ring_at).to(tl.pointer_type(tl.float32))
    acc_low = tl.zeros((BLOCK_M, HALF_V), dtype=tl.float32)
    acc_high = tl.zeros((BLOCK_M, HALF_V), dtype=tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    most = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    before = tl.load(starts + batch).to(tl.int32)
    tokens = before + token.to(tl.int32)
    coded = (before + tl.minimum(tl.load(counts + batch).to(tl.int32), queries)) // 32 * 32
    begin, end, seen = share_of(tokens, in_rows, room, BLOCK_N, WINDOW, SPLIT)
    acc_low, acc_high, total, most = attend_half(
        q_low, q_high, acc_low, acc_high, total, most, keys, values, key_ring, value_ring, tokens,
        begin, tl.minimum(end, coded), seen, scale, True, WINDOW, SOFTCAP, D, V, WIDE_D, WIDE_V,
        HALF_D, HALF_V)
    acc_low, acc_high, total, most = attend_half(
        q_low, q_high, acc_low, acc_high, total, most, keys, values, key_ring, value_ring, tokens,
        tl.maximum(begin, coded), end, seen, scale, False, WINDOW, SOFTCAP, D, V, WIDE_D, WIDE_V,
        HALF_D, HALF_V)
    feature = low_features(HALF_V)
    low = in_rows[:, None] & (feature < V)[None, :]
    high = in_rows[:, None] & (feature + 16 < V)[None, :]
    if SPLIT > 1:
        row = (tl.program_id(0) * SPLIT + tl.program_id(2)).to(tl.int64) * BLOCK_M + rows
        to = parts + row * (V + 2)
        tl.store(to[:, None] + feature[None, :], acc_low, mask=low)
        tl.store(to[:, None] + feature[None, :] + 16, acc_high, mask=high)
        tl.store(to + V, total, mask=in_rows)
        tl.store(to + V + 1, most, mask=in_rows)
    else:
        whole = tl.where(total == 0, 1.0, total)[:, None]
        to = out + batch * out_batch + head * out_head + far * out_stride
        dtype: tl.constexpr = out.dtype.element_ty
        tl.store(to[:, None] + feature[None, :], (acc_low / whole).to(dtype), mask=low)
        tl.store(to[:, None] + feature[None, :] + 16, (acc_high / whole).to(dtype), mask=high)
'''
)
