"""The Triton source of the cache: rows come to their places, attention reads them there, in numbers
or in bytes with a factor behind each row, one after the other or in pages of a table."""

from infopt.codegen.gpu.text import HEADER, TANH

APPEND = (
    HEADER
    + '''

@triton.jit
def append_rows(x, starts, counts, table, out, heads, tokens, room, entries, x_batch, x_head,
                x_stride, out_batch, out_head, out_stride, PAGE: tl.constexpr,
                IN_BYTES: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
                TOKENS: tl.constexpr):
    """TOKENS rows of one head of one sequence, behind those that the cache has of it.

    PAGE: 0, or tokens of a page; table [batch, entries] says where each is. IN_BYTES: a row becomes
    D integers and the f32 factor that makes numbers of them.
    """
    batch = (tl.program_id(0) // heads).to(tl.int64)
    head = (tl.program_id(0) % heads).to(tl.int64)
    rows = (tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)
    place = tl.load(starts + batch) + rows
    new = (rows < tokens) & (rows < tl.load(counts + batch)) & (place >= 0)
    if PAGE > 0:
        new = new & (place // PAGE < entries)
        page = tl.load(table + batch * entries + place // PAGE, mask=new, other=-1)
        new = new & (page >= 0)
        place = page * PAGE + place % PAGE
    new = new & (place < room)
    columns = tl.arange(0, BLOCK_D)
    inside = new[:, None] & (columns < D)[None, :]
    x += batch * x_batch + head * x_head
    to = out + (batch if PAGE == 0 else 0) * out_batch + head * out_head + place * out_stride
    values = tl.load(x + rows[:, None] * x_stride + columns[None, :], mask=inside, other=0.0)
    if IN_BYTES:
        values = values.to(tl.float32)
        unknown = tl.max((values != values).to(tl.int32), axis=1) > 0
        largest = tl.where(unknown, float("nan"), tl.max(tl.abs(values), axis=1))
        inverse = tl.div_rn(tl.full((TOKENS,), 127.0, tl.float32), largest)
        usual = (inverse > 0) & (inverse < float("inf"))
        scaled = tl.where(usual[:, None], values * inverse[:, None], 0.0)
        nearest = (scaled + 12582912.0) - 12582912.0  # of two the even one
        tl.store(to[:, None] + columns[None, :], nearest.to(tl.int8), mask=inside)
        factor = tl.div_rn(largest, tl.full((TOKENS,), 127.0, tl.float32))
        tl.store((to + D).to(tl.pointer_type(tl.float32)), factor, mask=new)
    else:
        tl.store(to[:, None] + columns[None, :], values, mask=inside)
'''
)

FOLD = '''

@triton.jit
def fold(z, total, most, columns, tokens, keys, scale, WINDOW: tl.constexpr,
         SOFTCAP: tl.constexpr):
    """Products of queries and keys into what attention keeps of a row: (weights, by what the sums
    so far shrink, sum, highest score in powers of two)."""
    if SOFTCAP > 0:
        z = tanh(z * (scale / SOFTCAP)) * (SOFTCAP * 1.4426950408889634)
    else:
        z *= scale * 1.4426950408889634
    seen = (columns < keys)[None, :] & (columns[None, :] <= tokens[:, None])
    if WINDOW > 0:
        seen = seen & (columns[None, :] > tokens[:, None] - WINDOW)
    z = tl.where(seen, z, float("-inf"))
    higher = tl.maximum(most, tl.max(z, axis=1))
    origin = tl.where(higher == float("-inf"), 0.0, higher)  # nothing is seen yet
    p = tl.exp2(z - origin[:, None])
    shrink = tl.exp2(most - origin)
    return p, shrink, total * shrink + tl.sum(p, axis=1), higher


@triton.jit
def share_of(tokens, in_rows, room, BLOCK_N: tl.constexpr, WINDOW: tl.constexpr,
             SPLIT: tl.constexpr):
    """Of the keys that any row sees, from where to where this program reads, and how many there
    are. tokens: of each row the last key that it sees."""
    keys = tl.minimum(room, tl.max(tl.where(in_rows, tokens, 0), axis=0) + 1)
    lowest = 0
    if WINDOW > 0:
        first = tl.min(tl.where(in_rows, tokens, room), axis=0)
        lowest = tl.maximum(first - WINDOW + 1, 0) // BLOCK_N * BLOCK_N
    share = tl.cdiv(tl.cdiv(keys - lowest, BLOCK_N), SPLIT) * BLOCK_N
    begin = lowest + tl.program_id(2) * share
    return begin, tl.minimum(begin + share, keys), keys
'''

