"""Nodes and graphs: hash-consing, order, users, rewriting, keys."""

import gc
import pickle
import threading

import pytest
import torch

from infopt.compiler.graph import Graph, Node, Stage
from infopt.compiler.infer import Builder
from infopt.compiler.types import TensorType

T = TensorType.dense((2, 3), torch.float32)


@pytest.fixture
def o() -> Builder:
    return Builder()


def test_equal_nodes_are_one(o: Builder) -> None:
    x = o.input("x", T)
    assert o.relu(x) is o.relu(x)
    assert Builder().relu(Builder().input("x", T)) is o.relu(x)
    assert o.rand([2]) is not o.rand([2])


@pytest.mark.parametrize("a, b", [(1, 1.0), (1, True), (0.0, -0.0)])
def test_attributes_that_python_calls_equal_differ(o: Builder, a, b) -> None:
    x = o.input("x", T)
    assert o.call("aten.add.Scalar", x, a) is not o.call("aten.add.Scalar", x, b)


def test_nan_attributes_are_equal(o: Builder) -> None:
    x = o.input("x", T)
    assert o.call("aten.add.Scalar", x, float("nan")) is o.call("aten.add.Scalar", x, float("nan"))


def test_nodes_are_immutable(o: Builder) -> None:
    x = o.input("x", T)
    with pytest.raises(AttributeError, match="immutable"):
        x.op = None
    with pytest.raises(TypeError, match="to_fx"):
        pickle.dumps(x)


def test_nodes_that_nobody_holds_go_away(o: Builder) -> None:
    x = o.input("only here", T)
    o.relu(o.neg(x))
    gc.collect()
    assert not [n for n in Node._table.values() if x in n.args]


def test_threads_build_the_same_nodes() -> None:
    found: list[Node] = []

    def build() -> None:
        b = Builder()
        value = b.input("x", T)
        for _ in range(50):
            value = b.relu(b.neg(value))
        found.append(value)

    threads = [threading.Thread(target=build) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(set(found)) == 1


def test_order_users_and_counts(o: Builder) -> None:
    x, y = o.input("x", T), o.input("y", T)
    r = o.relu(x)
    graph = Graph((x, y), (o.add(r, r), r), updates=((1, r),))
    nodes = graph.nodes()
    assert nodes[:2] == (x, y) and set(nodes[2:]) == {r, o.add(r, r)}
    assert graph.users(r) == (o.add(r, r),)
    assert graph.use_count(r) == 3 and graph.is_output(r) and not graph.is_output(x)
    assert graph.users(y) == ()


def test_deep_graphs_need_no_recursion(o: Builder) -> None:
    x = o.input("x", T)
    value = x
    for _ in range(3000):
        value = o.relu(o.neg(value))
    graph = Graph((x,), (value,))
    assert len(graph.nodes()) == 6001
    assert graph.map(lambda n, args: n) is graph
    assert len(graph.key) == 64


def test_impure_nodes_keep_their_order(o: Builder) -> None:
    first, second = o.rand([2]), o.randn([2])
    graph = Graph((), (o.relu(second), first))
    order = graph.nodes()
    assert order.index(first) < order.index(second)


def test_map_rebuilds_what_is_above(o: Builder) -> None:
    x = o.input("x", T)
    graph = Graph((x,), (o.neg(o.relu(x)), o.relu(x)), updates=((0, o.relu(x)),))
    changed = graph.map(lambda n, args: o.tanh(x) if n is o.relu(x) else o.rebuild(n, args))
    assert changed.outputs == (o.neg(o.tanh(x)), o.tanh(x))
    assert changed.updates == ((0, o.tanh(x)),)
    assert graph.map(lambda n, args: n) is graph


def test_key_sees_the_program_and_not_the_objects(o: Builder) -> None:
    x = o.input("x", T)

    def keyed(**changes) -> str:
        fields = {"inputs": (x,), "outputs": (o.relu(x), 4)} | changes
        return Graph(**fields).key

    assert keyed() == keyed()
    different = [
        keyed(outputs=(o.tanh(x), 4)),
        keyed(outputs=(o.relu(x), 5)),
        keyed(stage=Stage.FUSE),
        keyed(updates=((0, o.relu(x)),)),
        keyed(scalars=(3,)),
    ]
    assert len({keyed(), *different}) == len(different) + 1


def test_attr_names_what_there_is(o: Builder) -> None:
    node = o.gelu(o.input("x", T))
    assert node.attr("approximate") == "none"
    with pytest.raises(KeyError, match=r"only \['approximate'\]"):
        node.attr("eps")


def test_a_node_of_several_results_says_so(o: Builder) -> None:
    parts = o.call("aten.topk.default", o.input("x", T), 2)
    with pytest.raises(TypeError, match="read one with getitem"):
        parts.shape  # noqa: B018
    assert repr(o.getitem(parts, 1)) == "<getitem i64[2, 2]>"


def test_with_consts_drops_the_unread(o: Builder) -> None:
    c = o.const("c", T)
    graph = Graph((), (o.relu(c),), {"c": torch.zeros(2, 3), "d": torch.zeros(1)})
    assert set(graph.with_consts({"e": torch.zeros(1)}).consts) == {"c"}
