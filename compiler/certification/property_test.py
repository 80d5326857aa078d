"""A hypothesis test for one pass: the contract over sizes, strides, dtypes and values drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from infopt.compiler.dump import diff
from infopt.compiler.graph import Graph
from infopt.compiler.interpret import interpret
from infopt.compiler.pipeline import Pass

Check = Callable[[Sequence[torch.Tensor]], "int | None"]

# Sizes around the widths of vectors and blocks, where kernels and index arithmetic go wrong.
SIZES = (1, 2, 3, 5, 8, 15, 16, 17, 24, 31, 33, 64)
LAYOUTS = ("dense", "transposed", "every second", "expanded")
VALUES = ("normal", "small", "large", "signed zeros", "equal")


def tensor(
    shape: Sequence[int], dtype: torch.dtype, layout: str, values: str, seed: int
) -> torch.Tensor:
    """A tensor of this shape; the same arguments give the same tensor."""
    generator = torch.Generator().manual_seed(seed)
    held = list(shape)
    if layout == "transposed" and len(held) > 1:
        held[-1], held[-2] = held[-2], held[-1]
    elif layout == "every second" and held:
        held[-1] *= 2
    elif layout == "expanded" and held:
        held[0] = 1
    made = _values(held, dtype, values, generator)
    if layout == "transposed" and len(held) > 1:
        return made.transpose(-1, -2)
    if layout == "every second" and held:
        return made[..., ::2]
    return made.expand(*shape) if layout == "expanded" and held else made


def _values(
    shape: list[int], dtype: torch.dtype, values: str, generator: torch.Generator
) -> torch.Tensor:
    if dtype == torch.bool:
        return torch.rand(shape, generator=generator) < 0.5
    if not dtype.is_floating_point:
        return torch.randint(-3, 4, shape, generator=generator).to(dtype)
    made = torch.randn(shape, generator=generator)
    if values == "signed zeros":
        made = torch.where(made > 0.5, made, torch.copysign(torch.zeros(()), made))
    elif values == "equal":
        made = torch.full(shape, 0.75)
    return (made * {"small": 1e-3, "large": 30.0}.get(values, 1.0)).to(dtype)


def check_sample(
    pass_: Pass,
    graph: Graph,
    run: Callable[[Pass, Graph, Sequence[tuple]], tuple[Graph, Any]],
    inputs: Sequence[torch.Tensor],
) -> int:
    """How many sites the pass applied. Raises ContractBroken, IllegalGraph or AssertionError."""
    result, report = run(pass_, graph, [tuple(inputs)])
    again, _ = run(pass_, result, [])
    if again.key != result.key:
        raise AssertionError(f"{pass_.name} is not idempotent:\n{diff(result, again)}")
    before = [t.clone() for t in inputs]
    interpret(result, inputs)
    if not all(torch.equal(a, b) for a, b in zip(before, inputs, strict=True)):
        raise AssertionError(f"{pass_.name} made a graph that writes to its inputs")
    return len(report.applied)


def hypothesis_test(
    name: str,
    check: Check,
    shapes: Sequence[Sequence[str | int]],
    dtypes: Sequence[torch.dtype],
    examples: int,
) -> Callable[[], None]:
    """The test: draws inputs, calls check, and fails too where no draw let the pass apply."""
    from hypothesis import HealthCheck, Phase, assume, given, settings
    from hypothesis import strategies as st

    names = sorted({d for shape in shapes for d in shape if isinstance(d, str)})
    applied = 0

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )
    @given(
        sizes=st.fixed_dictionaries({n: st.sampled_from(SIZES) for n in names}),
        dtype=st.sampled_from(list(dtypes)),
        layouts=st.tuples(*(st.sampled_from(LAYOUTS) for _ in shapes)),
        values=st.sampled_from(VALUES),
        seed=st.integers(0, 2**16),
    )
    def draw(
        sizes: dict[str, int], dtype: torch.dtype, layouts: tuple, values: str, seed: int
    ) -> None:
        nonlocal applied
        inputs = []
        for position, (shape, layout) in enumerate(zip(shapes, layouts, strict=True)):
            held = [d if isinstance(d, int) else sizes[d] for d in shape]
            inputs.append(tensor(held, dtype, layout, values, seed + position))
        found = check(inputs)
        assume(found is not None)  # the program takes other sizes or dtypes
        applied += found or 0

    def test() -> None:
        nonlocal applied
        applied = 0
        draw()
        if not applied:
            raise AssertionError(
                f"{name} applied nowhere in {examples} draws: the program given has no place for "
                f"it, or its legal() refuses all; run_pass(...) tells the reasons"
            )

    test.__name__ = "test_" + name.replace("-", "_")
    return test
