"""Rows of the cache in bytes: what they keep of numbers that have no integer."""

import math

import pytest
import torch

from infopt.codegen.kernels.kv_cache import from_bytes, kv_append_int8
from tests.codegen.kernel_call import call_kernel, every_level


@every_level
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 7, 39])
def test_a_row_shows_a_number_that_is_none(level: str, odd: float, place: int) -> None:
    """Wherever in its row it stands: a NaN that was not the last one was once lost."""
    x = torch.randn(1, 2, 4, 40)
    x[0, 1, 2, place] = odd
    starts, counts = torch.tensor([1]), torch.tensor([4])
    native = torch.zeros(1, 2, 6, 44, dtype=torch.int8)
    torchs = kv_append_int8.reference(native, x, starts, counts)
    numbers = 1, 2, 4, 6, 40, *x.stride()[:3], *native.stride()[:3]
    call_kernel(level, "infopt_kv_append_int8_f32", (x, starts, counts, native), numbers, 2, 0)
    for found in map(from_bytes, (native, torchs)):
        assert found[0, 1, 3].isnan().all()  # the factor tells it, of the whole row
        found[0, 1, 3] = x[0, 1, 2] = 0
        error = (found[:, :, 1:5] - x).abs().amax(-1)
        assert (error <= x.abs().amax(-1) / 253).all()
        assert found[:, :, [0, 5]].count_nonzero() == 0
