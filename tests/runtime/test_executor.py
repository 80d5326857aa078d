"""Programs against torch: values, strides, aliasing, dynamic sizes, errors, weights."""

import re

import pytest
import torch

from infopt.runtime.errors import (
    InputMismatch,
    InputOverlap,
    KernelError,
    KernelIndexError,
    LibraryError,
    PlanError,
    SizeError,
)
from infopt.runtime.executor import CONTEXTS, Program
from infopt.runtime.plan import (
    Dim,
    Guard,
    InputSpec,
    Mutation,
    NativeStep,
    OutputConst,
    OutputInput,
    OutputInt,
    OutputNone,
    OutputTensor,
)


def expected(x, c):
    return (x + c[: x.shape[0]]) * 2 + x


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_sizes_may_change_with_every_call(make_program, adder, constant, threads):
    program = make_program(adder, [constant], threads)
    for n in [5, 1000, 0, 17, 1, 5, *range(100, 100 + 2 * CONTEXTS), 5]:
        x = torch.randn(n)
        assert torch.equal(program([x])[0], expected(x, constant))


def test_outputs_are_fresh(make_program, adder, constant):
    program = make_program(adder, [constant])
    x, y = torch.randn(9), torch.randn(9)
    first = program([x])[0]
    second = program([y])[0]
    assert torch.equal(first, expected(x, constant))
    assert torch.equal(second, expected(y, constant))
    assert first.untyped_storage().nbytes() == 36 and not first.requires_grad


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.randn(40)[::2],
        lambda: torch.randn(1).expand(20),
        lambda: torch.randn(20, 3)[:, 1],
        lambda: torch.nn.Parameter(torch.randn(20)),
        lambda: torch.randn(30)[7:27],
        lambda: torch.randn(20, requires_grad=True) * 1,
    ],
)
def test_any_memory_layout_gives_the_same_answer(make_program, adder, constant, make):
    program = make_program(adder, [constant])
    for _ in range(2):
        x = make()
        y = program([x])[0]
        assert torch.equal(y, expected(x.detach(), constant)) and not y.requires_grad


def test_inference_tensors(make_program, adder, constant):
    program = make_program(adder, [constant])
    with torch.inference_mode():
        x = torch.randn(7)
        assert torch.equal(program([x])[0], expected(x, constant))
    assert torch.equal(program([x])[0], expected(x.clone(), constant))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (3, "input 0 (x): expected a tensor, found int"),
        (torch.zeros(3, dtype=torch.float64), "expected torch.float32, found torch.float64"),
        (torch.zeros(3, device="meta"), "expected device cpu, found device meta"),
        (torch.zeros(3).to_sparse(), "expected torch.strided, found torch.sparse_coo"),
        (torch.zeros(3, 4), "expected 1 axes, found 2 (shape (3, 4))"),
        (torch.zeros(1001), "input 0 (x): expected 0 <= n <= 1000, found 1001"),
        (torch.zeros(3, dtype=torch.complex64).conj().imag, "found a lazily negated"),
    ],
)
def test_refused_inputs_say_why(make_program, adder, constant, x, message):
    program = make_program(adder, [constant])
    for _ in range(2):
        with pytest.raises(InputMismatch, match=re.escape(message)):
            program([x])
    with pytest.raises(InputMismatch, match="expected 1 inputs, found 2"):
        program([torch.zeros(3), 1])
    y = torch.randn(3)
    assert torch.equal(program([y])[0], expected(y, constant))  # still works after


def test_a_subclass_is_refused(make_program, adder, constant):
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = torch.zeros(3)
    with pytest.raises(InputMismatch, match="found the tensor subclass FakeTensor"):
        make_program(adder, [constant])([fake])


def test_a_size_seen_twice_must_agree(make_program, builder):
    builder.dims.append(Dim("n", 2, None, 0, 0))
    a = builder.add_input("a", (("d0",), 3))
    b = builder.add_input("b", (("d0",), 3))
    out = builder.buffer("output", ("d0", 12, "*"))
    builder.guards.append(Guard(builder.slot(("d0", 2, "%", 0, "==")), "n must be even"))
    builder.step("add", (a, b, out), (("d0", 3, "*"), ("d0", 3, "*")), 1)
    builder.output(out, (("d0",), 3))
    program = make_program(builder.plan())
    a, b = torch.randn(4, 3), torch.randn(4, 3)
    assert torch.equal(program([a, b])[0], a + b)
    with pytest.raises(
        InputMismatch, match=re.escape("input 1 (b): expected shape (n=4, 3), found shape (6, 3)")
    ):
        program([a, torch.randn(6, 3)])
    with pytest.raises(InputMismatch, match="n must be even"):
        program([torch.randn(3, 3), torch.randn(3, 3)])
    with pytest.raises(InputMismatch, match="expected 2 <= n, found 1"):
        program([torch.randn(1, 3), torch.randn(1, 3)])


