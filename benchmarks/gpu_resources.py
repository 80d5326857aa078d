"""`python -m benchmarks gpu_resources`: what the shipped GPU kernels take, without a GPU.

Every kernel in its usual schedule, bf16, compiled for each architecture: registers of a thread,
bytes spilled, shared memory of a block, and how much of a multiprocessor can be resident at once.
Fails where anything is spilled.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

import infopt.codegen.gpu  # noqa: F401  declares the kernels
from infopt.codegen.kernel import Config, emitters
from infopt.codegen.launch import Launch
from infopt.codegen.triton_compile import ARCHITECTURES, compile_launch
from infopt.codegen.weight_formats.weight_format import weight_format
from infopt.compiler.ops import find
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType

_FORMATS = ("int8", "int4-g32", "int4-g128", "fp8-e4m3", "lut3-g128", "lut4", "int4-g128+0.5%")


def main(arguments: list[str]) -> int:
    """Print the table; returns 1 where something is spilled."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu_resources", description=__doc__)
    parser.add_argument("--arch", nargs="*", default=list(ARCHITECTURES), choices=ARCHITECTURES)
    parser.add_argument("--only", default="", help="kernels whose label has this in it")
    given = parser.parse_args(arguments)
    print("| kernel | launch | " + " | ".join(given.arch) + " |")
    print("|---|---|" + "---|" * len(given.arch))
    spilled = False
    for label, name, tensors, attrs in kernels():
        if given.only not in label:
            continue
        made = [launches(name, tensors, attrs, arch) for arch in given.arch]
        for entry in dict.fromkeys(launch.entry for found in made for launch in found):
            cells = []
            for arch, found in zip(given.arch, made, strict=True):
                launch = next((x for x in found if x.entry == entry), None)
                if launch is None:
                    cells.append("")
                    continue
                took = compile_launch(launch, arch).resources
                spilled |= took.spills > 0
                lost = f", **{took.spills} B spilled**" if took.spills else ""
                shared = f"{took.shared / 1024:.0f} KiB"
                cells.append(f"{took.registers}, {shared}, {took.occupancy:.0%}{lost}")
            print(f"| {label} | `{entry}` | " + " | ".join(cells) + " |", flush=True)
    return int(spilled)


def kernels() -> Iterator[tuple[str, str, tuple[Any, ...], dict[str, Any]]]:
    """(label, op, types, attributes) of the shapes of an 8B decoder and a BERT."""

    def t(*shape: int, dtype: torch.dtype = torch.bfloat16) -> TensorType:
        return TensorType.dense(shape, dtype)

    gelu = {"activation": "gelu"}
    w, x, bias = t(4096, 4096), t(4096, 4096), t(4096)
    for rows in (4096, 8, 1):
        label = f"linear, gelu, {rows} rows"
        yield label, "linear_act", (t(rows, 4096), w, bias, t(rows, 4096)), gelu
        label = f"gated linear, {rows} rows"
        args = (t(rows, 4096), t(14336, 4096), t(14336, 4096), None, None)
        yield label, "gated_linear", args, {"activation": "silu"}
    ends = t(32, dtype=torch.int32)
    for rows in (4096, 32):
        args = (t(rows, 1024), t(32, 512, 1024), ends)
        yield f"32 experts, {rows} rows", "grouped_linear", args, {}
    yield "layer norm after a sum", "add_layer_norm", (x, x, bias, bias), {"eps": 1e-5}
    rms = {"eps": 1e-5, "offset": 0.0, "cast_first": True}
    yield "RMS norm", "rms_norm", (x, bias), rms
    yield "softmax", "aten.softmax.int", (x,), {"dim": -1, "dtype": None}
    for depth in (64, 128):
        q, k = t(2, 32, 4096, depth), t(2, 8, 4096, depth)
        plain = {"scale": 0.1, "causal": False, "window": 0}
        yield f"attention, causal, {depth}", "attention", (q, k, k, None), plain | {"causal": True}
        windowed = plain | {"causal": True, "window": 128}
        label = f"attention, window, sinks, {depth}"
        yield label, "attention_sinks", (q, k, k, t(32), None), windowed
        mask = t(2, 1, 1, 4096, dtype=torch.bool)
        yield f"attention, mask, {depth}", "attention", (q, k, k, mask), plain
        yield f"attention, 1 query, {depth}", "attention", (t(2, 32, 1, depth), k, k, None), plain
    cos = t(1, 4096, 128, dtype=torch.float32)
    args = (t(2, 32, 4096, 128), t(2, 8, 4096, 128), cos, cos)
    yield "rotary", "rotary", args, {"interleaved": False}
    ids = t(32, 128, dtype=torch.int64)
    tables = (ids, t(30522, 768), ids, t(2, 768), None, t(128, 768), t(768), t(768))
    yield "embedding and norm", "embedding_norm", tables, {"eps": 1e-12}
    for name in _FORMATS:
        stored = weight_format(name)
        held = {k: t(*s, dtype=d) for k, (s, d) in stored.types(4096, 4096).items()}
        weight, entries = (held["values"], held["scales"], held["sums"]), held.get("remainder")
        by_bytes = stored.dense.takes_bytes and entries is None
        for rows in (512, 1):
            for activations in ("none", "int8") if by_bytes else ("none",):
                attrs = {"format": stored.dense.name, "activations": activations}
                attrs |= {"activation": "none", "out": torch.bfloat16}
                label = f"{name}, activations {activations}, {rows} rows"
                args = (t(rows, 4096), *weight, None, None, entries)
                yield label, "quantized_linear", args, attrs
    attrs = {"format": stored.dense.name, "width": 4096, "out": torch.bfloat16}
    args = (t(32, 128, dtype=torch.int64), *weight[:2], entries)
    yield f"rows of a table in {name}", "quantized_embedding", args, attrs


def launches(name: str, types: tuple[Any, ...], attrs: dict[str, Any], arch: str) -> list[Launch]:
    """The launches of an op in its usual schedule; what is left out is as the op has it."""
    op = find(name)
    tensors = [p for p in op.parameters if p.is_tensor]
    types += (None,) * (len(tensors) - len(types))
    attrs = {p.name: p.default for p in op.parameters if not (p.is_tensor or p.required)} | attrs
    target = Target.parse(f"{ARCHITECTURES[arch].platform}:{arch}")
    emitter = next(e for e in emitters(op.name) if e.kind == "gpu")
    reason = emitter.reason_against(target, types, attrs)
    assert reason is None, f"{name}: {reason}"
    metas = tuple(
        a and torch.empty_strided(a.shape, a.strides, dtype=a.dtype, device="meta") for a in types
    )
    positional, keyword = op.call_arguments(metas, attrs)
    results = op.reference(*positional, **keyword)
    found = [results] if isinstance(results, torch.Tensor) else list(results)
    outs = tuple(replace(TensorType.of(r.contiguous()), device="cpu") for r in found)
    if emitter.out:
        outs = (emitter.out(*types, **attrs),)
    made = emitter.emit(Config(outs, next(emitter.schedules())), target, *types, **attrs)
    return [made] if isinstance(made, Launch) else list(made)
