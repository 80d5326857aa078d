"""Tensors that are not traced, each with the reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from infopt.compiler.errors import TraceDeclined
from infopt.compiler.tracing.refusals import check_tensor
from tests.conformance.harness import check


class Own(torch.Tensor):
    pass


REFUSED: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
    "device": (lambda: torch.empty(2, device="meta"), "w is on meta, expected one of cpu, cuda"),
    "layout": (lambda: torch.eye(2).to_sparse(), "w is a torch.sparse_coo tensor"),
    "compressed": (lambda: torch.eye(2).to_sparse_csr(), "w is a torch.sparse_csr tensor"),
    "complex": (lambda: torch.zeros(2, dtype=torch.complex64), "w is complex or lazily negated"),
    "negated": (
        lambda: torch.zeros(2, dtype=torch.complex64).conj().imag, "w is complex or lazily negated"
    ),
    "subclass": (lambda: torch.zeros(2).as_subclass(Own), "w is a Own, a tensor subclass"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    make, reason = REFUSED[case]
    with pytest.raises(TraceDeclined) as found:
        check_tensor("w", make())
    assert str(found.value) == reason


def test_plain_ones_are_traced() -> None:
    for value in (torch.zeros(2), torch.nn.Parameter(torch.zeros(2)), torch.zeros(3, 2).T):
        check_tensor("w", value)
    check_tensor("w", torch.nn.Buffer(torch.zeros(2)))


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
def test_strides_that_torch_misjudges_are_eagers(mode: str) -> None:
    x = torch.randn(4, 2, 5)
    for view in (x, x.transpose(0, 1), x.permute(2, 0, 1), x.permute(0, 2, 1)):
        check(lambda x: torch.nn.functional.interpolate(x, scale_factor=2, mode=mode), (view,))
