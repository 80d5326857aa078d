"""Small programs through lowering: layouts, aliases, writes, sizes, and the all-torch form."""

import pytest
import torch
import torch.nn.functional as F

from infopt.codegen.build import find_compiler
from infopt.codegen.lower import lower
from infopt.codegen.sizes import LoweringDeclined, Sizes, same_stride
from infopt.compiler.graph import Graph
from infopt.compiler.infer import Builder
from infopt.compiler.ops import op
from infopt.compiler.types import TensorType
from infopt.runtime.expression import evaluate
from infopt.runtime.plan import AtenStep, NativeStep, OutputInput, OutputTensor, Plan
from tests.codegen.traced import check, compare, graph_of, lowered, program_of, target

NATIVE = pytest.mark.parametrize(
    "native",
    [
        False,
        pytest.param(
            True, marks=pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")
        ),
    ],
    ids=["torch", "native"],
)


@NATIVE
def test_views_cost_nothing(native):
    x = torch.randn(4, 6)

    def f(x):
        return (
            x.t(),
            x.reshape(2, 12),
            x[1:3, ::2],
            x.unsqueeze(1).expand(4, 3, 6),
            x.view(-1)[5:],
            x.split([2, 4], 1)[1],
            x.unbind(0)[2],
            x.diagonal(),
            x.unfold(1, 3, 2),
            x.movedim(0, 1),
        )

    made = check(f, x, native=native)
    assert not made.plan.steps
    results = made([x])
    assert all(r.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for r in results)


@NATIVE
def test_reshapes_that_move_data(native):
    x = torch.randn(4, 6, 5)
    check(
        lambda x: (x.t_copy() if x.dim() == 2 else x.transpose(0, 1).reshape(24, 5) + 0,),
        x,
        native=native,
    )
    check(lambda x: x.transpose(0, 2).reshape(-1), x, native=native)
    check(lambda x: x.transpose(0, 1).contiguous().view(-1), x, native=native)
    check(lambda x: x.transpose(0, 1).flatten(1), x, native=native)


@NATIVE
def test_results_that_share_memory(native):
    x = torch.randn(4, 6)
    made = check(lambda x: (lambda y: (y, y.t()))(x + 1), x, native=native)
    a, b = made([x])
    assert a.data_ptr() == b.data_ptr()
    made = check(lambda x: (x, x * 1), x, native=native)
    assert made([x])[0] is x
    made = program_of(lambda x: x + 1, (x,), native=native)
    (first,), (second,) = made([x]), made([x])
    assert first.data_ptr() != second.data_ptr()


def test_a_result_handed_out_twice_is_two_tensors():
    graph = graph_of(lambda x: x + 1, (torch.randn(3),))
    twice = Graph(graph.inputs, graph.outputs * 2)
    plan = lower(twice, target(), shipped=False, generated=False).plan
    first, second = plan.outputs
    assert isinstance(first, OutputTensor) and isinstance(second, OutputTensor)
    assert plan.views[first.view].buffer != plan.views[second.view].buffer


@NATIVE
def test_writes_to_inputs(native):
    def f(x, y):
        x.add_(1)
        y.view(-1)[2:].mul_(3)
        y[1, 2] = 7
        return y * 2, x

    made = check(f, torch.randn(4, 5), torch.randn(4, 5), native=native)
    assert any(isinstance(o, OutputInput) for o in made.plan.outputs)

    def swap(x, y):
        old = x.clone()
        x.copy_(y)
        y.copy_(old)

    check(lambda x, y: (swap(x, y), x + y)[1], torch.randn(4), torch.randn(4), native=native)

    def kept(x):
        old = x.clone()
        x.zero_()
        return old

    check(kept, torch.randn(4), native=native)


def test_a_swap_written_as_bare_values():
    o = Builder()
    x, y = (o.input(n, TensorType.dense((4,), torch.float32)) for n in "xy")
    graph = Graph((x, y), (), updates=((0, y), (1, x)))
    from infopt.codegen.load import program

    made = program(lower(graph, target(), shipped=False, generated=False), 1)
    a, b = torch.zeros(4), torch.ones(4)
    made([a, b])
    assert a.tolist() == [1] * 4 and b.tolist() == [0] * 4


