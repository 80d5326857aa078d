"""The verifier: each broken invariant is found and named."""

from dataclasses import replace

import pytest
import sympy
import torch

from infopt.compiler.errors import IllegalGraph
from infopt.compiler.graph import Graph, Node, Stage
from infopt.compiler.infer import Builder
from infopt.compiler.ops import GETITEM, find
from infopt.compiler.types import Dim, TensorType
from infopt.compiler.verify import GONE_AFTER, verify, verify_same_interface

F32 = torch.float32


def dense(*shape, dtype=F32) -> TensorType:
    return TensorType.dense(shape, dtype)


@pytest.fixture
def o() -> Builder:
    return Builder()


def test_a_good_graph_passes(o: Builder) -> None:
    x = o.input("x", dense(2, 3))
    parts = o.call("aten.topk.default", x, 2)
    graph = Graph((x,), (o.relu(x), 3, None, o.getitem(parts, 1)), updates=((0, o.gelu(x)),))
    verify(graph, "trace")


def test_unlisted_and_doubled_inputs(o: Builder) -> None:
    x, y = o.input("x", dense(2)), o.input("y", dense(2))
    with pytest.raises(IllegalGraph, match="after p: the input 'y' is read but not listed"):
        verify(Graph((x,), (o.add(x, y),)), "p")
    with pytest.raises(IllegalGraph, match="listed twice"):
        verify(Graph((x, x), (o.relu(x),)))
    with pytest.raises(IllegalGraph, match="expected an input node"):
        verify(Graph((o.relu(x),), (o.relu(x),)))


def test_constants_have_tensors_of_their_type(o: Builder) -> None:
    c = o.const("c", dense(2))
    with pytest.raises(IllegalGraph, match="'c' has no tensor"):
        verify(Graph((), (c,)))
    with pytest.raises(IllegalGraph, match=r"is f32\[3\], its node says f32\[2\]"):
        verify(Graph((), (c,), {"c": torch.zeros(3)}))
    verify(Graph((), (c,), {"c": torch.zeros(2)}))


def test_types_are_those_of_the_reference(o: Builder) -> None:
    x = o.input("x", dense(2, 3))
    wrong = Node(find("relu"), (x,), (), dense(3, 2))
    with pytest.raises(IllegalGraph, match=r"says f32\[3, 2\], its reference gives f32\[2, 3\]"):
        verify(Graph((x,), (wrong,)))
    verify(Graph((x,), (wrong,)), deep=False)
    strided = Node(find("relu"), (x,), (), TensorType((2, 3), F32, (1, 2)))
    with pytest.raises(IllegalGraph, match="its reference gives"):
        verify(Graph((x,), (strided,)))
    refused = Node(find("mm"), (x, x), (), dense(2, 2))
    with pytest.raises(IllegalGraph, match="reference refuses"):
        verify(Graph((x,), (refused,)))


def test_getitem_reads_a_result_that_is_there(o: Builder) -> None:
    x = o.input("x", dense(4))
    parts = o.call("aten.topk.default", x, 2)
    wrong = Node(GETITEM, (parts,), (("index", 0),), dense(3))
    with pytest.raises(IllegalGraph, match="is not result 0"):
        verify(Graph((x,), (wrong,)))


def test_sizes_are_declared() -> None:
    s = sympy.Symbol("s0", integer=True, positive=True)
    t = sympy.Symbol("t0", integer=True, positive=True)
    o = Builder((Dim(s, 2, None, 5),))
    x = o.input("x", dense(s))
    verify(Graph((x,), (o.relu(x), s * 2), dims=o.dims))
    with pytest.raises(IllegalGraph, match="mentions the size s0; declared are none"):
        verify(Graph((x,), (o.relu(x),)))
    with pytest.raises(IllegalGraph, match="result 1 mentions the size t0; declared are s0"):
        verify(Graph((x,), (o.relu(x), t), dims=o.dims))


def test_results_and_updates_keep_their_types(o: Builder) -> None:
    x = o.input("x", dense(2, 3))
    graph = Graph((x,), (o.relu(x),), results=(dense(3, 2),))
    with pytest.raises(IllegalGraph, match=r"result 0 is f32\[2, 3\], callers expect f32\[3, 2\]"):
        verify(graph)
    with pytest.raises(IllegalGraph, match="input 0 is"):
        verify(Graph((x,), (), updates=((0, o.relu(o.permute(x, [1, 0]))),)))
    with pytest.raises(IllegalGraph, match="there are 1"):
        verify(Graph((x,), (), updates=((3, x),)))


def test_stage_grammar(o: Builder) -> None:
    x = o.input("x", dense(2, 3))
    graph = Graph((x,), (o.t(x),))
    verify(graph)
    with pytest.raises(IllegalGraph, match="may not appear in stage FUSE: canonical"):
        verify(replace(graph, stage=Stage.FUSE))


def test_grammar_names_real_operators() -> None:
    for ops in GONE_AFTER.values():
        for name in ops:
            assert find(name).name == name


