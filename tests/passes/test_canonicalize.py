"""canonicalize: rewrites, declines, accuracy, idempotence, gain."""

import pytest
import torch

from infopt.compiler.cost import graph_seconds
from infopt.compiler.graph import Graph
from infopt.compiler.infer import Builder
from infopt.compiler.target import Target
from infopt.compiler.testing import check_pass, graph_of, run_pass
from infopt.compiler.types import TensorType
from infopt.passes.canonicalize import Canonicalize, _detour
from infopt.passes.fold_constants import FoldConstants
from tests.compiler.tracing.traced import names

X = torch.randn(2, 3, 4)
W = torch.randn(5, 4)
B = torch.randn(5)
INTS = torch.arange(6).reshape(2, 3)


def as_is(o, x):
    return x


REWRITES = {
    "permute by negative dims": (
        lambda o, x: o.permute(x, [-2, 0, -1]),
        lambda o, x: o.permute(x, [1, 0, 2]),
        [X],
    ),
    "permute to the same": (
        lambda o, x: o.relu(o.permute(x, [0, -2, 2])),
        lambda o, x: o.relu(x),
        [X],
    ),
    "expand with a size of -1": (
        lambda o, x: o.expand(x, [4, -1, 3, 4]),
        lambda o, x: o.expand(x, [4, 2, 3, 4]),
        [X],
    ),
    "movedim of a negative source": (
        lambda o, x: o.call("aten.movedim.int", x, -1, 0),
        lambda o, x: o.permute(x, [2, 0, 1]),
        [X],
    ),
    "transpose": (lambda o, x: o.transpose(x, 0, -1), lambda o, x: o.permute(x, [2, 1, 0]), [X]),
    "mT": (lambda o, x: o.mT(x), lambda o, x: o.permute(x, [0, 2, 1]), [X]),
    "numpy_T": (lambda o, x: o.numpy_T(x), lambda o, x: o.permute(x, [2, 1, 0]), [X]),
    "movedim": (
        lambda o, x: o.call("aten.movedim.int", x, 0, -1),
        lambda o, x: o.permute(x, [1, 2, 0]),
        [X],
    ),
    "permute of permute": (
        lambda o, x: o.permute(o.permute(x, [1, 2, 0]), [0, 2, -2]),
        lambda o, x: o.permute(x, [1, 0, 2]),
        [X],
    ),
    "transpose of a number": (
        lambda o, x: o.relu(o.transpose(o.sum(x), 0, -1)),
        lambda o, x: o.relu(o.sum(x)),
        [X],
    ),
    "movedim of a number": (
        lambda o, x: o.relu(o.call("aten.movedim.int", o.sum(x), 0, 0)),
        lambda o, x: o.relu(o.sum(x)),
        [X],
    ),
    "divided by 1": (lambda o, x: o.relu(o.div(x, 1)), lambda o, x: o.relu(x), [X]),
    "softmax as it is lowered": (
        lambda o, x: o.call("aten._softmax.default", x, -1, False),
        lambda o, x: o.softmax(x, -1),
        [X],
    ),
    "a copy in order of a transposed value": (
        lambda o, x: o.relu(
            o.clone(o.permute(x, [1, 0, 2]), memory_format=torch.contiguous_format)
        ),
        lambda o, x: o.relu(o.contiguous(o.permute(x, [1, 0, 2]))),
        [X],
    ),
    "twice transposed": (lambda o, x: o.mT(o.transpose(x, 1, 2)), as_is, [X]),
    "view": (lambda o, x: o.view(x, [6, -1]), lambda o, x: o.reshape(x, [6, 4]), [X]),
    "flatten": (lambda o, x: o.flatten(x, 1), lambda o, x: o.reshape(x, [2, 12]), [X]),
    "unsqueeze and squeeze": (lambda o, x: o.squeeze(o.unsqueeze(x, 1), 1), as_is, [X]),
    "unflatten": (
        lambda o, x: o.call("aten.unflatten.int", x, -1, [2, -1]),
        lambda o, x: o.reshape(x, [2, 3, 2, 2]),
        [X],
    ),
    "views in a row": (
        lambda o, x: o.unsqueeze(o.view(o.flatten(x), [4, 6]), 0),
        lambda o, x: o.reshape(x, [1, 4, 6]),
        [X],
    ),
    "copy before reshape": (
        lambda o, x: o.view(o.contiguous(o.transpose(x, 0, 1)), [3, 8]),
        lambda o, x: o.reshape(o.permute(x, [1, 0, 2]), [3, 8]),
        [X],
    ),
    "expand to the same shape": (lambda o, x: o.expand(x, [-1, 3, 4]), as_is, [X]),
    "whole slice": (lambda o, x: o.slice(x, 1, 0, 100), as_is, [X]),
    "meshgrid": (
        lambda o, a, b: tuple(
            o.relu(o.getitem(o.call("aten.meshgrid.indexing", [a, b], indexing="xy"), i))
            for i in (0, 1)
        ),
        lambda o, a, b: (
            o.relu(o.expand(o.reshape(a, [1, 5]), [4, 5])),
            o.relu(o.expand(o.reshape(b, [4, 1]), [4, 5])),
        ),
        [B, X[0, 0]],
    ),
    "broadcast_tensors": (
        lambda o, x, w: o.relu(o.getitem(o.call("aten.broadcast_tensors.default", [x, w]), 1)),
        lambda o, x, w: o.relu(o.expand(w, [2, 3, 4])),
        [X, W[0]],
    ),
    "cat with nothing": (
        lambda o, x: o.relu(o.cat([x, o.slice(x, 2, 4, 9)], -1)),
        lambda o, x: o.relu(x),
        [X],
    ),
    "cat with torch's empty one of any rank": (
        lambda o, x, e: o.relu(o.cat([e, x], -1)),
        lambda o, x, e: o.relu(x),
        [X, torch.zeros(0)],
    ),
    "cat of one": (lambda o, x: o.relu(o.cat([x], 0)), lambda o, x: o.relu(x), [X]),
    "dropout": (lambda o, x: o.relu(o.dropout(x, 0.5, False)), lambda o, x: o.relu(x), [X]),
    "contiguous already": (lambda o, x: o.contiguous(x), as_is, [X]),
    "inner clone": (lambda o, x: o.relu(o.clone(x)), lambda o, x: o.relu(x), [X]),
    "cast to the same dtype": (lambda o, x: o.relu(o.type_as(x, x)), lambda o, x: o.relu(x), [X]),
    "cast forms": (
        lambda o, x: o.call("aten._to_copy.default", x, dtype=torch.float64),
        lambda o, x: o.call("aten.to.dtype", x, torch.float64),
        [X],
    ),
    "lossless detour": (
        lambda o, x: o.relu(o.to(o.to(x, torch.float32), torch.bfloat16)),
        lambda o, x: o.relu(x),
        [X.bfloat16()],
    ),
    "and": (
        lambda o, x: o.call("aten.__and__.Tensor", x, x),
        lambda o, x: o.call("aten.bitwise_and.Tensor", x, x),
        [INTS],
    ),
    "logical and of bools": (
        lambda o, x: o.logical_not(o.logical_and(x, x)),
        lambda o, x: o.bitwise_not(o.call("aten.bitwise_and.Tensor", x, x)),
        [INTS > 2],
    ),
    "rsub": (
        lambda o, x, y: o.rsub(x, y, alpha=2),
        lambda o, x, y: o.sub(y, x, alpha=2),
        [X, X + 1],
    ),
    "integer plus 0": (lambda o, x: o.add(x, 0), as_is, [INTS]),
    "float minus 0": (lambda o, x: o.sub(x, 0.0), as_is, [X]),
    "times 1": (lambda o, x: o.mul(x, 1.0), as_is, [X]),
    "divided by 8": (
        lambda o, x: o.div(x, 8.0),
        lambda o, x: o.mul(x, 0.125),
        [X],
    ),
    "softmax over the last dim": (
        lambda o, x: o.call("aten.softmax.int", x, 2),
        lambda o, x: o.call("aten.softmax.int", x, -1),
        [X],
    ),
    "matmul with a transposed matrix": (
        lambda o, x, w: o.matmul(x, o.t(w)),
        lambda o, x, w: o.linear(x, w),
        [X, W],
    ),
    "linear of flattened rows": (
        lambda o, x, w, b: o.view(o.addmm(b, o.view(x, [6, 4]), o.t(w)), [2, 3, 5]),
        lambda o, x, w, b: o.linear(x, w, b),
        [X, W, B],
    ),
    "addmm": (
        lambda o, x, w, b: o.addmm(b, x, o.t(w)),
        lambda o, x, w, b: o.linear(x, w, b),
        [X[0], W, B],
    ),
}


