"""Which values have the batch's rows in front, and which only look as if."""

import pytest
import sympy
import torch

from infopt.compiler.graph import Graph
from infopt.compiler.infer import Builder, builder_for
from infopt.compiler.types import Dim, TensorType
from infopt.passes.batch_rows import batch_rows

OPEN = Dim(sympy.Symbol("batch", positive=True, integer=True), 1, None, 6)


def follows(build, batch=6, shape=(5, 8)) -> bool:
    """Whether the result of a program over x [batch, *shape] has the batch's rows."""
    dims = (OPEN,) if batch is OPEN.symbol else ()
    o = builder_for(dims) if dims else Builder()
    x = o.input("x", TensorType.dense((batch, *shape), torch.float32))
    w = o.input("w", TensorType.dense((8, 8), torch.float32))
    found = build(o, x, w)
    return found in batch_rows(Graph((x, w), (found,), dims=dims), batch)


KEPT = {
    "products": lambda o, x, w: o.relu(o.linear(x, w)),
    "flattened": lambda o, x, w: o.reshape(x, [x.shape[0] * 5, 8]),
    "heads": lambda o, x, w: o.permute(o.reshape(x, [x.shape[0], 5, 2, 4]), [0, 2, 1, 3]),
    "gathered": lambda o, x, w: o.gather(x, 1, o.to(x, torch.int64)),
    "a piece": lambda o, x, w: o.getitem(o.call("aten.split.Tensor", x, 4, 2), 1),
    "scores": lambda o, x, w: o.softmax(o.matmul(x, o.permute(x, [0, 2, 1])), -1),
    "attention": lambda o, x, w: o.call(
        "kv_attention",
        *[o.reshape(x, [x.shape[0], 1, 5, 8])] * 3,
        o.to(o.sum(x, [1, 2]), torch.int64),
        scale=1.0,
    ),
}
LOST = {
    "tokens first": lambda o, x, w: o.permute(x, [1, 0, 2]),
    "turned around": lambda o, x, w: o.call("aten.flip.default", x, [0]),
    "twice": lambda o, x, w: o.cat([x, x], 0),
    "gathered": lambda o, x, w: o.gather(x, 0, o.to(x, torch.int64)),
    "pieces of the batch": lambda o, x, w: o.getitem(o.call("aten.split.Tensor", x, 3, 0), 1),
    "a weight": lambda o, x, w: o.relu(w),
    "one number": lambda o, x, w: o.sum(x),
}


@pytest.mark.parametrize("name", KEPT)
def test_rows_are_followed(name) -> None:
    assert follows(KEPT[name])
    assert follows(KEPT[name], OPEN.symbol)


@pytest.mark.parametrize("name", LOST)
def test_other_values_are_not(name) -> None:
    assert not follows(LOST[name])
    if name != "pieces of the batch":
        assert not follows(LOST[name], OPEN.symbol)


def test_all_of_a_program_belongs_to_one_row() -> None:
    assert follows(LOST["tokens first"], 1)
