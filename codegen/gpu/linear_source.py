"""The Triton source of linear layers: tiles, one row, few rows, and their epilogue."""

from infopt.codegen.gpu.text import ACTIVATE, HEADER

EPILOGUE = '''

@triton.jit
def finish(acc, acc_up, bias, up_bias, residual, out, rows, columns, m, n,
           residual_stride, out_stride, ACTIVATION: tl.constexpr, GATED: tl.constexpr):
    """out[rows, columns] = act(acc + bias) * (acc_up + up_bias) + residual, rounded once."""
    in_row = columns < n
    inside = (rows < m)[:, None] & in_row[None, :]
    if bias is not None:
        acc += tl.load(bias + columns, mask=in_row, other=0.0).to(tl.float32)[None, :]
    y = activate(acc, ACTIVATION)
    if GATED:
        if up_bias is not None:
            acc_up += tl.load(up_bias + columns, mask=in_row, other=0.0).to(tl.float32)[None, :]
        y = y * acc_up
    if residual is not None:
        at = residual + rows.to(tl.int64)[:, None] * residual_stride + columns[None, :]
        y += tl.load(at, mask=inside, other=0.0).to(tl.float32)
    at = out + rows.to(tl.int64)[:, None] * out_stride + columns[None, :]
    tl.store(at, y.to(out.dtype.element_ty), mask=inside)
'''

PLACE = '''

@triton.jit
def place(tile, m_tiles, n_tiles, GROUP: tl.constexpr):
    """(row, column) of a tile; bands of GROUP rows, so that tiles of one time share operands."""
    band = tile // (GROUP * n_tiles)
    height = tl.minimum(m_tiles - band * GROUP, GROUP)
    within = tile % (GROUP * n_tiles)
    return band * GROUP + within % height, within // height
'''

