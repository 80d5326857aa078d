"""Whole models on a GPU that the interpreter stands for, through both front doors, equal eager."""

import pytest
import torch

pytest.importorskip("triton")
import infopt
from infopt.codegen.interpreted_device import InterpretedDevice
from infopt.codegen.load_gpu import gpu_program, lower_for_gpu
from infopt.compiler import dynamo
from infopt.compiler.errors import TraceDeclined
from infopt.compiler.machine import Machine, machine_for
from infopt.compiler.target import Target
from infopt.compiler.tracing.trace import from_fx
from infopt.models.decoder import SMALL, Decoder
from infopt.models.encoder import Encoder, EncoderConfig
from infopt.runtime.errors import DeviceMissing
from infopt.runtime.plan import LaunchStep

TINY = EncoderConfig(vocabulary=50, width=64, layers=2, heads=2, hidden=96, positions=32)


def text(batch, tokens):
    ids, mask = torch.randint(0, 50, (batch, tokens)), torch.ones(batch, tokens, dtype=torch.int64)
    mask[0, tokens - 2 :] = 0
    return ids, mask


@pytest.fixture
def device(monkeypatch):
    """torch.compile finds every input on this GPU."""
    made = InterpretedDevice()
    machine = Machine(Target.parse("cuda:sm90"), made)
    monkeypatch.setattr(dynamo, "machine_for", lambda values: machine)
    torch._dynamo.reset()
    return made


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_an_encoder_of_any_size():
    model, device = Encoder(TINY).eval(), InterpretedDevice()
    batch, tokens = torch.export.Dim("batch", max=8), torch.export.Dim("tokens", max=32)
    compiled = infopt.compile(
        model,
        text(2, 9),
        target="cuda:sm90",
        device=device,
        dynamic_shapes=({0: batch, 1: tokens}, {0: batch, 1: tokens}),
    )
    with torch.no_grad():
        for sizes in ((2, 9), (3, 16)):
            args = text(*sizes)
            close(compiled(*args), model(*args))
    assert compiled.report.target == "cuda:sm90" and device.launched["linear_tiles"] == 24
    steps = compiled._built.lowered.plan.steps
    assert sum(isinstance(s, LaunchStep) for s in steps) > 3 * compiled.report.aten_nodes


@pytest.mark.slow
def test_a_decoder_through_torch_compile(device):
    model = Decoder(SMALL).eval()
    fast = torch.compile(model, backend="infopt", mode="reduce-overhead")
    with torch.no_grad():
        for _ in range(3):  # plainly, recorded, replayed
            ids = torch.randint(0, 512, (1, 7))
            close(fast(ids), model(ids))
    launched = sum(device.launched.values())
    report = infopt.explain(fast)
    assert launched > 60 and "cuda:sm90" in report, report


def test_a_cross_compiled_model_can_only_be_saved():
    compiled = infopt.compile(Encoder(TINY).eval(), text(1, 5), target="cuda:sm90")
    assert compiled.report.memory["arena"] > 0
    if not torch.cuda.is_available():
        with pytest.raises(DeviceMissing, match=r"for a GPU sm90.*finds none"):
            compiled(*text(1, 5))


def test_weights_are_exchanged():
    model, other = torch.nn.Linear(16, 16).eval(), torch.nn.Linear(16, 16)
    device = InterpretedDevice()
    x = torch.randn(4, 16)
    compiled = infopt.compile(model, (x,), target="cuda:sm90", device=device)
    compiled.load_weights(other.state_dict())
    close(compiled(x), other(x).detach())


def test_a_buffer_that_the_model_writes():
    class Counts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(4))

        def forward(self, x):
            self.seen += x
            return self.seen * 2

    model = Counts().eval()
    compiled = infopt.compile(
        model, (torch.ones(4),), target="cuda:sm90", device=InterpretedDevice()
    )
    model.seen.zero_()
    for n in (1, 2, 3):
        assert torch.equal(compiled(torch.ones(4)), torch.full((4,), 2.0 * n))


def test_a_mode_other_than_reduce_overhead_records_nothing(device):
    fast = torch.compile(lambda x: x * 2 + 1, backend="infopt")
    for _ in range(3):
        x = torch.randn(5)
        assert torch.equal(fast(x), x * 2 + 1)
    assert sum(device.launched.values()) == 3


def test_several_devices_are_declined():
    meta = torch.empty(3, device="meta")
    with pytest.raises(TraceDeclined, match="several devices: cpu, meta"):
        machine_for([torch.empty(3), meta])
    with pytest.raises(TraceDeclined, match="on meta, expected the CPU or a GPU"):
        machine_for([meta])
    assert machine_for([3, torch.empty(2)]).target.kind == "cpu"


def test_tensors_of_a_gpu_are_traced_as_those_of_the_cpu():
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    def f(x, w):
        return torch.nn.functional.gelu(x @ w) + torch.arange(8, device=x.device)

    with FakeTensorMode():
        x, w = torch.empty(4, 8, device="cuda"), torch.empty(8, 8, device="cuda")
        module = make_fx(f, pre_dispatch=True)(x, w)
        mixed = make_fx(lambda x, w: (x.cpu() + 1, w * 2), pre_dispatch=True)(x, w)
    graph = from_fx(module)
    assert "device=cpu" in str(graph) and "cuda" not in str(graph)
    made = gpu_program(lower_for_gpu(graph, Target.parse("cuda:sm90")), InterpretedDevice())
    x, w = torch.randn(4, 8), torch.randn(8, 8)
    close(made([x, w])[0], f(x, w))
    with pytest.raises(TraceDeclined, match=r"several devices: input x_1 on cuda:0, .* on cpu"):
        from_fx(mixed)


def test_without_triton_torch_runs_it_and_says_why(monkeypatch):
    monkeypatch.setattr("infopt.codegen.load_gpu.has_triton", lambda: False)
    model, x = torch.nn.GELU().eval(), torch.randn(5)
    compiled = infopt.compile(model, (x,), target="cuda:sm90", device=InterpretedDevice())
    close(compiled(x), model(x))
    assert compiled.report.fallbacks == {"aten.gelu.default": "Triton is not installed"}
