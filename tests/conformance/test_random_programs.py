"""Random programs against eager; `python -m benchmarks random_programs` runs thousands of them.

A program that once differed is in `FOUND`, shrunk.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infopt.codegen.build import find_compiler
from infopt.compiler.target import LEVELS, Target
from tests.conformance import harness
from tests.conformance.program import Input, Program, Statement
from tests.conformance.program_check import judge
from tests.conformance.program_draw import draw, seeded
from tests.conformance.program_shrink import runs, shrink

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")


def one(code: str, *inputs: Input, free: bool = True, **more: object) -> Program:
    """A program of one statement over inputs x0, x1 .."""
    names = tuple(i.name for i in inputs)
    rounded = frozenset({"v0"} if free else ())
    statement = Statement("v0", code, names, free)
    return Program(inputs, (statement,), ("v0",), rounded=rounded, **more)  # type: ignore[arg-type]


def tensor(name: str, *shapes: tuple[int, ...], **more: object) -> Input:
    return Input(name, shapes, **more)  # type: ignore[arg-type]


def across_calls(name: str, *width: int) -> Input:
    return tensor(name, *((1, 1, 5, w) for w in width))


WIDE = tensor("x0", (33, 33))
FOUND = {
    "layer norm with a weight in steps of 0": one(
        "F.layer_norm({0}, (33,), {1}, {2})",
        WIDE,
        tensor("x1", (33,), layout="expanded"),
        tensor("x2", (33,), layout="every second"),
    ),
    "rms norm with a weight in steps": one(
        "F.rms_norm({0}, (33,), {1}, 1e-6)", WIDE, tensor("x1", (33,), layout="every second")
    ),
    "gate and up whose rows lie differently": one(
        "F.linear({0}, {2}) * F.gelu(F.linear({0}, {1}))",
        WIDE,
        tensor("x1", (8, 33), layout="part of rows", values="small"),
        tensor("x2", (8, 33), values="small"),
    ),
    "layer norm of nothing": one(
        "F.layer_norm({0}, (1,), {1})",
        tensor("x0", (0, 0, 1), dtype=torch.float16),
        tensor("x1", (1,), dtype=torch.float16),
    ),
    "a copy of an argument is no argument": Program(
        (tensor("x0", (4, 5)),),
        (
            Statement("v0", "torch.zeros_like({0})", ("x0",)),
            Statement("v1", "{0}.copy_({1})", ("v0", "x0")),
        ),
        ("v1",),
    ),
    "a view of the same shape is a view": Program(
        (tensor("x0", (4, 5)),),
        (
            Statement("v0", "{0} + 1", ("x0",)),
            Statement("v1", "{0}.reshape({0}.shape)", ("v0",)),
            Statement("v2", "{0} + 1", ("x0",)),
            Statement("v3", "{0}.t()", ("v2",)),
        ),
        ("v0", "v1", "v3", "v2"),
    ),
    "a write to an argument whose rows are one row": Program(
        (tensor("x0", (4, 5), layout="expanded"), tensor("x1", (5,))),
        (
            Statement("", "{0}[-1] = {1}", ("x0", "x1")),
            Statement("v1", "{0} * 2", ("x0",)),
        ),
        ("v1",),
    ),
    "an expanded result of a value that is computed in part": one(
        "torch.log1p({0}.abs())[:, 0].unsqueeze(0).expand(3, 6, 4)", tensor("x0", (6, 4, 4))
    ),
    "the smaller of zeros, by torch, of a value whose strides a kernel chose": Program(
        (tensor("x0", (2, 17, 17), layout="transposed", values="extreme", seed=69),),
        (
            Statement("v0", "{0}.sort(2).values", ("x0",)),
            Statement("v1", "torch.minimum({0}, {1})", ("x0", "v0")),
        ),
        ("v1",),
    ),
    "a value that is read for its shape": Program(
        (tensor("x0", (4, 5)),),
        (
            Statement("v0", "{0} * 2", ("x0",)),
            Statement("v1", "torch.zeros_like({0})", ("v0",)),
        ),
        ("v1",),
    ),
    "strides of a broadcast result that torch's rule misses": one(
        "torch.copysign({0}, {1})", tensor("x0", (15, 2), layout="transposed"), tensor("x1", (2,))
    ),
    "two regions that one node would merge, and another reads across": Program(
        (tensor("x0", (4, 4)),),
        (
            Statement("v0", "{0}.t() + 1", ("x0",)),
            Statement("v1", "{0} - {0}.t()", ("v0",)),
            Statement("v2", "{0} - {1}.t()", ("v1", "v0")),
        ),
        ("v2",),
    ),
    "views of what was filled from a smaller value": Program(
        (tensor("x0", (2, 16)), tensor("x1", (), dtype=torch.uint8)),
        (
            Statement("v0", "{0}.roll(1, 1)", ("x0",)),
            Statement("v1", "{0}[..., ::2].copy_({1})", ("v0", "x1")),
            Statement("v2", "{0}.flatten()", ("v1",)),
        ),
        ("v2", "v1"),
    ),
    "a part of what was filled from a row": Program(
        (tensor("x0", (3, 3), (5, 3)), tensor("x1", (3,), (3,))),
        (
            Statement("v0", "{0} - {0}", ("x0",)),
            Statement("v1", "{0}.copy_({1})", ("v0", "x1")),
            Statement("v2", "{0}.narrow(0, 1, 1)", ("v0",)),
        ),
        ("v1", "v2", "v1"),
        calls=2,
        dynamic=True,
    ),
    "a view of one of two arguments in one memory": Program(
        (tensor("x0", (2, 15, 2)), tensor("x1", (1, 15, 2), view_of="x0[1:]")),
        (Statement("v0", "{0}.abs()", ("x1",)), Statement("v1", "{0}[:2]", ("x0",))),
        ("v0", "v1"),
    ),
    "views of a written argument": Program(
        (tensor("x0", (4, 6), (5, 7), layout="part of rows"),),
        (
            Statement("v0", "{0}[1:].mul_(2)", ("x0",)),
            Statement("v1", "{0}.t()", ("x0",)),
            Statement("v2", "{0}[:, 2:].view(torch.int32)", ("x0",)),
            Statement("v3", "{0} + 1", ("v1",)),
        ),
        ("v0", "v1", "v2", "v3", "x0"),
        calls=2,
        dynamic=True,
    ),
    "an inactive dropout of a part": one(
        "F.dropout({0}[:, 1:], 0.1, False)", tensor("x0", (4, 6)), free=False
    ),
    "an inactive dropout of a part of something new": Program(
        (tensor("x0", (4, 6)),),
        (
            Statement("v0", "({0} + 1)[:, 1:]", ("x0",)),
            Statement("v1", "F.dropout({0}, 0.1, False)", ("v0",)),
            Statement("v2", "{0}[1:]", ("v1",)),
        ),
        ("v0", "v1", "v2"),
    ),
    "attention whose scale is an open size": one(
        "F.scaled_dot_product_attention({0}, {1}, {2})",
        across_calls("x0", 4, 8),
        across_calls("x1", 4, 8),
        across_calls("x2", 4, 8),
        calls=2,
        dynamic=True,
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_found(name: str) -> None:
    assert judge(FOUND[name]).difference == ""


def test_views_of_a_written_argument_are_native() -> None:
    assert judge(FOUND["views of a written argument"]).kind == "native"


@pytest.mark.parametrize("first", range(0, 16, 4))
def test_programs_of_fixed_seeds(first: int) -> None:
    for seed in range(first, first + 2):
        check(seeded(seed))


@needs_compiler
@pytest.mark.parametrize("target", ["cpu:scalar", "cpu:avx2", "native"])
def test_programs_of_fixed_seeds_through_compile(target: str) -> None:
    detected = Target.detect()
    level = target.removeprefix("cpu:")
    if level in LEVELS and not (
        detected.arch == "x86_64" and detected.features.issuperset(LEVELS[level])
    ):
        pytest.skip(f"this machine has no {level}")
    for seed in range(100, 102):
        check(seeded(seed), "infopt.compile", target)


@pytest.mark.slow
@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_drawn_programs(data: st.DataObject) -> None:
    program = draw(lambda options: data.draw(st.sampled_from(options)))
    found = judge(program)
    assert not found.difference, f"{found.difference}\n\n{program.script()}"


def check(program: Program, door: str = "torch.compile", target: str = "native") -> None:
    """Fails with a script that shows the difference."""
    found = judge(program, door, target)
    if not found.difference:
        return
    small = shrink(program, lambda p: bool(judge(p, door, target).difference), 30)
    pytest.fail(f"{found.difference}\n\n{small.script(door, target)}")


def test_broadcast_of_a_part_whose_open_size_is_one() -> None:
    def added(x, y):
        part = x[: (x.shape[0] // 4) ** 2]
        return y * 2 + part, torch.where(y > 0, y, part), part.expand(y.shape)

    def in_place(x, y):
        y = y * 3
        y += x[: (x.shape[0] // 4) ** 2]
        return y

    ones = [
        (torch.randn(5), torch.randn(7)),
        (torch.randn(6), torch.randn(9)),
        (torch.randn(7), torch.randn(300)),
    ]
    for fn in (added, in_place):
        harness.check(fn, *ones, dynamic=True)
        harness.check(
            fn,
            (torch.randn(17), torch.randn(16)),
            *ones,
            (torch.randn(16), torch.randn(16)),
            dynamic=True,
        )


def test_a_seed_gives_one_program_that_torch_runs() -> None:
    for seed in range(200, 230):
        assert seeded(seed) == seeded(seed)
        assert runs(seeded(seed))


def test_a_failing_program_is_made_small() -> None:
    program = Program(
        (tensor("x0", (4, 5), layout="transposed"), tensor("x1", (4, 5))),
        (
            Statement("v0", "{0} + {1}", ("x0", "x1")),
            Statement("v1", "{0} * 2", ("v0",)),
            Statement("v2", "torch.sin({0})", ("v1",), True),
            Statement("v3", "-{0}", ("v2",)),
        ),
        ("v3", "v1"),
        rounded=frozenset({"v2", "v3"}),
    )

    def differs(p: Program) -> bool:  # as if sin were wrong
        return any("sin" in s.code for s in p.statements)

    small = shrink(program, differs)
    assert len(small.statements) == 1 and len(small.inputs) == 1
    assert small.inputs[0].layout == "dense"


def test_the_script_runs_by_itself(tmp_path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "repro.py"
    text = seeded(3).script().replace("backend='infopt'", "backend='eager'")
    file.write_text(text.replace("import infopt\n", ""))
    subprocess.run([sys.executable, str(file)], check=True, capture_output=True, timeout=120)
