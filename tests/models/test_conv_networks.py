"""Convolutional networks through both doors: all native, as exact as eager, any batch size."""

import pytest
import torch
import transformers
from torch import nn

import infopt
from infopt.models.resnet import SMALL, ResNet

SIZES = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 2, 1, 1]}
MODELS = {
    "resnet": lambda: transformers.ResNetModel(
        transformers.ResNetConfig(embedding_size=16, **SIZES)
    ),
    "regnet": lambda: transformers.RegNetModel(
        transformers.RegNetConfig(embedding_size=16, groups_width=8, **SIZES)
    ),
    "convnext": lambda: transformers.ConvNextModel(transformers.ConvNextConfig(**SIZES)),
    "mobilenet_v2": lambda: transformers.MobileNetV2Model(
        transformers.MobileNetV2Config(depth_multiplier=0.1)
    ),
    "efficientnet": lambda: transformers.EfficientNetModel(
        transformers.EfficientNetConfig(
            width_coefficient=0.25, depth_coefficient=0.1, hidden_dim=320
        )
    ),
}


def trained(model: nn.Module) -> nn.Module:
    """The model with norms that have seen data."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    return model.eval()


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).abs().max() / exact.abs().max())


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow)
        if name in ("efficientnet", "mobilenet_v2")
        else name
        for name in MODELS
    ],
)
def test_networks_are_native_and_as_exact_as_eager(name: str) -> None:
    check_network(name, torch.float32)


@pytest.mark.parametrize(
    "name", [n if n == "resnet" else pytest.param(n, marks=pytest.mark.slow) for n in MODELS]
)
def test_networks_in_bf16(name: str) -> None:
    check_network(name, torch.bfloat16)


@torch.no_grad()
def check_network(name: str, dtype: torch.dtype) -> None:
    model = trained(MODELS[name]()).to(dtype)
    x = torch.randn(2, 3, 64, 64).to(dtype)
    eager, compiled = model(x)[0], infopt.compile(model, (x,))
    assert compiled.report.aten_nodes == 0, compiled.report
    found = compiled(x)[0]
    assert (found.dtype, found.stride()) == (eager.dtype, eager.stride())
    exact = model.double()(x.double())[0]
    assert error(found, exact) <= 1.5 * error(eager, exact) + 1e-6


@torch.no_grad()
def test_torch_compile_sees_new_weights_and_new_batches() -> None:
    model = trained(ResNet(SMALL))
    run = torch.compile(model, backend="infopt", dynamic=True)
    for batch in (2, 5, 3):
        x = torch.randn(batch, 3, 32, 32)
        torch.testing.assert_close(run(x), model(x), rtol=1e-4, atol=1e-5)
        for parameter in model.parameters():
            parameter.mul_(1.05)
        model.stem_norm.running_mean.add_(0.2)


@torch.no_grad()
def test_an_open_batch_and_channels_last() -> None:
    model = trained(ResNet(SMALL))
    shapes = {"images": {0: torch.export.Dim("batch", min=2, max=64)}}
    compiled = infopt.compile(model, (torch.randn(4, 3, 32, 32),), dynamic_shapes=shapes)
    for batch in (2, 7):
        x = torch.randn(batch, 3, 32, 32)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)

    model = model.to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    compiled = infopt.compile(model, (x,))
    assert compiled.report.aten_nodes == 0, compiled.report
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