@pytest.mark.parametrize(
    ("name", "attrs", "why"),
    [
        ("t.default", (), "permute"), ("transpose.int", (0, 1), "permute"),
        ("swapaxes.default", (0, 1), "permute"), ("swapdims.default", (0, 1), "permute"),
        ("movedim.int", (0, 1), "permute"), ("numpy_T.default", (), "permute"),
        ("mT.default", (), "permute"), ("view.default", ([3, 2],), "reshape"),
        ("_unsafe_view.default", ([3, 2],), "reshape"), ("flatten.using_ints", (0, 1), "reshape"),
        ("unflatten.int", (1, [3, 1]), "reshape"), ("unsqueeze.default", (0,), "reshape"),
        ("detach.default", (), "the value itself"), ("alias.default", (), "the value itself"),
        ("_to_copy.default", (), "to.dtype"),
    ],
)  # fmt: skip
def test_what_canonicalize_always_rewrites(o: Builder, name: str, attrs: tuple, why: str) -> None:
    x = o.input("x", dense(2, 3))
    graph = Graph((x,), (o.call(f"aten.{name}", x, *attrs),))
    verify(graph)
    with pytest.raises(IllegalGraph, match=f"{name} .*may not appear in stage .*{why}"):
        verify(replace(graph, stage=Stage.COMPRESS))


def test_equal_layers_are_inferred_once(o: Builder) -> None:
    x = o.input("x", dense(2, 3))
    value = x
    for _ in range(2000):
        value = o.relu(o.call("aten.neg.default", value))
    verify(Graph((x,), (value,)))


def test_interface(o: Builder) -> None:
    x, y = o.input("x", dense(2)), o.input("y", dense(2))
    graph = Graph((x, y), (o.add(x, y), 7), updates=((0, y),))
    verify_same_interface(graph, replace(graph, outputs=(o.add(y, x), 7)))
    cases = {
        "the inputs changed": replace(graph, inputs=(y, x)),
        "result 1 changed: expected 7, found 8": replace(graph, outputs=(o.add(x, y), 8)),
        "the updated inputs changed": replace(graph, updates=()),
        "the result types changed": replace(graph, outputs=(o.add(x, y),), results=()),
        "the scalar inputs changed": replace(graph, scalars=(3,)),
    }
    for message, changed in cases.items():
        with pytest.raises(IllegalGraph, match=f"after p: {message}"):
            verify_same_interface(graph, changed, "p")
    later = replace(graph, stage=Stage.FUSE)
    with pytest.raises(IllegalGraph, match="the stage went back from FUSE"):
        verify_same_interface(later, graph)


def test_strides_are_one_per_size(o: Builder) -> None:
    x = o.input("x", TensorType((2, 3), F32, (1,)))
    with pytest.raises(IllegalGraph, match="2 sizes but 1 strides"):
        verify(Graph((x,), (x,), results=(dense(2, 3),)))


def test_results_have_a_type_each(o: Builder) -> None:
    x = o.input("x", dense(2))
    with pytest.raises(IllegalGraph, match="2 results but 1 result types"):
        verify(Graph((x,), (o.relu(x), 3), results=(dense(2),)))
    with pytest.raises(IllegalGraph, match=r"result 0 is 3, expected f32\[2\]"):
        verify(Graph((x,), (3,), results=(dense(2),)))
    with pytest.raises(IllegalGraph, match=r"result 0 is f32\[2\], callers expect None"):
        verify(Graph((x,), (o.relu(x),), results=(None,)))


def test_a_dim_counts_an_input_that_is_there() -> None:
    s = sympy.Symbol("s0", integer=True, positive=True)
    o = Builder((Dim(s, 2, None, 5, counts="mask"),))
    mask = o.input("mask", dense(8))
    verify(Graph((mask,), (mask,), dims=o.dims))
    other = o.input("other", dense(8))
    with pytest.raises(IllegalGraph, match="counts an input that is not there"):
        verify(Graph((other,), (other,), dims=o.dims))


def test_strides_do_not_matter_along_axes_that_nobody_steps_along(o: Builder) -> None:
    x = o.input("x", TensorType((1, 3), F32, (3, 1)))
    verify(Graph((x,), (Node(find("relu"), (x,), (), TensorType((1, 3), F32, (77, 1))),)))
    none = o.input("x", TensorType((0, 3), F32, (3, 1)))
    verify(Graph((none,), (Node(find("relu"), (none,), (), TensorType((0, 3), F32, (9, 9))),)))
    other = Node(find("relu"), (x,), (), TensorType((1, 3), torch.float64, (3, 1)))
    with pytest.raises(IllegalGraph, match="its reference gives"):
        verify(Graph((x,), (other,)))
    several = o.call("aten.topk.default", x, 2)
    fewer = Node(several.op, several.args, several.attrs, several.type[:1])
    with pytest.raises(IllegalGraph, match="its reference gives"):
        verify(Graph((x,), (o.getitem(fewer, 0),)))


def test_an_input_is_not_replaced_by_another_of_its_name(o: Builder) -> None:
    x = o.input("x", dense(2))
    graph = Graph((x,), (o.relu(x),))
    weight = o.input("x", dense(2), weight=True)
    with pytest.raises(IllegalGraph, match="another node of the same name"):
        verify_same_interface(graph, replace(graph, inputs=(weight,)))
