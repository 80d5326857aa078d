"""Torch ops as steps: templates, strides, memory of the arena, and work without any library."""

import math
import weakref

import pytest
import torch

from infopt.runtime.errors import PlanError
from infopt.runtime.executor import Program
from infopt.runtime.plan import AtenStep, Dim, InputSpec, Mutation


def aten(builder, op, args, outputs, **kwargs):
    builder.steps.append(AtenStep(op, tuple(args), tuple(outputs), kwargs))


def dynamic(builder):
    builder.dims.append(Dim("n", 0, None, 0, 0))
    return ("d0",)


def test_native_and_torch_steps_mix(make_program, builder):
    n = dynamic(builder)
    x = builder.add_input("x", (n, 4))
    size = ("d0", 16, "*")
    a, t, b = (
        builder.buffer("arena", size),
        builder.buffer("torch", size),
        builder.buffer("arena", size),
    )
    out = builder.buffer("output", size)
    count = ("d0", 4, "*")
    builder.step("add", (x, x, a), (count, 4), n)
    summed = builder.view(t, (n, 4))
    aten(
        builder,
        "aten.cumsum.default",
        [{"tensor": builder.view(a, (n, 4))}, 0],
        [summed],
        dtype={"dtype": "torch.float32"},
    )
    builder.step("add", (t, x, b), (count, 4), n)
    factors = [{"tensor": builder.view(b, (n, 4))}, {"size": builder.slot(n)}]
    aten(builder, "aten.mul.Scalar", factors, [builder.view(out, (n, 4))])
    builder.output(out, (n, 4))
    builder.output(t, (n, 4))
    program = make_program(builder.plan())
    for rows in (3, 1, 50, 0, 3):
        x = torch.randn(rows, 4)
        result, sums = program([x])
        assert torch.equal(sums, torch.cumsum(x + x, 0))
        torch.testing.assert_close(result, (sums + x) * rows, rtol=0, atol=0)
        assert result.is_contiguous() and not result.requires_grad


def test_results_get_the_strides_of_the_plan(builder):
    x = builder.add_input("x", (3, 4), strides=None)
    out = builder.buffer("torch", 48)
    aten(
        builder,
        "aten.exp.default",
        [{"tensor": builder.view(x, (3, 4))}],
        [builder.view(out, (3, 4))],
    )
    builder.output(out, (3, 4))
    program = Program(builder.plan())
    for x in (torch.randn(3, 4), torch.randn(4, 3).t(), torch.randn(1, 4).expand(3, 4)):
        y = program([x])[0]
        assert torch.equal(y, x.exp()) and y.stride() == (4, 1)


def test_a_result_in_the_arena_is_copied_out(make_program, builder):
    """aten.slice returns a view of memory that the next steps use again."""
    x = builder.add_input("x", (8,))
    a, t, b, out = (builder.buffer(kind, 32) for kind in ("arena", "torch", "arena", "output"))
    builder.step("add", (x, x, a), (8, 8), 1)
    aten(
        builder,
        "aten.slice.Tensor",
        [{"tensor": builder.view(a, (8,))}, 0, 0, 8],
        [builder.view(t, (8,))],
    )
    builder.step("add", (x, t, b), (8, 8), 1)
    builder.step("add", (b, t, out), (8, 8), 1)
    builder.output(out, (8,))
    builder.output(t, (8,))
    program = make_program(builder.plan())
    x, y = torch.randn(8), torch.randn(8)
    first, second = program([x]), program([y])
    assert torch.equal(first[1], x + x) and torch.equal(second[1], y + y)
    assert torch.equal(first[0], x + (x + x) + (x + x))


