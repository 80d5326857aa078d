"""The arena planner against a brute-force check: who lives at the same time never overlaps."""

import ctypes
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from infopt.runtime.context import Context, NativeProgram
from infopt.runtime.lifetime import arena_bytes, lifetimes
from infopt.runtime.plan import Buffer, Dim, InputSpec, NativeStep, Plan

STEPS = st.lists(st.lists(st.integers(0, 11), max_size=4), min_size=1, max_size=15)
SIZES = st.lists(st.integers(0, 5000), min_size=12, max_size=12)


@settings(max_examples=200)
@given(steps=STEPS, sizes=SIZES, n=st.integers(0, 7), again=st.integers(0, 7))
def test_buffers_in_use_at_once_lie_apart(executor, kernels_path, steps, sizes, n, again):
    plan = Plan(
        expressions=((0,), *((size, "d0", "*") for size in sizes)),
        dims=(Dim("n", 0, None, 0),),
        inputs=(InputSpec("n", "int"),),
        buffers=tuple(Buffer("arena", 0, 1 + i) for i in range(12)),
        views=(),
        steps=tuple(
            NativeStep("add", "test", tuple((b, 0) for b in used), (), 0) for used in steps
        ),
        outputs=(),
    )
    native = NativeProgram(plan, executor, {"test": ctypes.CDLL(str(kernels_path))})
    context = Context(plan, native, 1)
    lives = lifetimes(plan)
    for i, life in lives.items():  # lifetimes themselves, by brute force
        touching = [t for t, used in enumerate(steps) if i in used]
        assert life == ((touching[0], touching[-1]) if touching else (-1, -1))
    for dim in (n, again):
        context.resize([dim])
        starts = context.starts[:12]
        for time, _ in enumerate(steps):
            alive = [i for i, (first, last) in lives.items() if first <= time <= last]
            spans = sorted((starts[i], starts[i] + sizes[i] * dim) for i in alive if sizes[i] * dim)
            assert all(a[1] <= b[0] for a, b in pairwise(spans))
        for i in range(12):
            assert starts[i] % 64 == 0
            assert starts[i] + sizes[i] * dim <= context.arena_bytes
        assert max(arena_bytes(plan, [dim]), 64) == context.arena_bytes
        rounded = [-(-size * dim // 64) * 64 for size in sizes]
        assert context.arena_bytes <= max(64, sum(rounded))


def test_a_chain_needs_two_buffers_at_a_time(make_program, builder):
    x = builder.add_input("x", (64,))
    before = x
    for _ in range(10):
        after = builder.buffer("arena", 256)
        builder.step("add", (before, before, after), (64, 64), 1)
        before = after
    out = builder.buffer("output", 256)
    builder.step("add", (before, x, out), (64, 64), 1)
    builder.output(out, (64,))
    assert make_program(builder.plan()).arena_bytes([]) == 512
