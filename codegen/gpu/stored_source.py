"""Triton text that makes numbers of stored weights: floats of 8 bits, and tables of few bytes."""

DECODE = '''

@triton.jit
def float_of(bits, LAYOUT: tl.constexpr, NATIVE: tl.constexpr):
    """Floats of 8 bits in f32, by way of f16, which has them all. NATIVE: the architecture converts
    them; else exponent and mantissa are put in their places."""
    e5m2: tl.constexpr = LAYOUT == 52
    if NATIVE:
        y = bits.to(tl.float8e5 if e5m2 else tl.float8e4nv, bitcast=True).to(tl.float16)
    elif e5m2:  # f16 without the lower half of its mantissa
        y = (bits.to(tl.int16) << 8).to(tl.float16, bitcast=True)
    else:
        # the sign and all below the exponent's highest bit; its biases are 7 and 15, and numbers
        # below the least normal one are exact, too
        wide = bits.to(tl.int8, bitcast=True).to(tl.int16) << 7
        y = (wide & -16512).to(tl.float16, bitcast=True) * 256.0
    return y.to(tl.float32)


@triton.jit
def four_of(at):
    """Four bytes of a table as one word, the first in its lowest bits."""
    word = tl.load(at).to(tl.int32)
    for i in tl.static_range(1, 4):
        word |= tl.load(at + i).to(tl.int32) << (8 * i)
    return word


@triton.jit
def table_of(at, LAYOUT: tl.constexpr):
    """The table before a row's codes, in words; what a format lacks repeats the first."""
    a = at
    b = at
    c = at
    d = at
    if LAYOUT == 19 or LAYOUT == 20:
        a = four_of(at)
        b = four_of(at + 4)
        c = a
        d = a
    if LAYOUT == 20:
        c = four_of(at + 8)
        d = four_of(at + 12)
    return a, b, c, d


@triton.jit
def entry_of(codes, a, b, c, d, LAYOUT: tl.constexpr):
    """The table's signed byte for every code: its word by the code's upper bits, then a shift."""
    word = tl.where((codes & 4) != 0, b, a)
    if LAYOUT == 20:
        word = tl.where((codes & 8) != 0, tl.where((codes & 4) != 0, d, c), word)
    return (word >> ((codes & 3) * 8)).to(tl.int8)
'''