@NATIVE
def test_scalars_zero_sizes_and_strange_layouts(native):
    check(lambda x, y: (x + y, x * 2, y.sum()), torch.tensor(2.0), torch.randn(3, 2), native=native)
    check(lambda x: (x + 1, x.sum(0), x.t() * 2), torch.randn(0, 3), native=native)
    check(lambda x: (x * 2).reshape(3, 0), torch.randn(0, 3), native=native)
    check(lambda x: x + 1, torch.randn(3, 1).expand(3, 4), native=native)
    check(lambda x: x.relu(), torch.randn(8, 8)[::2, 1::3], native=native)
    check(
        lambda x: F.relu(x) + 1,
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        native=native,
    )


@NATIVE
def test_one_plan_at_many_sizes(native):
    w = torch.randn(6, 6)

    def f(x, w):
        h = F.linear(x, w).softmax(-1)
        return h.transpose(0, 1).reshape(-1, 6).tanh() @ w, h[:, 1:].sum(1), h.flatten(0, 1)

    made = program_of(f, (torch.randn(4, 5, 6), w), dynamic=True, native=native)
    for shape in ((4, 5), (2, 2), (3, 17), (20, 9)):
        compare(made, f, (torch.randn(*shape, 6), w), close=(1e-4, 1e-5))


@NATIVE
def test_ops_with_several_results(native):
    x = torch.randn(4, 7)
    check(lambda x: x.topk(3), x, native=native)
    check(lambda x: (x.sort(1)[1], x.max(0)[0] + 1), x, native=native)
    check(lambda x: torch.var_mean(x, 1), x, native=native, close=(1e-5, 1e-6))


@NATIVE
def test_arguments_of_torch_calls(native):
    x = torch.randn(4, 6)
    check(
        lambda x: (torch.cat([x, x * 2], 1), torch.stack([x, x]), x.cumsum(1, dtype=torch.float64)),
        x,
        native=native,
    )
    check(lambda x: F.pad(x, (1, 2), value=-float("inf")), x, native=native)
    check(lambda x: x.to(torch.complex64).abs() if False else x.argmax(-1), x, native=native)
    check(lambda x: x[torch.tensor([2, 0]), :], x, native=native)


@NATIVE
def test_tensors_put_together(native):
    x, y = torch.randn(4, 6), torch.randn(4, 2)
    made = check(
        lambda x, y: (
            torch.cat([x, y], 1),
            torch.cat([x.t(), y.t() * 2, x.t().int()], 0),
            torch.cat([torch.empty(0), x]),
            torch.stack([x, x + 1, x.abs()], -1),
            F.pad(x, (1, 2, 0, 3), value=-float("inf")),
            F.pad(x, (2, 1)),
            y.repeat(2, 1, 3),
            x.flip(0, 1),
            x.repeat_interleave(3, 0),
            y.repeat_interleave(2, dim=-1),
            torch.slice_scatter(x, y, 1, 2, 4),
            torch.select_scatter(x, y[:, 0], 1, -1),
        ),
        x,
        y,
        native=native,
    )
    assert not native or all(isinstance(s, NativeStep) for s in made.plan.steps)


@NATIVE
def test_tensors_put_together_at_many_sizes(native):
    def f(x, y):
        return (
            torch.cat([x, y * 2], 1),
            torch.stack([x, x], 1),
            y.repeat(2, 3),
            y.flip(1),
            x[x.shape[1] - y.shape[1] :],
        )

    made = program_of(f, (torch.randn(4, 6), torch.randn(4, 5)), dynamic=True, native=native)
    for n, a, b in ((2, 4, 3), (9, 30, 25)):
        compare(made, f, (torch.randn(n, a), torch.randn(n, b)))


def test_random_ops_keep_their_order():
    def f(x):
        return torch.bernoulli(x), torch.rand_like(x), torch.bernoulli(x)

    x = torch.rand(50)
    made = program_of(f, (x,))
    torch.manual_seed(3)
    expected = f(x)
    torch.manual_seed(3)
    for a, b in zip(made([x]), expected, strict=True):
        assert torch.equal(a, b)


