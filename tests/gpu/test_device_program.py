"""Programs on a GPU: sizes, memory, launches, recordings; the interpreter stands for the GPU."""

import dataclasses

import pytest
import torch

pytest.importorskip("triton")
from infopt.codegen.interpreted_device import InterpretedDevice
from infopt.codegen.load_gpu import gpu_program
from infopt.runtime.device_program import DeviceProgram
from infopt.runtime.errors import InputMismatch, InputUnaligned, LaunchFailed, LibraryError
from infopt.runtime.plan import LaunchStep, Plan
from tests.codegen.traced import compare
from tests.gpu.interpreted import check, lowered_of, program_of


def twice(x, y):
    return (x + y).exp() * 2, torch.cumsum(x - y, 0) + 1


def args(*shape):
    return torch.randn(*shape), torch.randn(*shape)


def test_a_plan_is_plain_data():
    plan = program_of(twice, args(5, 7)).plan
    assert Plan.from_json(plan.to_json()) == plan
    assert plan.libraries == tuple(sorted({k.library for k in plan.kernels}))


def test_torch_calls_and_launches_in_one_program():
    made = check(twice, *args(5, 7), close=(1e-6, 1e-6))
    assert {type(s).__name__ for s in made.plan.steps} == {"LaunchStep", "AtenStep"}


@pytest.mark.parametrize("how", ["native", "older executor", "python"])
def test_every_way_of_launching(how):
    lowered, device = lowered_of(twice, args(5, 7), dynamic=True), InterpretedDevice()
    made = gpu_program(lowered, device)
    if how == "older executor":  # of a version that places memory, but launches nothing
        made.launches._native = None
    if how == "python":
        made = DeviceProgram(made.plan, lowered.constants, device, device.take(lowered.kernels))
    assert (made._native is None) == (how == "python")
    for shape in ((2, 3), (40, 50), (5, 7)):
        compare(made, twice, args(*shape), close=(1e-6, 1e-6))


def test_memory_of_dead_values_is_used_again():
    def deep(x):
        for _ in range(6):
            x = torch.cumsum(x.exp() * 2 + x.sum(), 0).sin()
        return x

    made = program_of(deep, (torch.randn(64, 64),))
    assert made.arena_bytes([]) <= 3 * 64 * 64 * 4


def test_strides_that_were_not_expected_are_copied():
    made = program_of(lambda x: x * 2, (torch.randn(6, 8),))
    x = torch.randn(8, 6).t()
    assert torch.equal(made([x])[0], x * 2)


def test_odd_addresses_are_brought_to_even_ones():
    made = program_of(lambda x: x * 2, (torch.randn(63),))
    x = torch.randn(64)[1:]
    assert x.data_ptr() % 16 and torch.equal(made([x])[0], x * 2)
    view = program_of(lambda x: (x * 2, x[3:]), (torch.randn(63),))
    with pytest.raises(InputUnaligned, match="multiple of 16 bytes"):
        view([x])


def test_views_at_odd_places_are_known_to_the_kernel():
    check(lambda x: x[1:] * 2 + x[:-1], torch.randn(50))
    check(lambda x: (x[3:].cumsum(0)[5:] * 2, x[:, 1] + 1), torch.randn(50, 9))


def test_what_is_written_to_an_input():
    def step(x, cache):
        cache.add_(x)
        return cache * 2

    check(step, *args(4, 4))


def test_a_call_that_does_not_fit():
    made = program_of(lambda x: x * 2, (torch.randn(6, 8),))
    with pytest.raises(InputMismatch, match=r"expected torch\.float32"):
        made([torch.randn(6, 8).double()])


def test_code_that_is_missing():
    lowered = lowered_of(lambda x: x * 2, (torch.randn(6),))
    with pytest.raises(LibraryError, match=r"needs 'region_.*not given"):
        DeviceProgram(lowered.plan, [], InterpretedDevice(), {})


@pytest.mark.parametrize("native", [True, False], ids=["native", "python"])
def test_a_launch_that_fails_names_the_kernel(native):
    lowered, device = lowered_of(lambda x: x * 2, (torch.randn(6),)), InterpretedDevice()
    (text,) = lowered.kernels
    broken = dataclasses.replace(
        text.launch, source=text.launch.source.replace("tl.load", "tl.lod")
    )
    lowered = dataclasses.replace(lowered, kernels=(dataclasses.replace(text, launch=broken),))
    made = gpu_program(lowered, device)
    if not native:
        made = DeviceProgram(made.plan, [], device, device.take(lowered.kernels))
    with pytest.raises(LaunchFailed, match=r"region_\w+ over \(\d+, 1, 1\) blocks of .*lod"):
        made([torch.randn(6)])


def test_profile_names_every_launch():
    made = program_of(twice, args(5, 7))
    launches = [s for s in made.plan.steps if isinstance(s, LaunchStep)]
    found = made.profile(list(args(5, 7)))
    assert [name for name, _ in found] == [
        made.plan.kernels[s.device_kernel].entry for s in launches
    ]
    assert all(nanoseconds > 0 for _, nanoseconds in found)