@pytest.mark.parametrize("case", REWRITES)
def test_rewrites(case: str) -> None:
    before, after, inputs = REWRITES[case]
    report = check_pass(Canonicalize(), before, after, inputs)
    assert report.applied


KEPT = {
    "-0.0 + 0.0 is 0.0": (lambda o, x: o.add(x, 0.0), [X]),
    "divided by 3": (lambda o, x: o.div(x, 3.0), [X]),
    "times 2": (lambda o, x: o.mul(x, 2.0), [X]),
    "divided by a tiny power of two": (lambda o, x: o.div(x, 2.0**-20), [X]),
    "cat of another dtype and nothing": (
        lambda o, x, y: o.cat([x, y], 0),
        [X, torch.randn(0, 3, 4, dtype=torch.float64)],
    ),
    "plus 1": (lambda o, x: o.add(x, 1), [INTS]),
    "plus 0 that promotes": (lambda o, x: o.add(x, 0.0), [INTS]),
    "expanded": (lambda o, x: o.expand(x, [4, 2, 3, 4]), [X]),
    "part of a slice": (lambda o, x: o.relu(o.slice(x, 1, 0, 2)), [X]),
    "permuted": (lambda o, x: o.permute(x, [1, 0, 2]), [X]),
    "times 1 that promotes": (lambda o, x: o.mul(x, 1.0), [INTS]),
    "a returned copy of an input": (lambda o, x: o.clone(x), [X]),
    "a returned view of a copy": (lambda o, x: o.permute(o.clone(x), [1, 0, 2]), [X]),
    "lossy detour": (lambda o, x: o.to(o.to(x, torch.bfloat16), torch.float32), [X]),
    "addmm with a scale": (
        lambda o, x, w, b: o.addmm(b, x, o.permute(w, [1, 0]), beta=2),
        [X[0], W, B],
    ),
    "a matrix that is not transposed": (lambda o, x, w: o.matmul(x, w), [X, W.t().contiguous()]),
    "training dropout": (lambda o, x: o.dropout(x, 0.5, True), [X]),
    "a returned copy made by cat": (lambda o, x: o.cat([x], 0), [X]),
    "a copy of a transposed value": (lambda o, x: o.contiguous(o.permute(x, [1, 0, 2])), [X]),
}


