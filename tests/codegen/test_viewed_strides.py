"""Another shape over the same memory: exactly where torch's own view can, in the strides it has."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infopt.codegen.sizes import Sizes
from infopt.codegen.views import Layout, viewed_strides
from infopt.compiler.types import TensorType
from tests.conformance.harness import check

SIZES = st.lists(st.sampled_from((1, 1, 2, 2, 3, 4, 6)), min_size=1, max_size=4)


@st.composite
def views(draw):
    """A tensor, permuted and sliced or not, and a shape of as many elements."""
    x = torch.zeros(draw(SIZES))
    x = x.permute(draw(st.permutations(range(x.dim()))))
    if draw(st.booleans()):
        x = x[..., :: draw(st.sampled_from((1, 2)))]
    left, shape = x.numel(), []
    while left > 1 and len(shape) < 4:
        size = draw(st.sampled_from([n for n in range(1, left + 1) if left % n == 0]))
        shape.append(size)
        left //= size
    return x, [*shape, left] if left > 1 else shape


@settings(max_examples=400)
@given(views())
def test_agrees_with_torch(case) -> None:
    x, shape = case
    assert math.prod(shape) == x.numel()
    found = viewed_strides(Layout.of(TensorType.of(x)), shape, Sizes({}, {}))
    try:
        expected = x.view(shape)
    except RuntimeError:
        assert found is None
        return
    assert found is not None
    steps = [s for n, s in zip(shape, found, strict=True) if n != 1]
    assert steps == [s for n, s in zip(shape, expected.stride(), strict=True) if n != 1]


def test_a_flattened_argument_is_a_view_of_it() -> None:
    for shape in ((5, 5, 5), (2, 3), (7,)):
        check(lambda x: (x.view(-1), x.flatten(), x.ravel()), (torch.randn(shape),), dynamic=False)