def test_scalars_and_every_kind_of_output(make_program, builder, bits):
    builder.dims += [Dim("k", 0, 9, 1), Dim("f", 0, None, 2), Dim("b", 0, 1, 3)]
    x = builder.add_input("x", (4,))
    builder.inputs += [
        InputSpec("k", "int"),
        InputSpec("f", "float"),
        InputSpec("b", "bool"),
        InputSpec("any", "other"),
    ]
    out = builder.buffer("output", 16)
    builder.step("scale", (x, out), (4, 4, ("d1",)), 1, scratch=16)
    builder.output(out, (2,), offset=8)
    builder.output(out, (2, 2), strides=(1, 2))
    builder.outputs += [
        OutputInt(builder.slot(("d0", 2, "*"))),
        OutputInput(4),
        OutputInput(0),
        OutputConst("c"),
        OutputNone(),
        OutputInt(builder.slot(("d2",))),
    ]
    program = make_program(builder.plan())
    x, thing = torch.randn(4), object()
    for factor in (0.5, -0.0, 0.0, float("inf"), float("nan")):
        tail, t, *rest = program([x, 3, factor, True, thing])
        torch.testing.assert_close(t, (x * factor).view(2, 2).t(), rtol=0, atol=0, equal_nan=True)
        assert torch.equal(torch.signbit(t), torch.signbit((x * factor).view(2, 2).t()))
        assert t.stride() == (1, 2) and tail.storage_offset() == 2
        assert tail.untyped_storage().data_ptr() == t.untyped_storage().data_ptr()
        assert rest == [6, thing, x, "c", None, 1] and rest[2] is x
    for bad, message in (
        (3.0, "a Python int, found float"),
        (True, "a Python int, found bool"),
        (10, "0 <= k <= 9, found 10"),
        (2**70, "an int of 64 bits"),
    ):
        with pytest.raises(InputMismatch, match=message):
            program([x, bad, 1.0, True, thing])


def test_an_output_may_be_a_view_of_an_input(make_program, builder):
    builder.inputs.append(
        InputSpec("x", "tensor", "torch.float32", builder.slots((4, 3)), builder.slots((3, 1)))
    )
    x = builder.buffer("input", 48)
    builder.output(x, (3,), offset=12)
    builder.output(x, (3, 4), strides=(1, 3))
    builder.output(x, (4, 3), dtype="torch.int32")
    program = make_program(builder.plan())
    x = torch.randn(5, 3)[1:]
    row, t, integers = program([x])
    assert torch.equal(row, x[1]) and torch.equal(t, x.t()) and t.stride() == (1, 3)
    assert torch.equal(integers, x.view(torch.int32))
    x[1] = 5
    assert torch.equal(row, x[1])
    with pytest.raises(InputMismatch, match="an output is a view of it"):
        program([torch.randn(3, 4).t()])


def test_mutations_reach_the_caller(make_program, builder):
    x, y = builder.add_input("x", (8,)), builder.add_input("y", (8,))
    total, out = builder.buffer("arena", 32), builder.buffer("output", 32)
    builder.step("add", (x, y, total), (8, 8), 1)
    builder.step("add", (total, y, out), (8, 8), 1)
    builder.output(out, (8,))
    builder.mutations.append(Mutation(0, builder.view(total, (8,))))
    program = make_program(builder.plan())
    for x in (torch.randn(8), torch.randn(16)[::2], torch.nn.Parameter(torch.randn(8))):
        before, y = x.detach().clone(), torch.randn(8)
        out = program([x, y])[0]
        assert torch.equal(x.detach(), before + y) and torch.equal(out, before + y + y)
    base = torch.randn(12)
    with pytest.raises(
        InputOverlap,
        match=re.escape(
            "input 0 (x) is written and expected to lie apart, but shares memory with 1 (y)"
        ),
    ):
        program([base[:8], base[4:]])
    with pytest.raises(InputOverlap):
        program([base[:8], base[:8]])


def gather_plan(builder, message="IndexError: index out of range in self"):
    builder.dims.append(Dim("n", 0, None, 1, 0))
    table = builder.add_input("table", (10, 4), kind="weight")
    index = builder.add_input("index", (("d0",),), "torch.int64")
    out = builder.buffer("output", ("d0", 16, "*"))
    builder.step("gather", (table, index, out), (10, 4), ("d0",), error=message)
    builder.output(out, (("d0",), 4))
    return builder.plan()


