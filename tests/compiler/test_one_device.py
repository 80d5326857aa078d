"""Which device tensors are on, their copies on the CPU, and the way back to what was copied."""

from __future__ import annotations

import pytest
import torch

from infopt.compiler.errors import TraceDeclined
from infopt.compiler.one_device import CPU, device_of, mapped, on_cpu, originals
from tests.compiler.elsewhere import plain, there

GPU = torch.device("cuda", 1)


def on_gpu(*shape: int) -> torch.Tensor:
    return there(torch.randn(*shape), 1)


def test_the_device_of_all() -> None:
    assert device_of([]) == device_of([3, None, torch.ones(2)]) == CPU
    assert device_of(["text", on_gpu(2), on_gpu(3)]) == GPU
    with pytest.raises(TraceDeclined, match="several devices: cuda:1, cpu; a program runs on one"):
        device_of([on_gpu(2), torch.ones(2)])


def test_what_is_on_the_cpu_is_no_copy() -> None:
    x = torch.ones(2)
    assert on_cpu(x) is x and on_cpu("text") == "text"
    (found,) = mapped({"x": x})
    assert found["x"] is x


def test_a_copy_leads_back_to_what_it_was_made_of() -> None:
    x, same = on_gpu(3), torch.ones(3)
    copy = on_cpu(x)
    assert copy.device == CPU and torch.equal(copy, plain(x))
    found = originals([same, copy], GPU)
    assert found[0] is same and found[1] is x
    assert originals([copy, same], torch.device("cuda", 0))[0] is copy  # it is on another GPU


def test_one_memory_is_copied_once() -> None:
    """As far as it is one tensor: another part, shape, order or dtype is another copy."""
    x, here = on_gpu(4, 4), torch.ones(2)
    views = {"turned": x.t(), "wide": x.reshape(2, 8), "bits": x.view(torch.int32), "rest": x[1:]}
    first, second = mapped({"x": x, "again": x[:]}, {"here": here, "x": x, **views})
    assert list(first) == ["x", "again"] and list(second) == ["here", "x", *views]
    assert first["again"] is first["x"] is second["x"] and second["here"] is here
    for name, value in views.items():
        assert torch.equal(second[name], plain(value)), name
    assert originals([first["x"]], GPU)[0] is x