@pytest.mark.parametrize("case", KEPT)
def test_declines(case: str) -> None:
    before, inputs = KEPT[case]
    graph = graph_of(before, inputs, Canonicalize())
    result, _ = run_pass(Canonicalize(), graph)
    assert result is graph


def test_a_returned_copy_stays_a_copy_in_another_form() -> None:
    check_pass(
        Canonicalize(),
        lambda o, x: o.call("aten._to_copy.default", x),
        lambda o, x: o.clone(x),
        [X],
    )


def test_two_results_do_not_start_to_share_memory() -> None:
    graph = graph_of(lambda o, x: (o.relu(x), o.clone(o.relu(x))), [X], Canonicalize())
    result, _ = run_pass(Canonicalize(), graph)
    assert names(result) == ["aten.relu.default", "aten.clone.default"]


def test_a_constant_matrix_is_transposed_once() -> None:
    o = Builder()
    x = o.input("x", TensorType.dense((3, 4), torch.float32))
    c = o.const("c", TensorType.dense((4, 5), torch.float32))
    graph = Graph((x,), (o.mm(x, c),), {"c": torch.randn(4, 5)})
    once, _ = run_pass(Canonicalize(), graph, [(X[0],)])
    folded, _ = run_pass(FoldConstants(), once, [(X[0],)])
    assert names(folded) == ["aten.linear.default"]
    assert [tuple(c.shape) for c in folded.consts.values()] == [(5, 4)]


