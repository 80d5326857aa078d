"""Copies of torch results into the strides a plan expects."""

from __future__ import annotations

import pytest
import torch

from infopt.runtime.call import _copied


@pytest.mark.parametrize("strides", [(4, 1), (1, 3), (1, 0)])
def test_values_and_strides(strides):
    x = torch.arange(3.0).reshape(3, 1).expand(3, 4)
    made = _copied(x, strides)
    assert torch.equal(made, x) and made.stride() == strides