@pytest.mark.parametrize("n", [1, 100])
def test_a_kernel_can_fail(make_program, builder, n):
    program = make_program(gather_plan(builder))
    table, index = torch.randn(10, 4), torch.arange(n) % 10
    assert torch.equal(program([table, index])[0], table[index])
    bad = index.clone()
    bad[n // 2] = 10
    for _ in range(2):
        with pytest.raises(KernelIndexError, match=r"^index out of range in self$") as caught:
            program([table, bad])
        assert isinstance(caught.value, (IndexError, KernelError))
    assert torch.equal(program([table, index])[0], table[index])


def test_weights_are_read_where_they_lie(make_program, builder):
    program = make_program(gather_plan(builder))
    table, index = torch.nn.Parameter(torch.randn(10, 4)), torch.tensor([3, 1])
    for change in (
        lambda: None,
        lambda: table.data.mul_(2),
        lambda: setattr(table, "data", torch.randn(10, 4)),
    ):
        change()
        for _ in range(2):
            assert torch.equal(program([table, index])[0], table.data[index])
    for other in (torch.randn(10, 4), torch.randn(10, 4)):
        assert torch.equal(program([other, index])[0], other[index])
    table.data = torch.randn(10, 5)
    with pytest.raises(InputMismatch, match=r"input 0 \(table\): expected shape \(10, 4\)"):
        program([table, index])
    for bad, message in (
        (torch.randn(4, 10).t(), "expected strides"),
        (3, "expected a tensor"),
        (torch.randn(10, 4, dtype=torch.float64), "expected torch.float32"),
        (torch.randn(10, 4).to_sparse(), "expected torch.strided"),
    ):
        with pytest.raises(InputMismatch, match=message):
            program([bad, index])


def test_alternating_models_share_one_program(make_program, builder):
    program = make_program(gather_plan(builder))
    tables, index = [torch.randn(10, 4) for _ in range(3)], torch.tensor([3, 1])
    for i in range(9):
        table = tables[i % 3]
        assert torch.equal(program([table, index])[0], table[index])


def test_a_null_pointer_stands_for_an_absent_tensor(make_program, builder):
    x = builder.add_input("x", (1,))
    for buffer in (-1, x):
        out = builder.buffer("output", 8)
        builder.step("is_null", (buffer, out), (), 1)
        builder.output(out, (1,), dtype="torch.int64")
    assert [int(v) for v in make_program(builder.plan())([torch.zeros(1)])] == [1, 0]


def test_sizes_that_cannot_be_are_errors(make_program, builder):
    builder.dims.append(Dim("n", 0, None, 0, 0))
    builder.add_input("x", (("d0",),))
    out = builder.buffer("output", ("d0", 4, "-"))
    builder.slot((8, "d0", "//"))
    builder.output(out, (0,))
    builder.step("count", (out,), (), 0)
    program = make_program(builder.plan())
    with pytest.raises(SizeError, match=re.escape("the size 8 d0 // divides by zero")):
        program([torch.zeros(0)])
    with pytest.raises(SizeError, match=r"the size d0 4 - .* is negative for the dims .3."):
        program([torch.zeros(3)])
    program([torch.zeros(4)])


def test_missing_parts_are_named(make_program, adder, constant, executor):
    with pytest.raises(PlanError, match="the plan has 1 constants, found 0"):
        make_program(adder)
    with pytest.raises(PlanError, match="expected a plain cpu tensor"):
        make_program(adder, [constant.to("meta")])
    with pytest.raises(LibraryError, match=r"needs the library 'test'; given: \[\]"):
        Program(adder, [constant], executor=executor)


def test_an_unknown_kernel_is_named(make_program, builder):
    builder.steps.append(NativeStep("nonsense", "test", (), (), builder.slot(1)))
    with pytest.raises(LibraryError, match="library 'test' has no kernel 'nonsense'"):
        make_program(builder.plan())


def test_constants_may_be_handed_out(make_program, builder, constant):
    buffer = builder.buffer("const", 4000, 0)
    builder.outputs.append(OutputTensor(builder.view(buffer, (2, 3), offset=8)))
    out = make_program(builder.plan(), [constant])([])[0]
    assert torch.equal(out, constant[2:8].view(2, 3))


def test_profile_names_every_native_step(make_program, adder, constant):
    times = make_program(adder, [constant]).profile([torch.randn(500)])
    assert [name for name, _ in times] == ["add", "scale", "add"]
    assert all(time > 0 for _, time in times)
