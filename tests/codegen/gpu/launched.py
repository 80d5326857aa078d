"""Run an op's GPU kernel in Triton's interpreter, compile it, and say where it is not its op."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import sympy
import torch

import infopt.codegen.gpu  # noqa: F401
from infopt.codegen.gpu.interpret import interpret
from infopt.codegen.kernel import Config, Emitter, emitters
from infopt.codegen.launch import Launch
from infopt.codegen.triton_compile import ARCHITECTURES, CannotCompile, compile_launch
from infopt.compiler.accuracy import Exact
from infopt.compiler.ops import aten
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType, substitute

pytest.importorskip("triton", minversion="3.6")

ARCHES = tuple(ARCHITECTURES)
every_arch = pytest.mark.parametrize("arch", ARCHES)
OPEN = sympy.Symbol("s", integer=True, positive=True)


def most(*values: Any) -> list[Any]:
    """Values of a parameter that only the slow run takes: the interpreter is slow."""
    slow = pytest.mark.slow
    return [pytest.param(*(v if isinstance(v, tuple) else (v,)), marks=slow) for v in values]


def gpu(arch: str = "sm90", **changes: Any) -> Target:
    """A GPU with few multiprocessors, so that small cases meet persistent and split kernels."""
    target = Target.parse(f"{ARCHITECTURES[arch].platform}:{arch}")
    return replace(target, **{"cores": 4, **changes})


def flat(value: Any) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else list(value)


def emitter_of(op: Any) -> Emitter:
    (found,) = (e for e in emitters(op.name) if e.kind == "gpu")
    return found


def type_of(tensor: torch.Tensor | None, size: int | None = None) -> TensorType | None:
    """A tensor's type; sizes equal to `size` are open, strides follow where it is contiguous."""
    if tensor is None:
        return None
    found = TensorType.of(tensor)
    if size is None or size not in found.shape:
        return found
    assert found.is_contiguous, "open sizes of strided tensors"
    return TensorType.dense([OPEN if s == size else s for s in found.shape], found.dtype)


def complete(op: Any, args: Sequence[torch.Tensor | None], attrs: dict) -> tuple[list, dict]:
    """Every tensor in the op's order, None for those left out, and every attribute."""
    tensors = [p for p in op.parameters if p.is_tensor]
    usual = {p.name: p.default for p in op.parameters if not (p.is_tensor or p.required)}
    return [*args, *[None] * (len(tensors) - len(args))], usual | attrs


def reference(op: Any, args: Iterable[torch.Tensor | None], attrs: dict) -> Any:
    tensors, attrs = complete(op, list(args), attrs)
    positional, keyword = op.call_arguments(tuple(tensors), attrs)
    return op.reference(*positional, **keyword)


def launches_of(
    op: Any,
    args: Sequence[torch.Tensor | None],
    attrs: dict,
    target: Target,
    choice: dict | None = None,
    opened: int | None = None,
) -> tuple[list[Launch], dict[str, torch.Tensor]]:
    """An op's launches, and the tensors by name: operands laid out as wanted, results poisoned.

    Tensors without data (device "meta") do for compiling.
    """
    emitter = emitter_of(op)
    named: dict[str, torch.Tensor] = {}
    types = []
    parameters = [p for p in op.parameters if p.is_tensor]
    args, attrs = complete(op, args, attrs)
    for parameter, tensor in zip(parameters, args, strict=True):
        found = type_of(tensor, opened)
        wanted = emitter.layouts.get(parameter.name)
        strides = wanted(found) if found is not None and wanted else None
        if strides is not None:
            sizes = {"dtype": tensor.dtype, "device": tensor.device}
            copy = torch.empty_strided(tensor.shape, strides, **sizes)
            tensor = copy.copy_(tensor)
            found = type_of(tensor, opened)
        types.append(found)
        if tensor is not None:
            named[parameter.name] = tensor
    reason = emitter.reason_against(target, types, attrs)
    assert reason is None, reason
    with torch.no_grad():
        results = reference(op, args, attrs)
    single = isinstance(results, torch.Tensor)
    outs = []
    for i, result in enumerate(flat(results)):
        found = type_of(result.contiguous(), opened)
        if emitter.out:
            found = emitter.out(*types, **attrs)
        strides = [substitute(s, {OPEN: opened or 0}) for s in found.strides]
        made = torch.empty_strided(result.shape, strides, dtype=result.dtype, device=result.device)
        named["out" if single else f"out{i}"] = made.fill_(
            float("nan") if result.is_floating_point() else 77
        )
        outs.append(found)
    config = Config(tuple(outs), choice or next(emitter.schedules()))
    made = emitter.emit(config, target, *types, **attrs)
    return [made] if isinstance(made, Launch) else list(made), named


def check(
    op: Any,
    args: Sequence[torch.Tensor | None],
    attrs: dict,
    target: Target | None = None,
    choice: dict | None = None,
    opened: int | None = None,
) -> list[Launch]:
    """The kernel is as close to the op as the op's tolerance asks; returns what was launched."""
    launches, named = launches_of(op, args, attrs, target or gpu(), choice, opened)
    interpret(launches, named, {} if opened is None else {OPEN: opened})
    with torch.no_grad():
        expected = flat(reference(op, args, attrs))
        double = flat(reference(op, map(_double, args), attrs))
    found = [t for name, t in named.items() if name.startswith("out")]
    tolerance = getattr(op, "tolerance", None) or Exact()
    for a, b, d in zip(found, expected, double, strict=True):
        reason = tolerance.accepts(b, a, d)
        shapes = [tuple(x.shape) for x in args if x is not None]
        assert reason is None, f"{op.name} {shapes} {attrs}: {reason}"
    for name in emitter_of(op).over:
        check_over(launches, named, name, opened)
    return launches


def check_over(
    launches: Sequence[Launch], named: dict[str, torch.Tensor], name: str, opened: int | None
) -> None:
    """The same result where it is written over the operand `name`, if that lies as it does."""
    out, old = named["out"], named.get(name)
    if old is None or (out.shape, out.stride(), out.dtype) != (old.shape, old.stride(), old.dtype):
        return
    both = old.clone(memory_format=torch.preserve_format)
    interpret(
        launches, {**named, name: both, "out": both}, {} if opened is None else {OPEN: opened}
    )
    torch.testing.assert_close(both, out, rtol=0, atol=0, equal_nan=True)


def _double(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return tensor.double() if tensor is not None and tensor.is_floating_point() else tensor


def compiles(launches: Sequence[Launch], arch: str) -> None:
    """Every launch has machine code for the architecture, and nothing in it is spilled."""
    assert launches
    for launch in launches:
        found = compile_launch(launch, arch).resources
        assert not found.spills, f"{launch.entry} {dict(launch.constants)} {arch}: {found}"


__all__ = [
    "ARCHES", "OPEN", "CannotCompile", "aten", "check", "compiles", "every_arch", "gpu", "most",
]  # fmt: skip
