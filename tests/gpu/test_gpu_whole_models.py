"""Whole models of which torch runs nothing on a GPU: images, fewer tokens, thin factors, padding
dropped. The interpreter stands for the GPU, eager torch says what is right."""

import pytest
import torch

pytest.importorskip("triton")
import infopt
from infopt.codegen.interpreted_device import InterpretedDevice
from infopt.compiler import target, target_gpu
from infopt.models.encoder import Encoder, EncoderConfig
from infopt.models.resnet import SMALL, ResNet
from infopt.models.vision import VisionConfig, VisionTransformer
from tests.adapters import merged, random_adapter
from tests.codegen.gpu.launched import most

VISION = VisionConfig(image=32, patch=8, width=64, layers=2, heads=2, hidden=96, classes=10)
TEXT = EncoderConfig(vocabulary=50, width=64, layers=1, heads=2, hidden=96, positions=32)


def native(model, args, **options):
    """The model compiled for a GPU, its results on these arguments, and what was launched."""
    device = InterpretedDevice()
    compiled = infopt.compile(model, args, target="cuda:sm90", device=device, **options)
    assert compiled.report.aten_nodes == 0, compiled.report
    with torch.no_grad():
        return compiled, compiled(*args), device.launched


@pytest.fixture(autouse=True)
def free_launches(monkeypatch):
    """What pays for large models pays for small ones."""
    monkeypatch.setattr(target_gpu, "LAUNCH_COST", 0.0)
    monkeypatch.setattr(target, "_CPU_LAUNCH", 0.0)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_a_vision_transformer():
    model, x = VisionTransformer(VISION).eval(), torch.randn(2, 3, 32, 32)
    _, found, launched = native(model, (x,))
    close(found, model(x).detach())
    # of the last layer only the first token is read
    assert (launched["flash"], launched["flash_few"]) == (VISION.layers - 1, 1)


@pytest.mark.parametrize("method", ["prune", *most("merge")])
def test_a_vision_transformer_of_fewer_tokens(method):
    model, x = VisionTransformer(VISION).eval(), torch.randn(1, 3, 32, 32)
    tokens = infopt.Tokens(0.6, method, limit=2.0)
    _, found, launched = native(model, (x,), tokens=tokens)
    close(found, infopt.compile(model, (x,), tokens=tokens)(x))
    assert launched["weights_received" if method == "prune" else "merged_rows"]


def test_a_residual_network():
    model, x = ResNet(SMALL).eval(), torch.randn(2, 3, 32, 32)
    _, found, launched = native(model, (x,))
    close(found, model(x).detach())
    assert launched["conv_tiles"] > 6 and launched["pool_windows"] == 1


@pytest.mark.slow
def test_thin_factors():
    net = torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.GELU()).eval()
    with torch.no_grad():  # of rank 64
        net[0].weight.copy_(torch.randn(512, 64) @ torch.randn(64, 512) / (64 * 512) ** 0.5)
    x = torch.randn(20, 512)
    _, found, launched = native(net, (x,), low_rank=0.125)
    close(found, infopt.compile(net, (x,), low_rank=0.125)(x))
    assert launched["linear_tiles"] == 2


@pytest.mark.parametrize("layers", ["*query,*value", "*query,*up,*down"])
def test_adapters_of_rows(layers):
    model, ids = Encoder(TEXT).eval(), torch.randint(0, 50, (3, 9))
    room = infopt.Adapters(4, 2, layers)
    _, plain, _ = native(model, (ids,))
    compiled, base, launched = native(model, (ids,), adapters=room)
    assert launched["adapter_up"] == len(layers.split(","))
    if "up" in layers:  # its activation is a kernel of its own
        close(base, plain)
    else:
        assert torch.equal(base, plain)
    adapter = random_adapter(model, compiled.adapters.room.layers, 3, 1)
    compiled.adapters.load("one", adapter)
    found = compiled(ids, adapters=[None, "one", None])
    assert torch.equal(found[::2], base[::2])
    with torch.no_grad():
        close(found[1:2], merged(model, adapter)(ids[1:2]))


class Pooled(torch.nn.Module):
    """The mean of an encoder's states over the real tokens."""

    def __init__(self):
        super().__init__()
        self.encoder = Encoder(TEXT)

    def forward(self, ids, mask):
        weight = mask[..., None].float()
        return (self.encoder(ids, mask) * weight).sum(1) / weight.sum(1)


def test_an_encoder_without_padding():
    model, ids = Pooled().eval(), torch.randint(0, 50, (3, 16))
    mask = (torch.arange(16) < torch.tensor([[16], [3], [5]])).long()
    compiled, found, launched = native(model, (ids, mask))
    close(found, model(ids, mask).detach())
    assert launched["flash_ragged"] == TEXT.layers
    mask = (torch.arange(16) < torch.tensor([[1], [9], [2]])).long()
    with torch.no_grad():
        close(compiled(ids, mask), model(ids, mask))
