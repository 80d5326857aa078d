"""The Triton source of attention: many queries, few queries, and their shares put together."""

from infopt.codegen.gpu.text import HEADER, TANH

SOURCE = (
    HEADER
    + TANH
    + '''

@triton.jit
def block_of(x, rows, stride, inside, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
             BOUNDED: tl.constexpr):
    """[rows, BLOCK] of a matrix with WIDTH columns, 0 outside."""
    columns = tl.arange(0, BLOCK)
    at = x + rows[:, None] * stride + columns[None, :]
    if BOUNDED:
        block = tl.load(at, mask=inside[:, None] & (columns < WIDTH)[None, :], other=0.0)
    elif BLOCK != WIDTH:
        block = tl.load(at, mask=(columns < WIDTH)[None, :], other=0.0)
    else:
        block = tl.load(at)
    return block


@triton.jit
def seen_scores(z, mask, tokens, in_rows, start, keys, scale, CAUSAL: tl.constexpr,
                WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, MASK_STRIDE: tl.constexpr,
                BOUNDED: tl.constexpr, BLOCK_N: tl.constexpr):
    """q kᵀ as scores in powers of two, -inf where a query does not see a key; keys from start on.

    tokens: of each query the last key that it sees where CAUSAL. mask: None, or where a query's row
    of it begins. BOUNDED: not all keys exist, or are seen by all queries.
    """
    columns = start + tl.arange(0, BLOCK_N)
    exists = columns < keys
    if SOFTCAP > 0:
        z = tanh(z * (scale / SOFTCAP)) * (SOFTCAP * 1.4426950408889634)
    else:
        z *= scale * 1.4426950408889634
    if mask is not None:
        given = tl.load(mask[:, None] + (start * MASK_STRIDE
                        + tl.arange(0, BLOCK_N) * MASK_STRIDE)[None, :],
                        mask=in_rows[:, None] & exists[None, :], other=0)
        if mask.dtype.element_ty == tl.int1:
            z = tl.where(given, z, float("-inf"))
        else:
            z += given.to(tl.float32) * 1.4426950408889634
    if BOUNDED:
        seen = exists[None, :]
        if CAUSAL:
            seen = seen & (columns[None, :] <= tokens[:, None])
        if WINDOW > 0:
            seen = seen & (columns[None, :] > tokens[:, None] - WINDOW)
        z = tl.where(seen, z, float("-inf"))
    return z


@triton.jit
def weigh(z, acc, total, most):
    """Weights of a block of scores, and what was summed before in their unit."""
    higher = tl.maximum(most, tl.max(z, axis=1))
    origin = tl.where(higher == float("-inf"), 0.0, higher)  # nothing is seen yet
    p = tl.exp2(z - origin[:, None])
    shrink = tl.exp2(most - origin)
    return p, acc * shrink[:, None], total * shrink + tl.sum(p, axis=1), higher


@triton.jit
def attend(q, acc, total, most, k, v, mask, tokens, in_rows, begin, end, keys, k_stride, v_stride,
           scale, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
           MASK_STRIDE: tl.constexpr, BOUNDED: tl.constexpr, D: tl.constexpr, V: tl.constexpr,
           BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr):
    """Keys from begin to end.

    acc, total, most: of each query the weighted values, the sum of weights, the highest score so
    far, in powers of two. The rest as of seen_scores.
    """
    for start in range(begin, end, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        exists = columns < keys
        far = columns.to(tl.int64)
        k_block = block_of(k, far, k_stride, exists, D, BLOCK_D, BOUNDED)
        z = tl.dot(q, tl.trans(k_block), input_precision="ieee")
        z = seen_scores(z, mask, tokens, in_rows, start, keys, scale, CAUSAL, WINDOW, SOFTCAP,
                        MASK_STRIDE, BOUNDED, BLOCK_N)
        p, acc, total, most = weigh(z, acc, total, most)
        v_block = block_of(v, far, v_stride, exists, V, BLOCK_V, BOUNDED)
        acc = tl.dot(p.to(v_block.dtype), v_block, acc, input_precision="ieee")
    return acc, total, most


@triton.jit
def sink_weight(sinks, heads, most):
    """What the sinks of rows' heads add to their sums of weights."""
    return tl.exp2(tl.load(sinks + heads).to(tl.float32) * 1.4426950408889634 - most)


@triton.jit
def flash(q, k, v, mask, sinks, starts, out, heads, queries, keys,
          q_batch, q_head, q_stride, k_batch, k_head, k_stride, v_batch, v_head, v_stride,
          mask_batch, mask_head, mask_query, out_batch, out_head, out_stride, scale,
          CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
          MASK_STRIDE: tl.constexpr, GROUPS: tl.constexpr, D: tl.constexpr, V: tl.constexpr,
          BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
          BLOCK_V: tl.constexpr):
    """Attention of BLOCK_M queries of one head; the last, which see most keys, come first.

    starts: None, or how many keys come before the first query of each sequence.
    """
    batch = (tl.program_id(0) // heads).to(tl.int64)
    head = (tl.program_id(0) % heads).to(tl.int64)
    first = (tl.num_programs(1) - 1 - tl.program_id(1)) * BLOCK_M
    rows = first + tl.arange(0, BLOCK_M)
    in_rows = rows < queries
    far = rows.to(tl.int64)
    q_block = block_of(q + batch * q_batch + head * q_head, far, q_stride, in_rows, D, BLOCK_D,
                       True)
    k += batch * k_batch + head // GROUPS * k_head
    v += batch * v_batch + head // GROUPS * v_head
    if mask is not None:
        mask += batch * mask_batch + head * mask_head + far * mask_query
    acc = tl.zeros((BLOCK_M, BLOCK_V), dtype=tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    most = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    tokens = rows
    if starts is not None:
        before = tl.load(starts + batch).to(tl.int32)
        tokens += before
        first += before
        keys = tl.minimum(keys, before + queries)
    end = keys
    whole = keys // BLOCK_N * BLOCK_N
    if CAUSAL:
        end = tl.minimum(keys, first + BLOCK_M)
        whole = tl.minimum(keys, first) // BLOCK_N * BLOCK_N
    begin = 0
    if WINDOW > 0:  # what is before the first row's window is not read
        edge = tl.maximum(first - WINDOW + 1, 0) // BLOCK_N * BLOCK_N
        begin = tl.cdiv(tl.maximum(first + BLOCK_M - WINDOW, 0), BLOCK_N) * BLOCK_N
        begin = tl.minimum(begin, tl.cdiv(end, BLOCK_N) * BLOCK_N)
        whole = tl.maximum(whole, begin)
        acc, total, most = attend(q_block, acc, total, most, k, v, mask, tokens, in_rows, edge,
                                  begin, keys, k_stride, v_stride, scale, CAUSAL, WINDOW,
                                  SOFTCAP, MASK_STRIDE, True, D, V, BLOCK_N, BLOCK_D, BLOCK_V)
    acc, total, most = attend(q_block, acc, total, most, k, v, mask, tokens, in_rows, begin, whole,
                              keys, k_stride, v_stride, scale, CAUSAL, WINDOW, SOFTCAP,
                              MASK_STRIDE, False, D, V, BLOCK_N, BLOCK_D, BLOCK_V)
    acc, total, most = attend(q_block, acc, total, most, k, v, mask, tokens, in_rows, whole, end,
                              keys, k_stride, v_stride, scale, CAUSAL, WINDOW, SOFTCAP,
                              MASK_STRIDE, True, D, V, BLOCK_N, BLOCK_D, BLOCK_V)
    if sinks is not None:
        total += sink_weight(sinks, head, most)
    y = acc / tl.where(total == 0, 1.0, total)[:, None]
    columns = tl.arange(0, BLOCK_V)
    at = out + batch * out_batch + head * out_head + far[:, None] * out_stride + columns[None, :]
    tl.store(at, y.to(out.dtype.element_ty), mask=in_rows[:, None] & (columns < V)[None, :])


@triton.jit
def flash_few(q, k, v, mask, sinks, starts, out, parts, heads, queries, keys,
              q_batch, q_head, q_stride, k_batch, k_head, k_stride, v_batch, v_head, v_stride,
              mask_batch, mask_head, mask_query, out_batch, out_head, out_stride,
              scale, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
              MASK_STRIDE: tl.constexpr, GROUPS: tl.constexpr, D: tl.constexpr, V: tl.constexpr,
              BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
              BLOCK_V: tl.constexpr, SPLIT: tl.constexpr):
    """Attention of all queries of one key head, which are GROUPS * queries rows, over one of SPLIT
    shares of the keys that any of them sees. heads: of keys; starts: as for flash."""
    batch = (tl.program_id(0) // heads).to(tl.int64)
    key_head = (tl.program_id(0) % heads).to(tl.int64)
    rows = tl.arange(0, BLOCK_M)
    in_rows = rows < queries * GROUPS
    token = (rows % queries).to(tl.int64)
    head = key_head * GROUPS + rows // queries
    q_block = block_of(q + batch * q_batch, head * q_head + token * q_stride, 1, in_rows, D,
                       BLOCK_D, True)
    k += batch * k_batch + key_head * k_head
    v += batch * v_batch + key_head * v_head
    if mask is not None:
        mask += batch * mask_batch + head * mask_head + token * mask_query
    acc = tl.zeros((BLOCK_M, BLOCK_V), dtype=tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    most = tl.full((BLOCK_M,), float("-inf"), dtype=tl.float32)
    lowest = 0
    tokens = token
    if starts is not None:
        before = tl.load(starts + batch).to(tl.int32)
        tokens += before
        keys = tl.minimum(keys, before + queries)
        if WINDOW > 0:
            lowest = tl.maximum(before - WINDOW + 1, 0) // BLOCK_N * BLOCK_N
    share = tl.cdiv(tl.cdiv(keys - lowest, BLOCK_N), SPLIT) * BLOCK_N
    begin = lowest + tl.program_id(1) * share
    end = tl.minimum(begin + share, keys)
    acc, total, most = attend(q_block, acc, total, most, k, v, mask, tokens, in_rows, begin, end,
                              keys, k_stride, v_stride, scale, CAUSAL, WINDOW, SOFTCAP,
                              MASK_STRIDE, True, D, V, BLOCK_N, BLOCK_D, BLOCK_V)
    columns = tl.arange(0, BLOCK_V)
    inside = in_rows[:, None] & (columns < V)[None, :]
    if SPLIT > 1:
        row = (tl.program_id(0) * SPLIT + tl.program_id(1)).to(tl.int64) * BLOCK_M + rows
        at = parts + row * (V + 2)
        tl.store(at[:, None] + columns[None, :], acc, mask=inside)
        tl.store(at + V, total, mask=in_rows)
        tl.store(at + V + 1, most, mask=in_rows)
    else:
        if sinks is not None:
            total += sink_weight(sinks, tl.where(in_rows, head, 0), most)
        y = acc / tl.where(total == 0, 1.0, total)[:, None]
        at = out + batch * out_batch + head * out_head + token * out_stride
        tl.store(at[:, None] + columns[None, :], y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def flash_merge(parts, sinks, out, heads, queries, out_batch, out_head, out_stride,
                GROUPS: tl.constexpr, V: tl.constexpr, BLOCK_M: tl.constexpr,
                BLOCK_V: tl.constexpr, SPLIT: tl.constexpr):
    """The shares of one query put together, always in the same order."""
    batch = (tl.program_id(0) // heads).to(tl.int64)
    key_head = (tl.program_id(0) % heads).to(tl.int64)
    row = tl.program_id(1)
    columns = tl.arange(0, BLOCK_V)
    share = (tl.program_id(0) * SPLIT + tl.arange(0, SPLIT)).to(tl.int64)
    at = parts + (share * BLOCK_M + row) * (V + 2)
    total = tl.load(at + V)
    most = tl.load(at + V + 1)
    acc = tl.load(at[:, None] + columns[None, :], mask=(columns < V)[None, :], other=0.0)
    head = key_head * GROUPS + row // queries
    highest = tl.max(most, axis=0)
    weight = tl.exp2(most - tl.where(highest == float("-inf"), 0.0, highest))
    sum = tl.sum(total * weight, axis=0)
    if sinks is not None:
        sum += sink_weight(sinks, head, highest)
    y = tl.sum(acc * weight[:, None], axis=0) / tl.where(sum == 0, 1.0, sum)
    at = out + batch * out_batch + head * out_head + (row % queries).to(tl.int64) * out_stride
    tl.store(at + columns, y.to(out.dtype.element_ty), mask=columns < V)
'''
)
