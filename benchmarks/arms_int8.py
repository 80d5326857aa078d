"""The same models in int8: weights and activations, by every library's own recommended way."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.arm import Arm, Call
from benchmarks.arms_float import infopt_backend, infopt_offline


def infopt_int8(model: nn.Module, inputs: tuple[Tensor, ...], **options: Any) -> Call:
    return infopt_offline(model, inputs, weights="int8", activations="int8", **options)


def infopt_int8_bf16(model: nn.Module, inputs: tuple[Tensor, ...]) -> Call:
    """What is not a linear layer may be bf16."""
    return infopt_int8(model, inputs, compute="bf16")


def infopt_int8_static(model: nn.Module, inputs: tuple[Tensor, ...]) -> Call:
    """Ranges of activations from calibration, on the inputs as openvino_nncf's are."""
    options = {"weights": "int8", "activations": "int8-static", "compute": "bf16"}
    return infopt_offline(model, inputs, calibration=[inputs], **options)


def infopt_bf16(model: nn.Module, inputs: tuple[Tensor, ...]) -> Call:
    """The same without int8, to be compared with."""
    return infopt_offline(model, inputs, compute="bf16")


def infopt_int8_backend(model: nn.Module, inputs: tuple[Tensor, ...]) -> Call:
    options = {"weights": "int8", "activations": "int8", "compute": "bf16"}
    return infopt_backend(model, inputs, **options)


def torchao_inductor(model: nn.Module, inputs: tuple[Tensor, ...]) -> Call:
    """torchao's dynamic int8 activations and int8 weights, through Inductor."""
    import torch._inductor.config
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    torch._inductor.config.freezing = True
    run = torch.compile(model, mode="max-autotune", dynamic=False)
    return lambda: run(*inputs)


def openvino_nncf(model: nn.Module, inputs: tuple[Tensor, ...]) -> Call:
    """NNCF's post-training quantization for transformers, calibrated on the inputs."""
    import nncf
    import openvino as ov

    converted = ov.convert_model(model, example_input=inputs, input=[list(x.shape) for x in inputs])
    arrays = [x.numpy() for x in inputs]
    data = nncf.Dataset([arrays])
    quantized = nncf.quantize(converted, data, model_type=nncf.ModelType.TRANSFORMER)
    settings = {"PERFORMANCE_HINT": "LATENCY"}
    settings["INFERENCE_NUM_THREADS"] = str(torch.get_num_threads())
    run = ov.Core().compile_model(quantized, "CPU", settings).create_infer_request()
    return lambda: torch.from_numpy(run.infer(arrays, share_inputs=True)[0])


def onnxruntime_dynamic(model: nn.Module, inputs: tuple[Tensor, ...]) -> Call:
    """ONNX Runtime's dynamic quantization, weights per channel."""
    import onnxruntime as ort
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        path, small = f"{folder}/model.onnx", f"{folder}/small.onnx"
        torch.onnx.export(model, inputs, path, dynamo=True, verbose=False)
        quantize_dynamic(path, small, weight_type=QuantType.QInt8, per_channel=True)
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        session = ort.InferenceSession(small, settings, providers=["CPUExecutionProvider"])
    feed = {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


ARMS_INT8: tuple[Arm, ...] = (
    Arm("infopt-int8", "int8", infopt_int8, own=True),
    Arm("infopt-int8-bf16", "int8", infopt_int8_bf16, own=True),
    Arm("infopt-int8-static", "int8", infopt_int8_static, own=True),
    Arm("infopt-bf16", "int8", infopt_bf16, own=True),
    Arm("infopt-int8-backend", "int8", infopt_int8_backend, own=True),
    Arm("torchao-inductor", "int8", torchao_inductor, "torchao"),
    Arm("openvino-nncf", "int8", openvino_nncf, "nncf"),
    Arm("onnxruntime-dynamic", "int8", onnxruntime_dynamic, "onnxruntime"),
)
