"""Launches run on CPU tensors by Triton's interpreter: numerics without a GPU."""

from __future__ import annotations

import linecache
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from hashlib import sha256
from typing import Any

import numpy as np
import sympy
import torch

from infopt.codegen.launch import ELEMENT_NAMES, Launch, Pointer, Scratch
from infopt.compiler.types import Size, substitute

POISON = 0xFF  # what scratch memory holds at first: NaN as floats


def interpret(
    launches: Sequence[Launch],
    tensors: Mapping[str, torch.Tensor],
    sizes: Mapping[sympy.Symbol, int] | None = None,
) -> None:
    """Run launches in order on CPU tensors, writing their results in place.

    tensors: by the names that the launches' pointers have, results included, each of the dtype
    that its pointer names. sizes: the value of each open dim.
    """
    memory: dict[str, torch.Tensor] = {}

    def value(argument: Any) -> Any:
        if isinstance(argument, Pointer):
            return _tensor(argument, tensors, memory, at)
        return argument if isinstance(argument, float) else at(argument)

    def at(size: Size) -> int:
        return substitute(size, sizes or {})

    for launch in launches:
        grid = tuple(at(g) for g in launch.grid)
        if 0 in grid:
            continue
        function = module(launch.source, interpreted=True)[launch.entry]
        names = [n for n in function.arg_names if n not in launch.constants]
        given = zip(names, map(value, launch.arguments), strict=True)
        with interpreting():
            function[grid](**dict(given), **launch.constants)


def _tensor(
    pointer: Pointer,
    tensors: Mapping[str, torch.Tensor],
    memory: dict[str, torch.Tensor],
    at: Callable[[Size], int],
) -> torch.Tensor:
    if isinstance(pointer.of, Scratch):
        name = pointer.of.name
        if name not in memory:
            memory[name] = torch.full((at(pointer.of.bytes),), POISON, dtype=torch.uint8)
        return memory[name].view(pointer.dtype)
    tensor = tensors[pointer.of]
    if tensor.dtype != pointer.dtype:
        raise TypeError(f"{pointer.of}: expected {pointer.dtype}, found {tensor.dtype}")
    return tensor


@cache
def module(source: str, interpreted: bool = False) -> dict[str, Any]:
    """The names that a Triton module defines; its functions for the interpreter, or to compile."""
    from triton import knobs

    name = f"<triton {sha256(source.encode()).hexdigest()[:16]}>"
    # where inspect.getsource, which Triton reads its functions with, finds text without a file
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    names: dict[str, Any] = {"__name__": name}
    with knobs.runtime.scope():
        knobs.runtime.interpret = interpreted
        exec(compile(source, name, "exec"), names)
    return names


@contextmanager
def interpreting() -> Iterator[None]:
    """The interpreter as it should be, for one launch; all of it is taken back.

    - Functions of triton.language that are kernels themselves (tl.sum) are interpreted too. Triton
      decides that at its import, by TRITON_INTERPRET, for a whole process; here both ways of
      running live in one. What the interpreter puts in the place of the language is put there
      once, not at every call of a function.
    - Triton 3.6 to 3.9 interpret a conversion to bf16 by cutting digits off, and tl.dot of bf16 as
      one of the bits taken for integers, as they do conversions of integers to it. Here torch
      converts, by way of f32, and products are of f32 values.
    """
    from triton import language as tl
    from triton.runtime import interpreter
    from triton.runtime.jit import JITFunction

    builder = interpreter.InterpreterBuilder
    scopes: dict[frozenset[str], Any] = {}
    patch, multiply = interpreter._patch_lang, builder.create_dot
    cast = builder.cast_impl

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return interpreter.InterpretedFunction(self.fn)(*args, **kwargs)

    def patch_once(function: Any) -> Any:
        values = list(function.__globals__.values())
        seen = frozenset(m.__name__ for m in (tl, tl.core) if any(v is m for v in values))
        if seen not in scopes:
            scopes[seen] = patch(function)
            # Triton 3.6 asks NumPy for the number in [n], which NumPy 2.4 no longer gives
            scopes[seen].set_attr(tl.tensor, "__index__", lambda t: int(t.handle.data.item()))
        return interpreter._LangPatchScope()  # the executor would take its own back first

    def widened(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        data = _convert(handle.data, tl.bfloat16, tl.float32, None).view(np.float32)
        return interpreter.TensorHandle(data, tl.float32)

    def cast_by_f32(self: Any, source: Any, wanted: Any) -> Any:
        given, end = source.dtype.scalar, wanted.scalar
        if tl.bfloat16 in (given, end) and tl.float32 not in (given, end):
            source = cast(self, source, tl.float32)
        return cast(self, source, wanted)

    def dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return multiply(self, widened(a), widened(b), *rest)

    with ExitStack() as stack:
        stack.enter_context(np.errstate(all="ignore"))  # infinities and NaN are results here
        stack.callback(lambda: [scope.restore() for scope in reversed(scopes.values())])
        for owner, name, replacement in (
            (JITFunction, "__call__", call),
            (builder, "create_dot", dot),
            (builder, "cast_impl", cast_by_f32),
            (interpreter, "_patch_lang", patch_once),
            (interpreter, "_convert_float", _convert),
        ):
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, replacement)
        yield


def _convert(data: np.ndarray, source: Any, wanted: Any, rounding: Any) -> np.ndarray:
    """Floats of one Triton type as the bits of another's, to nearest."""
    kinds = {name: dtype for dtype, name in ELEMENT_NAMES.items()}
    given = torch.from_numpy(np.ascontiguousarray(data)).view(kinds[source.name])
    bits = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[kinds[wanted.name].itemsize]
    return given.to(kinds[wanted.name]).view(torch.uint8).numpy().view(bits).reshape(data.shape)
