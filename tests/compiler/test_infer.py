"""Inference: types are those torch's own run has, dynamic sizes included."""

import pytest
import sympy
import torch

import infopt.codegen.kernels  # noqa: F401  # declares conv_act
from infopt.compiler.errors import CannotInfer, DependsOnSize, UnknownOp
from infopt.compiler.graph import Node
from infopt.compiler.infer import Builder, FakeWorld, builder_for, shapes_of, types_of
from infopt.compiler.ops import Op, Parameter, from_overload
from infopt.compiler.types import Dim, TensorType

S = sympy.Symbol("s0", integer=True, positive=True)
T = sympy.Symbol("s1", integer=True, positive=True)
F32 = torch.float32


@pytest.fixture
def o() -> Builder:
    return Builder((Dim(S, 2, None, 5), Dim(T, 2, 64, 7)))


CALLS = [
    (lambda o, x: o.permute(x, [2, 0, 1]), lambda x: x.permute(2, 0, 1)),
    (
        lambda o, x: o.linear(x, o.input("w", TensorType.dense((6, 8), F32))),
        lambda x: x @ torch.empty(8, 6),
    ),
    (lambda o, x: o.call("aten.select.int", x, 1, -1), lambda x: x[:, -1]),
    (lambda o, x: o.cat([x, x], dim=1), lambda x: torch.cat([x, x], 1)),
    (lambda o, x: o.mean(x, [-1], True), lambda x: x.mean(-1, keepdim=True)),
    (lambda o, x: o.call("aten.slice.Tensor", x, 2, 1, 6, 2), lambda x: x[:, :, 1:6:2]),
    (lambda o, x: o.call("aten.gt.Scalar", x, 0), lambda x: x > 0),
    (lambda o, x: o.to(x, torch.bfloat16), lambda x: x.bfloat16()),
    (
        lambda o, x: o.expand(o.call("aten.select.int", x, 0, 0), [4, -1, -1]),
        lambda x: x[0].expand(4, -1, -1),
    ),
]


@pytest.mark.parametrize("build, run", CALLS)
@pytest.mark.parametrize("a, b", [(3, 4), (5, 5), (2, 64)])
def test_symbolic_types_agree_with_real_runs(o: Builder, build, run, a: int, b: int) -> None:
    x = o.input("x", TensorType.dense((S, T, 8), F32))
    made = build(o, x).tensor_type
    found = TensorType.of(run(torch.empty(a, b, 8)))
    values = {S: a, T: b}

    def concrete(sizes) -> tuple:
        return tuple(s if isinstance(s, int) else int(s.xreplace(values)) for s in sizes)

    assert concrete(made.shape) == found.shape and made.dtype == found.dtype
    assert concrete(made.strides) == found.strides


def test_expressions_of_sizes(o: Builder) -> None:
    x = o.input("x", TensorType.dense((S, T, 8), F32))
    assert o.reshape(x, [S * T, 8]).shape == (S * T, 8)
    assert o.reshape(x, [-1]).shape == (8 * S * T,)
    assert o.cat([x, x], dim=1).shape == (S, 2 * T, 8)


def test_refusals(o: Builder) -> None:
    x = o.input("x", TensorType.dense((S, T), F32))
    y = o.input("y", TensorType.dense((3, 4), F32))
    with pytest.raises(CannotInfer, match=r"aten.mm.default\(f32\[3, 4\], f32\[3, 4\]\)"):
        o.mm(y, y)
    with pytest.raises(CannotInfer, match=r"aten\.mm"):
        o.mm(y, y)  # the second time from memory
    with pytest.raises(CannotInfer, match=r"aten\.add"):
        o.add(x, o.input("z", TensorType.dense((T, S), F32)))
    with pytest.raises(DependsOnSize, match="depending on a size"):
        o.reshape(o.expand(x, [3, S, T]), [S, 3 * T])
    assert o.relu(x).shape == (S, T), "a refused call leaves no assumption behind"


def test_no_form_takes_the_arguments(o: Builder) -> None:
    with pytest.raises(CannotInfer, match="no form of 'relu'"):
        o.relu(3)


def test_zero_sizes_and_scalars() -> None:
    o = Builder()
    empty = o.input("e", TensorType.dense((0, 4), F32))
    assert o.linear(empty, o.input("w", TensorType.dense((3, 4), F32))).shape == (0, 3)
    number = o.input("n", TensorType.dense((), F32))
    assert o.add(number, number).shape == ()
    mixed = o.add(o.input("i", TensorType.dense((2,), torch.int64)), number)
    assert mixed.dtype == F32


