"""Which values share memory: agrees with torch's own run."""

import pytest
import torch

from infopt.compiler.alias import is_view, owners_of_results
from infopt.compiler.graph import Graph
from infopt.compiler.infer import Builder
from infopt.compiler.interpret import interpret
from infopt.compiler.types import TensorType

F32 = torch.float32
CALLS = {
    "permute": lambda o, x: o.permute(x, [1, 0]),
    "reshape": lambda o, x: o.reshape(x, [12]),
    "reshape that copies": lambda o, x: o.reshape(o.permute(x, [1, 0]), [12]),
    "reshape to the same shape": lambda o, x: o.reshape(o.permute(x, [1, 0]), [4, 3]),
    "flatten that copies": lambda o, x: o.flatten(o.permute(x, [1, 0])),
    "contiguous": lambda o, x: o.contiguous(x),
    "contiguous that copies": lambda o, x: o.contiguous(o.permute(x, [1, 0])),
    "clone": lambda o, x: o.clone(x),
    "expand": lambda o, x: o.expand(x, [2, 3, 4]),
    "slice": lambda o, x: o.slice(x, 1, 0, 2),
    "select": lambda o, x: o.call("aten.select.int", x, 0, 1),
    "cast": lambda o, x: o.call("aten.to.dtype", x, torch.float64),
    "no cast": lambda o, x: o.call("aten.to.dtype", x, F32),
    "no cast, copied": lambda o, x: o.call("aten.to.dtype", x, F32, copy=True),
    "relu": lambda o, x: o.relu(x),
}


@pytest.mark.parametrize("name", CALLS)
def test_agrees_with_torch(name: str) -> None:
    o = Builder()
    x = o.input("x", TensorType.dense((3, 4), F32))
    node = CALLS[name](o, x)
    tensor = torch.randn(3, 4)
    (result,) = interpret(Graph((x,), (node,)), [tensor])
    shares = result.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    assert is_view(node) == shares
    assert (x in owners_of_results(Graph((x,), (node,)))) == shares