TILES = '''

@triton.jit
def halves(x):
    """The left and the right half of a matrix."""
    M: tl.constexpr = x.shape[0]
    N: tl.constexpr = x.shape[1]
    return tl.split(tl.permute(tl.reshape(x, (M, 2, N // 2)), (0, 2, 1)))


@triton.jit
def finish_half(acc, acc_up, bias, up_bias, residual, out, rows, first, m, n,
                residual_stride, out_stride, ACTIVATION: tl.constexpr, GATED: tl.constexpr,
                PIECES: tl.constexpr):
    """`finish` in 1 or 2 pieces, from column `first` on."""
    N: tl.constexpr = acc.shape[1]
    if PIECES == 1:
        finish(acc, acc_up, bias, up_bias, residual, out, rows, first + tl.arange(0, N), m, n,
               residual_stride, out_stride, ACTIVATION, GATED)
    else:
        left, right = halves(acc)
        left_up, right_up = halves(acc_up)
        columns = first + tl.arange(0, N // 2)
        finish(left, left_up, bias, up_bias, residual, out, rows, columns, m, n,
               residual_stride, out_stride, ACTIVATION, GATED)
        finish(right, right_up, bias, up_bias, residual, out, rows, columns + N // 2, m, n,
               residual_stride, out_stride, ACTIVATION, GATED)


@triton.jit
def finish_tile(acc, acc_up, bias, up_bias, residual, out, rows, first, m, n,
                residual_stride, out_stride, ACTIVATION: tl.constexpr, GATED: tl.constexpr,
                PIECES: tl.constexpr):
    """`finish` for PIECES of a tile one after the other: a whole tile and what an activation has
    on the way do not fit the registers."""
    N: tl.constexpr = acc.shape[1]
    if PIECES == 4:
        left, right = halves(acc)
        left_up, right_up = halves(acc_up)
        finish_half(left, left_up, bias, up_bias, residual, out, rows, first, m, n,
                    residual_stride, out_stride, ACTIVATION, GATED, 2)
        finish_half(right, right_up, bias, up_bias, residual, out, rows, first + N // 2, m, n,
                    residual_stride, out_stride, ACTIVATION, GATED, 2)
    else:
        finish_half(acc, acc_up, bias, up_bias, residual, out, rows, first, m, n,
                    residual_stride, out_stride, ACTIVATION, GATED, PIECES)

@triton.jit
def product(x, weight, up, rows, columns, m, n, k, x_stride, weight_stride, GATED: tl.constexpr,
            BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
            EVEN_K: tl.constexpr):
    """x[rows] weight[columns]T and x[rows] up[columns]T in f32; f32 factors are not narrowed."""
    depth = tl.arange(0, BLOCK_K)
    # rows and columns that do not exist read the first, and are not stored
    rows = tl.where(rows < m, rows, 0).to(tl.int64)
    columns = tl.where(columns < n, columns, 0).to(tl.int64)
    x_at = x + rows[:, None] * x_stride + depth[None, :]
    w_at = columns[None, :] * weight_stride + depth[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    acc_up = acc
    for start in range(0, k, BLOCK_K):
        if EVEN_K:
            a = tl.load(x_at)
            b = tl.load(weight + w_at)
        else:
            inside = depth < k - start
            a = tl.load(x_at, mask=inside[None, :], other=0.0)
            b = tl.load(weight + w_at, mask=inside[:, None], other=0.0)
        acc = tl.dot(a, b, acc, input_precision="ieee")
        if GATED:
            if EVEN_K:
                c = tl.load(up + w_at)
            else:
                c = tl.load(up + w_at, mask=inside[:, None], other=0.0)
            acc_up = tl.dot(a, c, acc_up, input_precision="ieee")
        x_at += BLOCK_K
        w_at += BLOCK_K
    return acc, acc_up


@triton.jit
def described_product(x, weight, up, row, column, k, GATED: tl.constexpr, BLOCK_M: tl.constexpr,
                      BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """`product` of operands given as tensor descriptors, which are 0 outside."""
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    acc_up = acc
    for start in range(0, k, BLOCK_K):
        a = x.load([row, start])
        acc = tl.dot(a, weight.load([column, start]).T, acc, input_precision="ieee")
        if GATED:
            acc_up = tl.dot(a, up.load([column, start]).T, acc_up, input_precision="ieee")
    return acc, acc_up


@triton.jit
def linear_tiles(x, weight, up, bias, up_bias, residual, out, m, n, k, x_stride, weight_stride,
                 residual_stride, out_stride, ACTIVATION: tl.constexpr, GATED: tl.constexpr,
                 BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
                 EVEN_K: tl.constexpr, GROUP: tl.constexpr, PERSISTENT: tl.constexpr,
                 PIECES: tl.constexpr, DESCRIPTORS: tl.constexpr, FLAT: tl.constexpr):
    """act(x weightT + bias) * (x upT + up_bias) + residual; a program makes one tile, or several
    where there are fewer programs than tiles."""
    if DESCRIPTORS:
        x = tl.make_tensor_descriptor(x, [m, k], [x_stride, 1], [BLOCK_M, BLOCK_K])
        weight = tl.make_tensor_descriptor(weight, [n, k], [weight_stride, 1], [BLOCK_N, BLOCK_K])
        if GATED:
            up = tl.make_tensor_descriptor(up, [n, k], [weight_stride, 1], [BLOCK_N, BLOCK_K])
    m_tiles, n_tiles = tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N)
    if PERSISTENT:
        last = m_tiles * n_tiles
    else:
        last = tl.program_id(0) + 1
    for tile in tl.range(tl.program_id(0), last, tl.num_programs(0), flatten=FLAT):
        row, column = place(tile, m_tiles, n_tiles, GROUP)
        rows = row * BLOCK_M + tl.arange(0, BLOCK_M)
        columns = column * BLOCK_N + tl.arange(0, BLOCK_N)
        if DESCRIPTORS:
            acc, acc_up = described_product(x, weight, up, (row * BLOCK_M).to(tl.int32),
                                            (column * BLOCK_N).to(tl.int32), k, GATED, BLOCK_M,
                                            BLOCK_N, BLOCK_K)
        else:
            acc, acc_up = product(x, weight, up, rows, columns, m, n, k, x_stride, weight_stride,
                                  GATED, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K)
        finish_tile(acc, acc_up, bias, up_bias, residual, out, rows, column * BLOCK_N, m, n,
                    residual_stride, out_stride, ACTIVATION, GATED, PIECES)
'''

