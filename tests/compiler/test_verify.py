"""The verifier: each broken invariant is found and named."""

from dataclasses import replace

import pytest
import sympy
import torch
from torch.utils._sympy.functions import Max, Min

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


def test_a_stride_of_at_least_one_is_the_size_itself() -> None:
    """torch writes max(1, n) in strides where a rewrite says n; at n = 0 nothing is stepped."""
    n = sympy.Symbol("n", integer=True, nonnegative=True)
    m = sympy.Symbol("m", integer=True, nonnegative=True)
    o = Builder((Dim(m, 0, None, 4), Dim(n, 0, None, 5)))
    x = o.input("x", dense(3, n))

    def strided(step) -> Graph:
        relu = Node(find("relu"), (x,), (), TensorType((3, n), F32, (step, 1)))
        return Graph((x,), (relu,), dims=o.dims)

    for step in (n, Max(1, n), sympy.Max(n, 1)):
        verify(strided(step))
    for step in (Max(2, n), Max(1, m), Max(1, n, m), Min(1, n), Max(m, n), n + 1):
        with pytest.raises(IllegalGraph, match="its reference gives"):
            verify(strided(step))


def test_a_value_is_read_after_it_is_made(o: Builder) -> None:
    x = o.input("x", dense(2))
    inner = o.relu(x)
    graph = Graph((x,), (o.gelu(inner),))
    graph.__dict__["_order"] = (x, graph.outputs[0], inner)
    with pytest.raises(IllegalGraph, match=r"gelu.* reads .*relu.*, which does not come before it"):
        verify(graph)


def test_results_that_are_no_tensors_are_compared(o: Builder) -> None:
    """The gradients of a normalization, of which the second is not asked for."""
    x, one, w = (o.input(*a) for a in (("x", dense(2, 3)), ("m", dense(2, 1)), ("w", dense(3))))
    name = "aten.native_layer_norm_backward.default"
    made = o.call(name, x, x, [3], one, one, w, w, [True, False, True])
    first, second, third = made.type
    assert second is None
    verify(Graph((x, one, w), (o.getitem(made, 0), o.getitem(made, 2))))
    for type in ((first, third, third), (first, None, None), (None, None, third)):
        other = Node(made.op, made.args, made.attrs, type)
        read = o.getitem(other, next(i for i, t in enumerate(type) if t is not None))
        with pytest.raises(IllegalGraph, match="its reference gives"):
            verify(Graph((x, one, w), (read,)))


def test_the_interface_of_dims() -> None:
    s = sympy.Symbol("s0", integer=True, positive=True)
    t = sympy.Symbol("t0", integer=True, positive=True)
    rows, counted = Dim(s, 2, None, 5), Dim(t, 2, None, 5, counts="x")
    o = Builder((rows, counted))
    x = o.input("x", dense(s))
    graph = Graph((x,), (o.relu(x),), dims=(rows,))
    verify_same_interface(graph, replace(graph, dims=(rows, counted)))  # a pass counts elements
    with pytest.raises(IllegalGraph, match=r"the dims read from shapes changed: .*'t0'"):
        verify_same_interface(graph, replace(graph, dims=(rows, replace(counted, counts=None))))
    with pytest.raises(IllegalGraph, match="the dims changed"):
        verify_same_interface(graph, replace(graph, dims=(replace(rows, lo=3),)))
    with pytest.raises(IllegalGraph, match=r"^an input was replaced"):
        verify_same_interface(graph, replace(graph, inputs=(o.input("x", x.type, weight=True),)))


def test_the_interface_of_results(o: Builder) -> None:
    x = o.input("x", dense(2))
    graph = Graph((x,), (o.relu(x), None, 2), results=(x.type, None, None))
    verify_same_interface(graph, replace(graph, stage=Stage.LAYOUT))
    cases = {
        "the number of results": (o.relu(x), None),
        "result 0": (3, None, 2),
        "result 1": (o.relu(x), o.relu(x), 2),
        "result 2": (o.relu(x), None, 3),
    }
    for message, outputs in cases.items():
        with pytest.raises(IllegalGraph, match=f"^{message} changed: expected "):
            verify_same_interface(graph, replace(graph, outputs=outputs, results=graph.results))


def test_what_an_updated_input_becomes(o: Builder) -> None:
    """It keeps shape and dtype; strides are those of the caller's tensor."""
    x = o.input("x", dense(2, 3))
    turned = o.permute(o.call("aten.clone.default", o.permute(x, [1, 0])), [1, 0])
    verify(Graph((x,), (), updates=((0, turned),)))
    for wrong in (o.to(x, torch.float64), o.reshape(x, [3, 2]), o.reshape(x, [2, 3, 1])):
        with pytest.raises(IllegalGraph, match=r"input 0 is .*, its update is"):
            verify(Graph((x,), (), updates=((0, wrong),)))
    for index in (-1, 1):
        with pytest.raises(IllegalGraph, match=f"input {index} is updated, there are 1"):
            verify(Graph((x,), (), updates=((index, x),)))


def test_sizes_in_attributes_strides_and_integer_inputs_are_declared() -> None:
    s = sympy.Symbol("s0", integer=True, positive=True)
    t = sympy.Symbol("t0", integer=True, positive=True)
    o = Builder((Dim(s, 2, None, 5),))
    x = o.input("x", dense(s, 4))
    shown = {
        "reshape.* mentions the size t0": Node(
            find("reshape"), (x,), (("shape", (4, (t, s))),), dense(4, s)
        ),
        "input .* mentions the size t0": o.input("y", TensorType((s, 4), F32, (t, 1))),
    }
    for message, node in shown.items():
        inputs = (node,) if node.op.name == "input" else (x,)
        with pytest.raises(IllegalGraph, match=message):
            verify(Graph(inputs, (node,), dims=o.dims), deep=False)
    with pytest.raises(IllegalGraph, match="an integer input mentions the size t0"):
        verify(Graph((x,), (x,), dims=o.dims, scalars=(s, t)))


def test_the_grammar_of_a_stage_begins_after_it(o: Builder) -> None:
    x = o.input("x", dense(2, 3))
    for stage in Stage:
        graph = Graph((x,), (o.t(x),), stage=stage)
        if stage is Stage.NORMALIZE:
            verify(graph)
        else:
            with pytest.raises(IllegalGraph, match=f"may not appear in stage {stage.name}"):
                verify(graph)
