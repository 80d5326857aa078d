"""The Triton source of matrix products of two computed values."""

from infopt.codegen.gpu.linear_source import FEW_SOURCE, PLACE

SOURCE = (
    FEW_SOURCE
    + PLACE
    + '''

@triton.jit
def factor(at, inside, in_k, BOUNDED: tl.constexpr, EVEN_K: tl.constexpr):
    """A block of a factor, 0 beyond k; BOUNDED: and outside."""
    if BOUNDED and EVEN_K:
        block = tl.load(at, mask=inside, other=0.0)
    elif BOUNDED:
        block = tl.load(at, mask=inside & in_k, other=0.0)
    elif EVEN_K:
        block = tl.load(at)
    else:
        block = tl.load(at, mask=in_k, other=0.0)
    return block


@triton.jit
def product_tiles(a, b, added, out, parts, m, n, k, a_step, b_step, n1, n2, a0, a1, a2, b0, b1, b2,
                  d0, d1, d2, d_row, alpha, beta, A_TURNED: tl.constexpr, B_TURNED: tl.constexpr,
                  BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
                  EVEN_K: tl.constexpr, GROUP: tl.constexpr, SPLIT: tl.constexpr):
    """alpha a b + beta added, a tile of one batch; or one of SPLIT shares of k, of a single batch.

    Neighbours in memory are along the rows of a and of b, or along the columns where TURNED; step:
    from one to the next. n1, n2: sizes of the inner two of three batch dimensions.
    """
    m_tiles, n_tiles = tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N)
    batch = tl.program_id(0) // (m_tiles * n_tiles)
    row, column = place(tl.program_id(0) % (m_tiles * n_tiles), m_tiles, n_tiles, GROUP)
    i2 = (batch % n2).to(tl.int64)
    i1 = (batch // n2 % n1).to(tl.int64)
    i0 = (batch // n2 // n1).to(tl.int64)
    rows = row * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = column * BLOCK_N + tl.arange(0, BLOCK_N)
    in_rows, in_columns = (rows < m)[:, None], (columns < n)[None, :]
    share = tl.cdiv(tl.cdiv(k, BLOCK_K), SPLIT) * BLOCK_K
    begin = tl.program_id(1) * share
    end = tl.minimum(begin + share, k)
    depth = tl.arange(0, BLOCK_K)
    far = (begin + depth).to(tl.int64)
    a += i0 * a0 + i1 * a1 + i2 * a2
    b += i0 * b0 + i1 * b1 + i2 * b2
    # where neighbours are along k, rows and columns that do not exist read the first; elsewhere
    # that would part neighbours
    if A_TURNED:
        a_at = a + rows[:, None] + far[None, :] * a_step
        a_next = BLOCK_K * a_step
    else:
        a_at = a + tl.where(in_rows, rows[:, None], 0).to(tl.int64) * a_step + far[None, :]
        a_next = BLOCK_K
    if B_TURNED:
        b_at = b + tl.where(in_columns, columns[None, :], 0).to(tl.int64) * b_step + far[:, None]
        b_next = BLOCK_K
    else:
        b_at = b + columns[None, :] + far[:, None] * b_step
        b_next = BLOCK_K * b_step
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(begin, end, BLOCK_K):
        inside = depth < end - start
        x = factor(a_at, in_rows, inside[None, :], A_TURNED, EVEN_K)
        y = factor(b_at, in_columns, inside[:, None], not B_TURNED, EVEN_K)
        acc = tl.dot(x, y, acc, input_precision="ieee")
        a_at += a_next
        b_at += b_next
    if SPLIT > 1:
        store_part(acc, parts, tl.program_id(1), rows, columns, m, n)
    else:
        far_rows = rows.to(tl.int64)[:, None]
        inside = in_rows & in_columns
        acc *= alpha
        if added is not None:
            at = added + i0 * d0 + i1 * d1 + i2 * d2 + far_rows * d_row + columns[None, :]
            acc += beta * tl.load(at, mask=inside, other=0.0).to(tl.float32)
        at = out + batch.to(tl.int64) * m * n + far_rows * n + columns[None, :]
        tl.store(at, acc.to(out.dtype.element_ty), mask=inside)
'''
)