def test_no_gradients_no_autocast(builder):
    x = builder.add_input("x", (4, 4))
    out = builder.buffer("torch", 64)
    v = builder.view(x, (4, 4))
    aten(builder, "aten.mm.default", [{"tensor": v}, {"tensor": v}], [builder.view(out, (4, 4))])
    builder.output(out, (4, 4))
    program = Program(builder.plan())
    x = torch.randn(4, 4, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = program([x])[0]
        assert torch.is_autocast_enabled("cpu")
    assert torch.is_grad_enabled() and not y.requires_grad
    assert torch.equal(y, x.detach() @ x.detach())


def test_every_template(builder):
    x = builder.add_input("x", (2, 3))
    builder.inputs.append(InputSpec("fill", "float"))
    v = builder.view(x, (2, 3))
    full, clone, cat, mask = (builder.buffer("torch", size) for size in (48, 24, 48, 24))
    aten(
        builder,
        "aten.full.default",
        [[{"size": builder.slot(2)}, 3], {"float": "-inf"}],
        [builder.view(full, (2, 3), "torch.float64")],
        dtype={"dtype": "torch.float64"},
        device={"device": "cpu"},
        layout={"layout": "torch.strided"},
        pin_memory=False,
    )
    aten(
        builder,
        "aten.clone.default",
        [{"tensor": v}],
        [builder.view(clone, (2, 3))],
        memory_format={"memory_format": "torch.contiguous_format"},
    )
    aten(
        builder,
        "aten.cat.default",
        [[{"tensor": v}, {"tensor": v}], 1],
        [builder.view(cat, (2, 6))],
    )
    aten(
        builder,
        "aten.full_like.default",
        [{"tensor": v}, {"input": 1}],
        [builder.view(mask, (2, 3))],
    )
    for buffer, shape, dtype in (
        (full, (2, 3), "torch.float64"),
        (clone, (2, 3), "torch.float32"),
        (cat, (2, 6), "torch.float32"),
        (mask, (2, 3), "torch.float32"),
    ):
        builder.output(buffer, shape, dtype)
    program = Program(builder.plan())
    x = torch.randn(2, 3)
    full, clone, cat, mask = program([x, 2.5])
    assert torch.equal(full, torch.full((2, 3), -math.inf, dtype=torch.float64))
    assert torch.equal(clone, x) and torch.equal(cat, torch.cat([x, x], 1))
    assert torch.equal(mask, torch.full((2, 3), 2.5))


def test_several_results_of_one_op(builder):
    x = builder.add_input("x", (2, 3))
    values, indices = builder.buffer("torch", 8), builder.buffer("torch", 16)
    v = {"tensor": builder.view(x, (2, 3))}
    aten(
        builder,
        "aten.max.dim",
        [v, 1],
        [builder.view(values, (2,)), builder.view(indices, (2,), "torch.int64")],
    )
    aten(builder, "aten.max.dim", [v, 1], [None, builder.view(indices, (2,), "torch.int64")])
    builder.output(values, (2,))
    builder.output(indices, (2,), "torch.int64")
    x = torch.randn(2, 3)
    assert all(map(torch.equal, Program(builder.plan())([x]), x.max(1)))


def test_in_place_ops_write_into_buffers(builder):
    """Works without any native library: sizes in Python, arena buffers as tensors."""
    n = dynamic(builder)
    x = builder.add_input("x", (n,))
    arena, out = builder.buffer("arena", ("d0", 4, "*")), builder.buffer("output", ("d0", 4, "*"))
    a, o, v = builder.view(arena, (n,)), builder.view(out, (n,)), builder.view(x, (n,))
    aten(builder, "aten.copy_.default", [{"tensor": a}, {"tensor": v}], [])
    aten(builder, "aten.mul_.Scalar", [{"tensor": a}, 3], [])
    aten(builder, "aten.add.out", [{"tensor": a}, {"tensor": v}], [None], out={"tensor": o})
    builder.output(out, (n,))
    builder.mutations.append(Mutation(0, a))
    program = Program(builder.plan())
    for size in (4, 0, 7):
        x = torch.randn(size)
        before = x.clone()
        assert torch.equal(program([x])[0], before * 3 + before) and torch.equal(x, before * 3)


def test_only_allowed_ops_run(builder):
    torch.library.define("infopt_test::twice", "(Tensor x) -> Tensor")
    torch.library.impl("infopt_test::twice", "cpu", lambda x: x * 2)
    x = builder.add_input("x", (2,))
    out = builder.buffer("torch", 8)
    aten(
        builder,
        "infopt_test.twice.default",
        [{"tensor": builder.view(x, (2,))}],
        [builder.view(out, (2,))],
    )
    builder.output(out, (2,))
    plan = builder.plan()
    with pytest.raises(PlanError, match=r"only ops of .'aten', 'prims'. are allowed"):
        Program(plan)
    for allow in (["infopt_test.twice.default"], ["infopt_test"]):
        assert Program(plan, allow_ops=allow)([torch.ones(2)])[0].tolist() == [2, 2]


@pytest.mark.parametrize(
    ("op", "shape", "message"),
    [
        ("aten.nonsense.default", (2,), "has no op 'aten.nonsense.default'"),
        (
            "aten.exp.default",
            (3,),
            r"expected torch.float32 \(3,\) from the torch op, found .* \(2,\)",
        ),
    ],
)
def test_wrong_ops_are_named(builder, op, shape, message):
    x = builder.add_input("x", (2,))
    out = builder.buffer("torch", 12)
    aten(builder, op, [{"tensor": builder.view(x, (2,))}], [builder.view(out, shape)])
    builder.output(out, shape)
    with pytest.raises(PlanError, match=message):
        Program(builder.plan())([torch.ones(2)])


def test_memory_of_results_is_freed_after_their_last_use(builder):
    """A chain of n results never keeps more than two alive."""
    seen = []
    torch.library.define("infopt_test::watch", "(Tensor x) -> Tensor")

    def watch(x):
        y = x + 1
        seen.append(weakref.ref(y))
        assert sum(r() is not None for r in seen) <= 2
        return y

    torch.library.impl("infopt_test::watch", "cpu", watch)
    v = builder.view(builder.add_input("x", (2,)), (2,))
    for _ in range(6):
        buffer = builder.buffer("torch", 8)
        out = builder.view(buffer, (2,))
        aten(builder, "infopt_test.watch.default", [{"tensor": v}], [out])
        v = out
    builder.output(buffer, (2,))
    program = Program(builder.plan(), allow_ops=["infopt_test"])
    assert program([torch.zeros(2)])[0].tolist() == [6, 6] and len(seen) == 6
