"""The pure forms of operators that write, and which of them have none."""

from __future__ import annotations

import pytest
import torch

from infopt.compiler.errors import TraceDeclined
from infopt.compiler.tracing.functionalize import pure_form

aten = torch.ops.aten
FORMS = {
    aten.add_.Tensor: aten.add.Tensor,
    aten.add_.Scalar: aten.add.Scalar,
    aten.relu_.default: aten.relu.default,
    aten.masked_fill_.Scalar: aten.masked_fill.Scalar,
    aten.index_put_.default: aten.index_put.default,
    aten.copy_.default: aten.copy.default,
}
NO_PURE_FORM = "writes to its arguments and has no pure form"
RANDOM = "fills memory with random numbers in place"
REFUSED = {
    aten.add.out: NO_PURE_FORM,  # its name says nothing of writing
    aten.set_data.default: NO_PURE_FORM,
    aten.__ilshift__.Scalar: NO_PURE_FORM,
    aten.dropout_.default: NO_PURE_FORM,  # the one of that name calls its argument otherwise
    aten.normal_.default: NO_PURE_FORM,
    aten.bernoulli_.float: NO_PURE_FORM,
    aten.uniform_.default: RANDOM,
    aten.random_.default: RANDOM,
}


@pytest.mark.parametrize("overload", FORMS, ids=str)
def test_pure_forms(overload: torch._ops.OpOverload) -> None:
    found = pure_form(overload)
    assert found is FORMS[overload] and not found._schema.is_mutable


@pytest.mark.parametrize("overload", REFUSED, ids=str)
def test_what_has_none(overload: torch._ops.OpOverload) -> None:
    with pytest.raises(TraceDeclined) as refused:
        pure_form(overload)
    assert str(refused.value) == f"{overload} {REFUSED[overload]}"
