"""`infopt run`: load an artifact as a deployed machine would, and call it once."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.utils import _pytree as pytree

from infopt.compiler.commands.output import milliseconds, print_json, print_text
from infopt.compiler.commands.timing import time_call
from infopt.runtime.expression import evaluate
from infopt.runtime.loaded import LoadedProgram
from infopt.runtime.loading import load_program
from infopt.runtime.plan import InputSpec, Plan
from infopt.runtime.plan_check import dtype_of
from infopt.runtime.structure import builder

RANDOM_SIZE = 8  # of a dim that nothing else settles


class BadInputs(ValueError):
    """Inputs for a run that cannot be made or do not fit."""


def run(args: argparse.Namespace) -> int:
    program: LoadedProgram
    holder: list[Any] = []
    load_seconds = time_call(lambda: holder.append(load(args)))
    program = holder.pop()
    if args.inputs:
        arguments: Mapping[str, Any] = load_file(args.inputs)
    else:
        arguments = random_arguments(program, parse_sizes(args.size))
    call_seconds = time_call(lambda: holder.append(program(**arguments)))
    results = named_results(holder.pop())
    if args.output:
        save_file({name: tensor.contiguous() for name, tensor in results.items()}, args.output)
    shown = {name: describe(tensor) for name, tensor in results.items()}
    if args.json:
        print_json(
            {
                "level": program.level,
                "load_seconds": load_seconds,
                "first_call_seconds": call_seconds,
                "results": shown,
            }
        )
        return 0
    print_text(
        f"loaded {Path(args.artifact).name} for {program.level} in {milliseconds(load_seconds)}, "
        f"first call {milliseconds(call_seconds)}"
    )
    for note in program.notes:
        print_text(f"  note: {note}")
    for name, text in shown.items():
        print_text(f"  {name}: {text}")
    return 0


def load(args: argparse.Namespace) -> LoadedProgram:
    return load_program(args.artifact, verify_with=args.key)


def parse_sizes(texts: Sequence[str]) -> dict[str, int]:
    """["rows=3"] -> {"rows": 3}. Raises BadInputs."""
    sizes = {}
    for text in texts:
        name, _, number = text.partition("=")
        if not name or not number.isdecimal():
            raise BadInputs(f"--size {text}: expected DIM=N with a whole number")
        sizes[name] = int(number)
    return sizes


def random_arguments(program: LoadedProgram, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Arguments by name: normal floats, ones for integers (a valid index and mask), True."""
    plan, manifest = program.program.plan, program.manifest
    known = [dim.name for dim in plan.dims if not dim.counted]
    if unknown := sorted(set(sizes) - set(known)):
        raise BadInputs(f"no dim {unknown[0]!r}; the artifact's dims: {', '.join(known) or 'none'}")
    values = []
    for dim in plan.dims:
        highest = RANDOM_SIZE if dim.hi is None else min(dim.hi, RANDOM_SIZE)
        values.append(sizes.get(dim.name, max(dim.lo, highest)))
    slots = evaluate(plan.expressions, values)
    leaves: list[Any] = [None] * manifest.signature.leaf_count
    for position, source in enumerate(manifest.inputs):
        if source.leaf is not None:
            leaves[source.leaf] = _random_input(plan, position, slots, values)
    return {p.name: builder(p.structure)(leaves) for p in manifest.signature.parameters}


def _random_input(plan: Plan, position: int, slots: Sequence[int], values: Sequence[int]) -> Any:
    spec: InputSpec = plan.inputs[position]
    if spec.dtype is None:
        own = [v for d, v in zip(plan.dims, values) if d.input == position]
        number = own[0] if own else 1
        return {"int": number, "float": 1.0, "bool": True}.get(spec.kind)
    dtype = dtype_of(spec.dtype, spec.name)
    shape = [slots[slot] for slot in spec.shape]
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, dtype=dtype)
    return torch.ones(shape, dtype=dtype)


def named_results(result: Any) -> dict[str, torch.Tensor]:
    """Every tensor of a nested result under its path, as "hidden.0"; a single one is "result"."""
    return {
        ".".join(map(_key, path)) or "result": leaf
        for path, leaf in pytree.tree_leaves_with_path(result)
        if isinstance(leaf, torch.Tensor)
    }


def _key(entry: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


def describe(tensor: torch.Tensor) -> str:
    """Shape, dtype and the range of the values."""
    text = f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"
    if tensor.numel() == 0 or tensor.is_complex():
        return text
    wide = tensor.double()
    return f"{text}, {wide.min():.4g} to {wide.max():.4g}, mean {wide.mean():.4g}"
