"""Ways to run a model in float32 or bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.arm import Arm, Call


def _halved(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[nn.Module, tuple[Tensor, ...]]:
    narrow = tuple(x.bfloat16() if x.is_floating_point() else x for x in inputs)
    return model.bfloat16(), narrow


def _in(dtype: str, prepare: Callable[[nn.Module, tuple[Tensor, ...]], Call]) -> Any:
    if dtype == "fp32":
        return prepare
    return lambda model, inputs: prepare(*_halved(model, inputs))


def eager(model: nn.Module, inputs: tuple[Tensor, ...]) -> Call:
    return lambda: model(*inputs)


def dynamo(model: nn.Module, inputs: tuple[Tensor, ...]) -> Call:
    """What torch.compile costs with no compiler behind it."""
    run = torch.compile(model, backend="eager", dynamic=False)
    return lambda: run(*inputs)


def inductor(model: nn.Module, inputs: tuple[Tensor, ...]) -> Call:
    run = torch.compile(model, dynamic=False)
    return lambda: run(*inputs)


def inductor_max(model: nn.Module, inputs: tuple[Tensor, ...]) -> Call:
    import torch._inductor.config

    torch._inductor.config.freezing = True
    run = torch.compile(model, mode="max-autotune", dynamic=False)
    return lambda: run(*inputs)


def infopt_backend(model: nn.Module, inputs: tuple[Tensor, ...], **options: Any) -> Call:
    run = torch.compile(model, backend="infopt", dynamic=False, options=options or None)
    return lambda: run(*inputs)


def infopt_offline(model: nn.Module, inputs: tuple[Tensor, ...], **options: Any) -> Call:
    import infopt

    run = infopt.compile(model, inputs, **options)
    return lambda: run(*inputs)


def openvino(model: nn.Module, inputs: tuple[Tensor, ...], precision: str) -> Call:
    import openvino as ov

    converted = ov.convert_model(model, example_input=inputs, input=[list(x.shape) for x in inputs])
    settings = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    settings["INFERENCE_NUM_THREADS"] = str(torch.get_num_threads())
    run = ov.Core().compile_model(converted, "CPU", settings).create_infer_request()
    arrays = [x.numpy() for x in inputs]
    return lambda: torch.from_numpy(run.infer(arrays, share_inputs=True)[0])


def onnxruntime(model: nn.Module, inputs: tuple[Tensor, ...]) -> Call:
    import tempfile

    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model.onnx"
        torch.onnx.export(model, inputs, path, dynamo=True, verbose=False)
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = torch.get_num_threads()
        session = ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    feed = {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def _bf16(prepare: Callable[..., Call]) -> Callable[[nn.Module, tuple[Tensor, ...]], Call]:
    return lambda model, inputs: prepare(model, inputs, compute="bf16")


def _openvino(precision: str) -> Callable[[nn.Module, tuple[Tensor, ...]], Call]:
    return lambda model, inputs: openvino(model, inputs, precision)


_IN_BOTH = tuple(
    Arm(name, dtype, _in(dtype, prepare), own=own)
    for dtype in ("fp32", "bf16")
    for name, prepare, own in (
        ("eager", eager, False),
        ("dynamo", dynamo, False),
        ("inductor", inductor, False),
        ("inductor-max", inductor_max, False),
        ("infopt", infopt_backend, True),
        ("infopt-offline", infopt_offline, True),
    )
)

ARMS_FLOAT: tuple[Arm, ...] = (
    *_IN_BOTH,
    Arm("infopt-compute", "bf16", _bf16(infopt_backend), own=True),
    Arm("infopt-offline-compute", "bf16", _bf16(infopt_offline), own=True),
    Arm("openvino", "fp32", _openvino("f32"), "openvino"),
    Arm("openvino", "bf16", _openvino("bf16"), "openvino"),
    Arm("onnxruntime", "fp32", onnxruntime, "onnxruntime"),
)