def test_several_results(o: Builder) -> None:
    x = o.input("x", TensorType.dense((S, 8), F32))
    parts = o.call("aten.topk.default", x, 3)
    assert o.getitem(parts, 1).dtype == torch.int64
    with pytest.raises(CannotInfer, match="has one result"):
        o.getitem(x, 0)
    with pytest.raises(CannotInfer, match="read one with getitem"):
        o.relu(parts)


def test_a_builder_is_shared_per_dims() -> None:
    dims = (Dim(S, 2, None, 5),)
    assert builder_for(dims) is builder_for(dims) and builder_for(()) is not builder_for(dims)


def test_rebuilding_keeps_what_torch_decided_under_guards() -> None:
    """A slice from a negative symbolic start depends on sizes; torch's own run decided it, and the
    same shapes in other strides are decided alike."""
    s, t = (sympy.Symbol(n, positive=True, integer=True) for n in "st")
    o = Builder((Dim(s, 2, None, 5), Dim(t, 2, None, 9)))
    x = o.input("x", TensorType((t, 4), torch.float32, (1, t)))
    y = o.input("y", TensorType.dense((t, 4), torch.float32))
    wide = o.input("z", TensorType.dense((t, 5), torch.float32))
    op, attrs = from_overload(torch.ops.aten.slice.Tensor), {"dim": 0, "start": 1 - s, "step": 1}
    tensors, bound = op.bind((y,), attrs)
    with pytest.raises(DependsOnSize):
        o.node(op, tensors, bound)
    node = o.node(op, tensors, bound, TensorType.dense((s - 1, 4), torch.float32))
    made = o.rebuild(node, (x,))
    assert made.shape == (s - 1, 4) and made.tensor_type.strides == (1, t)
    with pytest.raises(CannotInfer):
        o.rebuild(node, (wide,))


def test_what_stands_for_a_node_has_the_type_that_is_promised() -> None:
    """Scaling a convolution's result asks whether its planes have one element; whoever takes the
    place of a node of known type need not know."""
    s = sympy.Symbol("s", positive=True, integer=True)
    o = Builder((Dim(s, 2, None, 9),))
    x = o.input("x", TensorType.dense((2, 3, s, s), F32))
    w, scale = (o.input(n, TensorType.dense(t, F32)) for n, t in (("w", (4, 3, 3, 3)), ("f", (4,))))
    window = {"stride": (2, 2), "padding": (1, 1)}
    with pytest.raises(DependsOnSize):
        o.call("conv_act", x, w, scale, **window)
    plain = o.conv2d(x, w, None, **window)
    made = o.in_place_of(plain, "conv_act", x, w, scale, **window)
    assert made.op.name == "conv_act" and made.args == (x, w, scale, None, None)
    assert made.type == plain.type and made.attr("groups") == 1
    assert o.in_place_of(plain, "aten.relu.default", plain).op.name == "aten.relu.default"
    with pytest.raises(DependsOnSize):
        o.in_place_of(x, "conv_act", x, w, scale, **window)  # of another type


def test_builders_have_no_private_ops(o: Builder) -> None:
    with pytest.raises(AttributeError, match="_relu"):
        _ = o._relu
    parts = o.call("aten.topk.default", o.input("x", TensorType.dense((4,), F32)), 2)
    assert o.getitem(parts, 1).dtype is torch.int64
    with pytest.raises(CannotInfer, match="has several results"):
        o.relu(parts)


def test_nested_arguments_have_nested_types() -> None:
    x = Builder().input("x", TensorType.dense((4,), F32))
    assert types_of(((x, None), x)) == ((x.type, None), x.type)
    assert shapes_of((None, (x,))) == (None, (((4,), F32),))


def test_an_interrupted_run_leaves_no_world_behind(o: Builder, monkeypatch) -> None:
    x = o.input("x", TensorType.dense((S,), F32))
    o.relu(x)
    world = o._fake
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FakeWorld, "run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        o.gelu(x)
    assert o._fake is None and o.gelu(x).shape == (S,) and o._fake is not world


def test_open_sizes_have_no_end_where_none_is_given() -> None:
    o = Builder((Dim(S, 2, None, 500),))
    x = o.input("x", TensorType.dense((S,), F32))
    assert o.call("aten.slice.Tensor", x, 0, 0, 2).shape == (2,)
    with pytest.raises(DependsOnSize):
        o.call("aten.expand.default", o.call("aten.slice.Tensor", x, 0, 0, 400), [S])


GRADIENTS = "aten.native_layer_norm_backward.default"  # of which any may be left out


def gradients(o: Builder, rows: int, asked: list[bool]) -> Node:
    x, one, w = (
        o.input(name, TensorType.dense(shape, F32))
        for name, shape in (("x", (rows, 3)), ("one", (rows, 1)), ("w", (3,)))
    )
    return o.call(GRADIENTS, x, x, [3], one, one, w, w, asked)