ATTENTION = (
    HEADER
    + TANH
    + FOLD
    + '''

@triton.jit
def cached(x, rows, stride, inside, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
           IN_BYTES: tl.constexpr, dtype: tl.constexpr):
    """[rows, BLOCK] of a cache as numbers, 0 outside."""
    columns = tl.arange(0, BLOCK)
    at = x + rows * stride
    mask = inside[:, None] & (columns < WIDTH)[None, :]
    block = tl.load(at[:, None] + columns[None, :], mask=mask, other=0)
    if IN_BYTES:
        factors = (at + WIDTH).to(tl.pointer_type(tl.float32))
        factor = tl.load(factors, mask=inside, other=0.0)
        block = block.to(tl.float32) * factor[:, None]
    return block.to(dtype)


@triton.jit
def attend_cached(q, keys, values, starts, table, out, parts, heads, queries, room, entries, pages,
                  q_batch, q_head, q_stride, k_batch, k_head, k_stride, v_batch, v_head, v_stride,
                  out_batch, out_head, out_stride, scale, PAGE: tl.constexpr,
                  IN_BYTES: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
                  GROUPS: tl.constexpr, D: tl.constexpr, V: tl.constexpr, BLOCK_M: tl.constexpr,
                  BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
                  SPLIT: tl.constexpr):
    """Attention of BLOCK_M rows over one of SPLIT shares of the keys that any of them sees. Rows
    are all queries of all heads of one key head. heads: of keys; PAGE, table, IN_BYTES: as for
    append_rows; pages: how many there are."""
    batch = (tl.program_id(0) // heads).to(tl.int64)
    key_head = (tl.program_id(0) % heads).to(tl.int64)
    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    in_rows = rows < queries * GROUPS
    token = rows % queries
    head = key_head * GROUPS + rows // queries
    far = token.to(tl.int64)
    wide = tl.arange(0, BLOCK_D)
    at = q + batch * q_batch + head * q_head + far * q_stride
    q_block = tl.load(at[:, None] + wide[None, :], mask=in_rows[:, None] & (wide < D)[None, :],
                      other=0.0)
    stored = batch if PAGE == 0 else batch * 0
    keys += stored * k_batch + key_head * k_head
    values += stored * v_batch + key_head * v_head
    acc = tl.zeros((BLOCK_M, BLOCK_V), dtype=tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    most = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    tokens = tl.load(starts + batch).to(tl.int32) + token.to(tl.int32)
    begin, end, seen = share_of(tokens, in_rows, room, BLOCK_N, WINDOW, SPLIT)
    for start in range(begin, end, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        exists = columns < seen
        places = columns.to(tl.int64)
        if PAGE > 0:
            page = tl.load(table + batch * entries + columns // PAGE, mask=exists, other=0)
            page = tl.minimum(tl.maximum(page, 0), pages - 1)
            places = page * PAGE + columns % PAGE
        k_block = cached(keys, places, k_stride, exists, D, BLOCK_D, IN_BYTES, q_block.dtype)
        z = tl.dot(q_block, tl.trans(k_block), input_precision="ieee")
        p, shrink, total, most = fold(z, total, most, columns, tokens, seen, scale, WINDOW,
                                      SOFTCAP)
        v_block = cached(values, places, v_stride, exists, V, BLOCK_V, IN_BYTES, q_block.dtype)
        acc = tl.dot(p.to(v_block.dtype), v_block, acc * shrink[:, None], input_precision="ieee")
    columns = tl.arange(0, BLOCK_V)
    inside = in_rows[:, None] & (columns < V)[None, :]
    if SPLIT > 1:
        row = (tl.program_id(0) * SPLIT + tl.program_id(2)).to(tl.int64) * BLOCK_M + rows
        to = parts + row * (V + 2)
        tl.store(to[:, None] + columns[None, :], acc, mask=inside)
        tl.store(to + V, total, mask=in_rows)
        tl.store(to + V + 1, most, mask=in_rows)
    else:
        y = acc / tl.where(total == 0, 1.0, total)[:, None]
        to = out + batch * out_batch + head * out_head + far * out_stride
        tl.store(to[:, None] + columns[None, :], y.to(out.dtype.element_ty), mask=inside)
'''
)
