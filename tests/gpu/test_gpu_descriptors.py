"""Programs whose launches bring memory for tensor descriptors."""

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")
from infopt.codegen.interpreted_device import InterpretedDevice
from infopt.codegen.launch import DESCRIPTOR
from infopt.codegen.load_gpu import compiled_kernels, gpu_program, lower_for_gpu
from infopt.runtime.device_program import DeviceProgram
from infopt.runtime.plan import LaunchStep, Plan
from tests.codegen.traced import compare, graph_of
from tests.gpu.interpreted import TARGET

CLOSE = (1e-2, 1e-2)
LAYER = "linear_tiles"


def described(node, emitter):
    return {"loads": "descriptors"} | {
        name: value for name, (value, *_) in emitter.space.items() if name != "loads"
    }


def lowered_of(f, args, dynamic=False):
    return lower_for_gpu(graph_of(f, args, dynamic), TARGET, described)


def two_layers(x, w, v):
    return F.linear(F.linear(x, w).sin(), v)


def args(rows):
    return [torch.randn(s).bfloat16() / 4 for s in ((rows, 64), (96, 64), (32, 96))]


def launches(plan):
    steps = [s for s in plan.steps if isinstance(s, LaunchStep)]
    return [(s, plan.kernels[s.device_kernel]) for s in steps]


@pytest.mark.parametrize("how", ["native", "python", "recorded"])
def test_a_program(how):
    lowered, device = lowered_of(two_layers, args(20), dynamic=True), InterpretedDevice()
    made = gpu_program(lowered, device, record=how == "recorded")
    if how == "python":
        made = DeviceProgram(made.plan, lowered.constants, device, device.take(lowered.kernels))
    for rows in (20, 70, 20):
        compare(made, two_layers, args(rows), close=CLOSE)
    assert device.launched[LAYER] == 6
    assert Plan.from_json(made.plan.to_json()) == made.plan


def test_all_launches_have_the_same_memory():
    """As much as the largest needs, the last of the arguments of each."""
    plan = lowered_of(two_layers, args(20)).plan
    memory, grids = set(), []
    for step, kernel in launches(plan):
        if kernel.library.startswith(LAYER):
            memory.add(step.arguments[-1])
            grids.append([plan.expressions[g] for g in step.grid])
            assert kernel.arguments[-1] == "pointer"
    ((buffer, offset),) = memory
    assert plan.buffers[buffer].kind == "output" and plan.expressions[offset] == (0,)
    assert grids == [[(2,), (1,), (1,)], [(1,), (1,), (1,)]]
    assert plan.expressions[plan.buffers[buffer].bytes] == (2 * DESCRIPTOR * 2,)


def test_operands_at_odd_addresses_are_loaded_by_pointers():
    def f(x, w):
        return F.linear(x[1:], w)

    x, w = torch.randn(21, 64).bfloat16(), torch.randn(96, 64).bfloat16()

    def odd(x, w):
        return F.linear(x.flatten()[1:1281].view(20, 64), w)

    for of, number in ((f, 2), (odd, 0)):
        lowered = lowered_of(of, (x, w))
        (text,) = (t for t in lowered.kernels if t.launch.entry == LAYER)
        assert text.launch.descriptors == number
        compare(gpu_program(lowered, InterpretedDevice()), of, (x, w), close=CLOSE)


def test_machine_code_of_a_program():
    plan, code = compiled_kernels(lowered_of(two_layers, args(20)))
    kernels = [k for _, k in launches(plan) if k.library.startswith(LAYER)]
    assert kernels
    for kernel in kernels:
        assert kernel.arguments[-1] == "pointer" and kernel.absent == 1
        assert b"cp.async.bulk.tensor" in code[kernel.library]