def test_a_result_that_is_not_asked_for_cannot_be_read(o: Builder) -> None:
    made = gradients(o, 2, [True, False, True])
    assert o.getitem(made, 0).shape == (2, 3) and o.getitem(made, 2).shape == (3,)
    with pytest.raises(CannotInfer, match=f"result 1 of {GRADIENTS} is not a tensor"):
        o.getitem(made, 1)
    assert shapes_of(made) == (((2, 3), F32), None, ((3,), F32))


def returning(result) -> Op:
    return Op("odd", lambda x: result, (Parameter("x", True),), True, "odd")


def test_what_a_reference_may_return(o: Builder) -> None:
    x = o.input("x", TensorType.dense((4,), F32))
    assert o.call(returning(None), x).type == ()
    real = torch.zeros(2, 3, dtype=torch.int64).t()  # made before, so no fake tensor
    assert o.call(returning(real), x).type == TensorType.of(real)
    for wrong, what in ((3.5, "float, expected a tensor"), ((1, "a"), r"\(1, 'a'\), expected ten")):
        with pytest.raises(CannotInfer, match=f"odd returns {what}"):
            Builder().call(returning(wrong), x)


def test_lists_are_not_tensors(o: Builder) -> None:
    x = o.input("x", TensorType.dense((4,), F32))
    with pytest.raises(CannotInfer, match="no form of 'cat' takes these arguments"):
        o.cat(x)
    with pytest.raises(CannotInfer, match="no form of 'relu' takes these arguments"):
        o.relu([x])
    with pytest.raises(UnknownOp, match="no_op_of_this_name"):
        o.no_op_of_this_name(x)


def test_refusals_name_all_operands(o: Builder) -> None:
    x, y = (o.input(n, TensorType.dense((3, w), F32)) for n, w in (("x", 4), ("y", 5)))
    with pytest.raises(CannotInfer, match=r"aten.cat.default\(f32\[3, 4\], f32\[3, 5\]\)"):
        o.cat([x, y])


def test_a_number_wins_over_a_tensor_where_one_is_given(o: Builder) -> None:
    x = o.input("x", TensorType.dense((4,), F32))
    assert o.add(x, 2).op.name == "aten.add.Scalar" and o.add(x, x).op.name == "aten.add.Tensor"
    assert o.linear(x, o.input("w", TensorType.dense((2, 4), F32)), None).shape == (2,)
    assert o.linear(x, x, bias=None).shape == ()


def test_sizes_that_are_numbers_after_all() -> None:
    world = FakeWorld((Dim(S, 2, None, 5),))
    found = world.size(sympy.Integer(3))
    assert found == 3 and type(found) is int
    assert world.size(2 * S + 1).node.hint == 11


def test_small_hints_stand_for_two() -> None:
    """0 and 1 would fix a size."""
    for seen in (0, 1, 2):
        world = FakeWorld((Dim(S, 0, None, seen),))
        assert (
            world.size(S).node.hint == 2 and world.fake_of(TensorType.dense((S, 3), F32)).dim() == 2
        )
    assert FakeWorld((Dim(S, 0, None, 3),)).size(S).node.hint == 3


def test_ranges_of_sizes_decide() -> None:
    """What holds in the whole range of a size is no question."""

    def first(lo: int, hi: int | None, count: int) -> object:
        o = Builder((Dim(S, lo, hi, 6),))
        x = o.input("x", TensorType.dense((S,), F32))
        return o.call("aten.slice.Tensor", x, 0, 0, count).shape[0]

    assert first(4, None, 4) == 4 and first(2, 8, 9) == S
    for lo, hi, count in ((4, None, 5), (2, 9, 9)):
        with pytest.raises(DependsOnSize):
            first(lo, hi, count)


def test_impure_calls_are_apart_and_pure_ones_are_one(o: Builder) -> None:
    x = o.input("x", TensorType.dense((4,), F32))
    first, second = (o.call("aten.rand_like.default", x) for _ in range(2))
    assert 0 < first.serial < second.serial and first is not second
    assert o.relu(x) is o.relu(x) and o.relu(x).serial == 0
    other = o.input("y", x.type)
    assert o.rebuild(first, (other, *first.args[1:])).serial == first.serial
    assert o.rebuild(first, first.args) is first


def test_rebuilding_on_other_types_infers_anew(o: Builder) -> None:
    x, y = (o.input(n, TensorType.dense(s, F32)) for n, s in (("x", (4, 6)), ("y", (5, 6))))
    assert o.rebuild(o.relu(x), (y,)).shape == (5, 6)
    parts = o.call("aten.topk.default", x, 2)
    again = o.rebuild(parts, (y,))
    assert o.rebuild(o.getitem(parts, 1), (again,)) is o.getitem(again, 1)
