"""New weights for a program that was compiled with others: checked, and what was folded from them
computed again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from infopt.runtime.errors import PlanError, WeightsMismatch
from infopt.runtime.executor import Program
from infopt.runtime.manifest import WeightsEntry, WeightType
from infopt.runtime.plan import Plan

PLAN = "plans/weights.json"
# Of weights in tables; there where infopt.codegen.weight_formats.stored_op was imported.
_STORED = "infopt.stored_weight.default"
Weights = Mapping[str, torch.Tensor] | str | Path


def is_read(dtype: torch.dtype, numel: object) -> bool:
    """Whether rewrites may look at the values of such a constant: integers, flags and single
    numbers (a mask that is all true, a scale, positions that count from 0)."""
    return not dtype.is_floating_point or numel in (0, 1)


def weight_type(tensor: torch.Tensor, held: bool = False) -> WeightType:
    """The record of a parameter. held: its values may not change, as those that rewrites read."""
    held = held or is_read(tensor.dtype, tensor.numel())
    return WeightType(str(tensor.dtype), tuple(tensor.shape), digest(tensor) if held else None)


def digest(tensor: torch.Tensor) -> str:
    """sha256 of a tensor's values in row-major order."""
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(raw.numpy().data).hexdigest()


def checked(entry: WeightsEntry, given: Weights) -> dict[str, torch.Tensor]:
    """`given`, a mapping or a safetensors file, by the parameters' main names.

    Raises WeightsMismatch naming every one that does not fit.
    """
    if entry.fixed:
        name, reason = next(iter(entry.fixed.items()))
        raise WeightsMismatch(f"these weights cannot be swapped: the constant {name} {reason}")
    tensors = load_file(given) if isinstance(given, str | Path) else given
    found: dict[str, torch.Tensor] = {}
    wrong = []
    for name, tensor in tensors.items():
        main = entry.aliases.get(name, name)
        expected = entry.parameters.get(main)
        if expected is None:
            wrong.append(f"{name}: the model has no such parameter or buffer")
            continue
        if not isinstance(tensor, torch.Tensor):
            wrong.append(f"{name}: expected a tensor, found {type(tensor).__name__}")
        elif (str(tensor.dtype), tuple(tensor.shape)) != (expected.dtype, expected.shape):
            wrong.append(
                f"{name}: expected {expected.dtype} {expected.shape}, "
                f"found {tensor.dtype} {tuple(tensor.shape)}"
            )
        elif tensor.device.type not in ("cpu", "cuda") or tensor.layout is not torch.strided:
            wrong.append(f"{name}: expected a plain tensor, found {tensor.layout}, {tensor.device}")
        elif expected.sha256 not in (None, digest(tensor)) and main not in entry.states:
            wrong.append(f"{name}: other values, but the program was compiled for its values")
        elif main in found and not torch.equal(found[main], tensor.cpu()):
            wrong.append(f"{name}: differs from {main}, which the model stores in the same memory")
        else:
            found[main] = tensor.detach().cpu()
    if wrong:
        raise WeightsMismatch("; ".join(wrong[:8]) + ("; ..." if len(wrong) > 8 else ""))
    return found


def constants(
    entry: WeightsEntry,
    plan: Plan | None,
    given: Mapping[str, torch.Tensor],
    current: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """The constants that change with `given` (see `checked`), by their names in the graph.

    plan: makes `entry.made` from `entry.made_from`. current: the constants in use. Raises
    WeightsMismatch where a constant also needs a parameter that is neither given nor in use.
    """
    found = {name: given[p] for name, p in entry.direct.items() if p in given}
    if plan is not None and any(p in given for p in entry.made_from):
        read = {c: p for c, p in entry.direct.items() if c in current and p in entry.made_from}
        known = {p: current[c].cpu() for c, p in read.items()}
        known.update(given)
        if lacking := [p for p in entry.made_from if p not in known]:
            raise WeightsMismatch(
                f"give also {', '.join(lacking)}: constants were folded from them together, and "
                "only the result is kept"
            )
        try:
            program = Program(plan, allow_ops=(_STORED,))
            results = program([known[p] for p in entry.made_from])
        except PlanError as error:
            raise WeightsMismatch(f"the constants cannot be computed again: {error}") from None
        found.update(zip(entry.made, results, strict=True))
    return {name: _like(current[name], new) for name, new in found.items() if name in current}


def _like(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """`new` in the memory layout the plan was made for."""
    if new.dtype != old.dtype or new.shape != old.shape:
        raise WeightsMismatch(
            f"expected {old.dtype} {tuple(old.shape)}, found {new.dtype} {tuple(new.shape)}"
        )
    if new.stride() == old.stride():
        return new
    made = torch.empty_strided(old.shape, old.stride(), dtype=old.dtype)
    return made.copy_(new)