FEW = '''

@triton.jit
def store_part(acc, parts, part, rows, columns, m, n):
    """acc[rows, columns] as one of several sums [part, m, n] in f32."""
    at = parts + (part * m + rows[:, None]).to(tl.int64) * n + columns[None, :]
    tl.store(at, acc, mask=(rows < m)[:, None] & (columns < n)[None, :])


@triton.jit
def linear_row(x, weight, up, bias, up_bias, residual, out, parts, m, n, k, x_stride,
               weight_stride, residual_stride, out_stride, ACTIVATION: tl.constexpr,
               GATED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
               EVEN_K: tl.constexpr, SPLIT: tl.constexpr, STAGES: tl.constexpr):
    """The layer for one row: BLOCK_N rows of the weight stream by, one of SPLIT shares of k."""
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_K)
    w_at = tl.where(columns < n, columns, 0).to(tl.int64)[:, None] * weight_stride + depth[None, :]
    share = tl.cdiv(tl.cdiv(k, BLOCK_K), SPLIT) * BLOCK_K
    begin = tl.program_id(1) * share
    end = tl.minimum(begin + share, k)
    acc = tl.zeros((BLOCK_N, BLOCK_K), dtype=tl.float32)
    acc_up = acc
    for start in tl.range(begin, end, BLOCK_K, num_stages=STAGES):
        if EVEN_K:
            a = tl.load(x + start + depth).to(tl.float32)[None, :]
            b = tl.load(weight + w_at + start, eviction_policy="evict_first")
        else:
            inside = depth < end - start
            a = tl.load(x + start + depth, mask=inside, other=0.0).to(tl.float32)[None, :]
            b = tl.load(weight + w_at + start, mask=inside[None, :], other=0.0,
                        eviction_policy="evict_first")
        acc += a * b.to(tl.float32)
        if GATED:
            if EVEN_K:
                c = tl.load(up + w_at + start, eviction_policy="evict_first")
            else:
                c = tl.load(up + w_at + start, mask=inside[None, :], other=0.0,
                            eviction_policy="evict_first")
            acc_up += a * c.to(tl.float32)
    rows = tl.arange(0, 1)
    total = tl.sum(acc, axis=1)[None, :]
    total_up = tl.sum(acc_up, axis=1)[None, :]
    if SPLIT > 1:
        store_part(total, parts, tl.program_id(1), rows, columns, m, n)
        if GATED:
            store_part(total_up, parts, SPLIT + tl.program_id(1), rows, columns, m, n)
    else:
        finish(total, total_up, bias, up_bias, residual, out, rows, columns, m, n,
               residual_stride, out_stride, ACTIVATION, GATED)


@triton.jit
def linear_few(x, weight, up, bias, up_bias, residual, out, parts, m, n, k, x_stride,
               weight_stride, residual_stride, out_stride, ACTIVATION: tl.constexpr,
               GATED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
               BLOCK_K: tl.constexpr, EVEN_K: tl.constexpr, SPLIT: tl.constexpr,
               STAGES: tl.constexpr):
    """The layer for up to BLOCK_M rows, as the product weight xT: the weight is the large side."""
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.arange(0, BLOCK_M)
    depth = tl.arange(0, BLOCK_K)
    w_at = tl.where(columns < n, columns, 0).to(tl.int64)[:, None] * weight_stride + depth[None, :]
    x_at = tl.where(rows < m, rows, 0).to(tl.int64)[None, :] * x_stride + depth[:, None]
    share = tl.cdiv(tl.cdiv(k, BLOCK_K), SPLIT) * BLOCK_K
    begin = tl.program_id(1) * share
    end = tl.minimum(begin + share, k)
    acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    acc_up = acc
    for start in tl.range(begin, end, BLOCK_K, num_stages=STAGES):
        if EVEN_K:
            a = tl.load(x + x_at + start)
            b = tl.load(weight + w_at + start, eviction_policy="evict_first")
        else:
            inside = depth < end - start
            a = tl.load(x + x_at + start, mask=inside[:, None], other=0.0)
            b = tl.load(weight + w_at + start, mask=inside[None, :], other=0.0,
                        eviction_policy="evict_first")
        acc = tl.dot(b, a, acc, input_precision="ieee")
        if GATED:
            if EVEN_K:
                c = tl.load(up + w_at + start, eviction_policy="evict_first")
            else:
                c = tl.load(up + w_at + start, mask=inside[None, :], other=0.0,
                            eviction_policy="evict_first")
            acc_up = tl.dot(c, a, acc_up, input_precision="ieee")
    if SPLIT > 1:
        store_part(tl.trans(acc), parts, tl.program_id(1), rows, columns, m, n)
        if GATED:
            store_part(tl.trans(acc_up), parts, SPLIT + tl.program_id(1), rows, columns, m, n)
    else:
        finish(tl.trans(acc), tl.trans(acc_up), bias, up_bias, residual, out, rows, columns, m, n,
               residual_stride, out_stride, ACTIVATION, GATED)


@triton.jit
def linear_sum(parts, bias, up_bias, residual, out, m, n, residual_stride, out_stride,
               ACTIVATION: tl.constexpr, GATED: tl.constexpr, BLOCK_N: tl.constexpr,
               SPLIT: tl.constexpr):
    """The shares of k summed, always in the same order, and the epilogue; a program is a row."""
    rows = tl.program_id(1) + tl.arange(0, 1)
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (rows < m)[:, None] & (columns < n)[None, :]
    acc = tl.zeros((1, BLOCK_N), dtype=tl.float32)
    acc_up = acc
    for part in range(SPLIT):
        at = parts + (part * m + rows[:, None]).to(tl.int64) * n + columns[None, :]
        acc += tl.load(at, mask=inside, other=0.0)
        if GATED:
            at += SPLIT * m.to(tl.int64) * n
            acc_up += tl.load(at, mask=inside, other=0.0)
    finish(acc, acc_up, bias, up_bias, residual, out, rows, columns, m, n,
           residual_stride, out_stride, ACTIVATION, GATED)
'''

SOURCE = HEADER + ACTIVATE + EPILOGUE + PLACE + TILES
FEW_SOURCE = HEADER + ACTIVATE + EPILOGUE + FEW