def test_accuracy_is_bitwise() -> None:
    inputs = [torch.randn(6, 8), torch.randn(3, 8), torch.randn(3)]
    graph = graph_of(
        lambda o, x, w, b: o.div(o.addmm(b, o.flatten(o.view(x, [6, 2, 4]), 1), o.t(w)), 4.0),
        inputs,
    )
    result, _ = run_pass(Canonicalize(), graph, [tuple(inputs)])
    assert names(result) == ["aten.linear.default", "aten.mul.Scalar"]


def test_idempotent() -> None:
    for before, _, inputs in REWRITES.values():
        once, _ = run_pass(Canonicalize(), graph_of(before, inputs, Canonicalize()))
        again, _ = run_pass(Canonicalize(), once)
        assert again is once


def test_gain() -> None:
    """A dropped copy and a dropped cast are work that is not done."""
    o = Builder()
    x = o.input("x", TensorType.dense((256, 256), torch.float32))
    graph = Graph((x,), (o.relu(o.view(o.contiguous(o.clone(x)), [-1])),))
    result, _ = run_pass(Canonicalize(), graph)
    target = Target.parse("cpu:avx2")
    assert graph_seconds(result, target) < graph_seconds(graph, target)


DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
]
# wider dtypes that hold every value
WAYS_BACK = {
    torch.bool: 9, torch.uint8: 7, torch.int8: 7, torch.int16: 4, torch.int32: 2,
    torch.float16: 2, torch.bfloat16: 2, torch.float32: 1,
}  # fmt: skip


@pytest.mark.parametrize("start", DTYPES, ids=str)
def test_a_detour_through_a_dtype_is_left_out_only_where_it_changes_nothing(start):
    values = torch.tensor([0, 1, 2, 3, 5, 77, 127, 255, 2049, 32767, 2**24 + 1, 2**31 - 1])
    values = torch.cat([values, -values, torch.arange(256)]).to(start)
    if start.is_floating_point:
        values = torch.cat([values, torch.tensor([0.1, 1e-7, -3.3, float("inf")]).to(start)])
    left_out = set()
    for middle in DTYPES:
        for end in DTYPES:
            if _detour(start, middle, end):
                left_out.add((middle, end))
                assert torch.equal(values.to(middle).to(end), values.to(end)), (middle, end)
    ways_back = {middle for middle, end in left_out if end == start}
    assert len(ways_back) == WAYS_BACK.get(start, 0)
    assert all((middle, torch.float32) in left_out for middle in ways_back)
    assert {end for _, end in left_out} <= {start, *(d for d in DTYPES if d.is_floating_point)}


@pytest.mark.parametrize("start", [None, 0])
def test_a_copy_whose_memory_is_read_stays(start) -> None:
    """as_strided sees where a value lies: without the copy, in the middle of another."""

    def build(o, x):
        copy = o.clone(o.slice(x, 0, 1, 3))
        return o.relu(o.call("aten.as_strided.default", copy, [4], [1], start))

    x = torch.randn(5, 4)
    graph = graph_of(build, [x], Canonicalize())
    result, _ = run_pass(Canonicalize(), graph, [(x,)])
    assert "aten.clone.default" in names(result)