def test_a_user_op_becomes_its_references_calls():
    @op
    def centred(x, weight=None, *, eps):
        y = x - x.mean(-1, keepdim=True)
        y = y if weight is None else y * weight
        return y + eps, y

    o = Builder()
    x, w = (o.input(n, TensorType.dense((3, 5), torch.float32)) for n in "xw")
    made = o.call(centred, x, w, eps=0.5)
    graph = Graph((x, w), (o.getitem(made, 0), o.getitem(made, 1)))
    from infopt.codegen.load import program

    low = lowered(graph, native=False)
    a, b = torch.randn(3, 5), torch.randn(3, 5)
    for found, expected in zip(
        program(low, 1)([a, b]), centred.reference(a, b, eps=0.5), strict=True
    ):
        assert torch.equal(found, expected)
    assert "centred" not in low.report.aten


def test_without_native_code_every_step_is_a_torch_call():
    low = lowered(graph_of(lambda x: (x * 2).softmax(-1), (torch.randn(3, 4),)), native=False)
    assert low.plan.steps and all(isinstance(s, AtenStep) for s in low.plan.steps)
    assert not low.sources and low.report.aten_nodes == 2


def test_the_plan_is_plain_data():
    low = lowered(graph_of(lambda x: F.gelu(x + 1).sum(), (torch.randn(3, 4),), dynamic=True))
    assert Plan.from_json(low.plan.to_json()) == low.plan


def test_lowering_is_deterministic():
    def texts():
        low = lowered(graph_of(lambda x: (F.gelu(x + 1), x.t() * 2), (torch.randn(3, 4),)))
        return low.plan.to_json(), dict(low.sources)

    assert texts() == texts()


def test_size_expressions():
    import sympy
    from torch.utils._sympy.functions import CeilDiv, FloorDiv, Mod, Where

    a, b = sympy.symbols("a b", integer=True, positive=True)
    sizes = Sizes({a: 0, b: 1}, {a: 7, b: 3})
    cases = [
        a * b + 1,
        a**2 - 3 * b,
        FloorDiv(a + 1, 2),
        Mod(a, b),
        sympy.Max(a, b, 5),
        sympy.Min(a, b),
        CeilDiv(a, b),
        Where(sympy.Le(a, b), a, b * 2),
        -a,
        a / 2 + a / 2,
        FloorDiv(a * b, b + 1),
    ]
    slots = [sizes.slot(c) for c in cases]
    for dims in ((7, 3), (1, 1), (16, 100)):
        found = evaluate(sizes.expressions, dims)
        for case, slot in zip(cases, slots, strict=True):
            assert found[slot] == int(case.subs({a: dims[0], b: dims[1]})), case
    assert sizes.slot(a * b + 1) == slots[0]
    assert same_stride(8 * sympy.Max(1, a), 8 * a) and not same_stride(a, sympy.Max(2, a))
    with pytest.raises(LoweringDeclined, match="cannot be read from an input"):
        sizes.slot(sympy.Symbol("c", integer=True))
    with pytest.raises(LoweringDeclined, match="no form in a plan"):
        sizes.slot(sympy.sin(a))


@NATIVE
def test_what_is_computed_for_a_cat_is_computed_where_it_ends_up(native):
    x, y = torch.randn(6, 64), torch.randn(6, 64)

    def rows(x, y):
        return (torch.cat([x.abs(), y.neg(), x * y]) + 0,)

    def kept(x, y):  # read elsewhere too, given out, twice the same, not the operand's layout
        a, b, c = x.abs(), y.neg(), x * y
        return torch.cat([a, a, b, c]), c, b.relu(), torch.cat([x.relu(), y.relu()], 1)

    def overlapping(x, y):
        return (torch.slice_scatter(x.abs(), y[:2].neg(), 0, 1, 3),)

    made = check(rows, x, y, native=native)
    check(kept, x, y, native=native)
    check(overlapping, x, y, native=native)
    if native:
        sizes = evaluate(made.plan.expressions, [])
        parts = [sizes[b.bytes] for b in made.plan.buffers if b.kind == "arena"]
        assert sum(parts) <= 2 * 18 * 64 * 4, parts  # the sum, and what lies between
