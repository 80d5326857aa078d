"""Ops: binding, declarations, names."""

from dataclasses import dataclass

import pytest
import torch

from infopt.compiler.errors import UnknownOp
from infopt.compiler.graph import Node
from infopt.compiler.infer import Builder, overloads
from infopt.compiler.ops import CONST, GETITEM, INPUT, Op, aten, find, from_overload, known_ops, op
from infopt.compiler.types import TensorType

T = TensorType.dense((2, 3), torch.float32)


@op(name="test_scaled_sum")
def scaled_sum(a, b, rest=None, *, factor=2.0, dims=(0,)):
    """(a + b) * factor"""
    total = a + b if rest is None else a + b + rest
    return total * factor


def test_binding_fills_defaults_and_normalises() -> None:
    tensors, attrs = find("slice.Tensor").bind(("x",), {"dim": 1})
    assert tensors == ("x",)
    assert dict(attrs) == {"dim": 1, "start": None, "end": None, "step": 1}
    _, attrs = find("permute").bind(("x", [1, 0]), {})
    assert dict(attrs) == {"dims": (1, 0)}
    _, attrs = find("layer_norm").bind(("x", [4]), {"eps": 1})
    eps = dict(attrs)["eps"]
    assert eps == 1.0 and isinstance(eps, float)


@pytest.mark.parametrize(
    "args, kwargs, message",
    [
        ((), {}, "needs 'self'"),
        (("x", "y", "z"), {}, "takes 1 arguments, found 3"),
        (("x",), {"self": "y"}, "got 'self' twice"),
        (("x",), {"eps": 1}, r"has no argument \['eps'\]"),
    ],
)
def test_wrong_calls_name_the_op(args, kwargs, message) -> None:
    with pytest.raises(TypeError, match=f"aten.relu.default {message}"):
        find("relu").bind(args, kwargs)


def test_own_ops_are_declared_by_their_reference() -> None:
    assert scaled_sum in known_ops() and find("test_scaled_sum") is scaled_sum
    o = Builder()
    made = o.test_scaled_sum(o.input("a", T), o.input("b", T), factor=3.0)
    assert made.type == T and made.attrs == (("factor", 3.0), ("dims", (0,)))
    assert made.args[2] is None
    positional, keyword = scaled_sum.call_arguments((1, 2, None), dict(made.attrs))
    assert positional == [1, 2, None] and keyword == {"factor": 3.0, "dims": [0]}


def test_declaring_twice() -> None:
    with pytest.raises(ValueError, match="already declared"):

        @op(name="test_scaled_sum")
        def another(a):
            return a

    with pytest.raises(TypeError, match="name every argument"):

        @op
        def variadic(*tensors):
            return tensors


def test_random_and_mutating_overloads_are_impure() -> None:
    assert aten("relu.default").pure and not aten("rand.default").pure
    assert not aten("relu_.default").pure
    assert not from_overload(torch.ops.aten._assert_async.default).pure


def test_unknown_names() -> None:
    with pytest.raises(UnknownOp, match="no_such_op"):
        find("no_such_op")
    with pytest.raises(UnknownOp, match=r"relu\.nope"):
        aten("relu.nope")


def test_overloads_are_picked_by_the_kinds_of_arguments() -> None:
    o = Builder()
    x = o.input("x", T)
    picked: list[Node] = [o.add(x, x), o.add(x, 1.0), o.sum(x), o.sum(x, [1]), o.mean(x, [0], True)]
    assert [n.op.name for n in picked] == [
        "aten.add.Tensor",
        "aten.add.Scalar",
        "aten.sum.default",
        "aten.sum.dim_IntList",
        "aten.mean.dim",
    ]


def test_an_op_may_be_of_another_class() -> None:
    @dataclass(frozen=True, eq=False)
    class Counted(Op):
        limit: int = 0

    @op(kind=Counted, limit=3)
    def counted_for_a_test(x):
        return x + 1

    assert isinstance(counted_for_a_test, Counted) and counted_for_a_test.limit == 3
    assert find("counted_for_a_test") is counted_for_a_test


def test_a_module_that_is_loaded_again_gets_the_same_op() -> None:
    namespace: dict = {}
    text = "def declared_in_text(x):\n    return x\n"
    exec(text, namespace)
    first = op(namespace["declared_in_text"])
    assert op(namespace["declared_in_text"]) is first is find("declared_in_text")
    assert repr(first) == "op declared_in_text"


def test_leaves_are_not_run() -> None:
    with pytest.raises(TypeError, match="a leaf has no reference"):
        INPUT.reference("x")


def test_a_program_is_on_one_device_which_its_graph_calls_the_cpu() -> None:
    x = Node(INPUT, (), (("name", "x"), ("weight", False)), T)
    cuda = aten("to.device").bind((x, torch.device("cuda:1"), torch.float32), {})[1]
    assert dict(cuda)["device"] == torch.device("cpu")
    other = aten("to.device").bind((x, torch.device("meta"), torch.float32), {})[1]
    assert dict(other)["device"] == torch.device("meta")


def test_values_that_the_caller_gives_are_pure() -> None:
    assert INPUT.pure and CONST.pure and GETITEM.pure


def test_overloads_of_tensors_are_tried_before_those_of_numbers() -> None:
    names = [o.name for o in overloads("div")]
    assert names[:2] == ["aten.div.default", "aten.div.Tensor"] and names[2:] == sorted(names[2:])
