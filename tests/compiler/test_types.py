"""Types: sizes, strides, names, dims."""

import pickle

import pytest
import sympy
import torch
from torch.utils._sympy.functions import CeilToInt, FloatTrueDiv, ToFloat

from infopt.compiler.types import (
    Dim,
    TensorType,
    as_size,
    contiguous_strides,
    dtype_name,
    hint,
    substitute,
)

S = sympy.Symbol("s0", integer=True, positive=True)
SHAPES = [(), (3,), (2, 3), (1, 5, 1), (0, 4), (4, 0, 2), (2, 1, 3, 1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_dense_is_what_torch_makes(shape) -> None:
    tensor = torch.empty(shape)
    assert TensorType.dense(shape, torch.float32) == TensorType.of(tensor)
    assert TensorType.of(tensor).is_contiguous and tensor.is_contiguous()


@pytest.mark.parametrize(
    "make", [lambda t: t.t(), lambda t: t[:, :1], lambda t: t[:1], lambda t: t[::2]]
)
def test_contiguity_agrees_with_torch(make) -> None:
    tensor = make(torch.empty(4, 6))
    assert TensorType.of(tensor).is_contiguous == tensor.is_contiguous()


def test_the_length_of_a_range_of_middles_is_whole() -> None:
    """torch counts arange(0.5, n) in floating point."""
    middles = ToFloat(S) - sympy.Float(0.5)
    assert as_size(CeilToInt(middles)) == S
    assert as_size(CeilToInt(FloatTrueDiv(middles, sympy.Float(1.0))) ** 2) == S**2
    for other in (FloatTrueDiv(middles, sympy.Float(2.0)), ToFloat(S) - sympy.Float(0.3)):
        assert as_size(CeilToInt(other)) == CeilToInt(other)


def test_expanded_tensors() -> None:
    t = TensorType.of(torch.empty(1, 3).expand(5, 3))
    assert t.strides == (0, 1) and not t.is_contiguous and t.numel == 15


def test_text() -> None:
    assert str(TensorType.dense((S, 4), torch.bfloat16)) == "bf16[s0, 4]"
    assert str(TensorType((2, 3), torch.bool, (1, 2))) == "bool[2, 3]|1, 2"
    assert dtype_name(torch.complex64) == "complex64"


def test_symbolic_sizes() -> None:
    t = TensorType.dense((S, 4), torch.float32)
    assert not t.is_static and t.is_contiguous and t.nbytes == 16 * S
    assert contiguous_strides((2, S, 3)) == (3 * S, 3, 1)
    assert substitute(S * 2 + 1, {S: 5}) == 11 and substitute(7, {}) == 7
    dim = Dim(S, 2, None, 9)
    assert hint(S + 1, [dim]) == 10
    assert str(dim) == "s0 in [2, ∞], seen 9" and dim.name == "s0"


def test_as_size() -> None:
    assert as_size(sympy.Integer(3)) == 3 and isinstance(as_size(sympy.Integer(3)), int)
    assert as_size(S) is S
    for wrong in (True, 1.5, "3"):
        with pytest.raises(TypeError, match="expected a size"):
            as_size(wrong)


def test_types_are_values() -> None:
    a, b = (TensorType.dense((2, S), torch.float32) for _ in range(2))
    assert a == b and hash(a) == hash(b) and a is not b
    assert a.with_dtype(torch.int8).dtype == torch.int8
    assert pickle.loads(pickle.dumps(TensorType.dense((2,), torch.int8))).shape == (2,)


@pytest.mark.parametrize(
    ("kind", "dtypes"),
    [
        ("f", (torch.float64, torch.float32, torch.float16)),
        ("i", (torch.int64, torch.int32, torch.int16, torch.int8)),
        ("u", (torch.uint8,)),
    ],
)
def test_short_names_say_kind_and_bits(kind: str, dtypes) -> None:
    assert [dtype_name(d) for d in dtypes] == [f"{kind}{8 * d.itemsize}" for d in dtypes]
    assert [dtype_name(d) for d in (torch.bfloat16, torch.bool)] == ["bf16", "bool"]
    assert dtype_name(torch.complex64) == "complex64"
