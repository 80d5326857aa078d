"""A compiled executor, a library of small kernels, and a builder of plans for the tests."""

import ctypes
import itertools
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
import torch

import infopt.runtime
from infopt.runtime.executor import Program
from infopt.runtime.native import load_executor
from infopt.runtime.plan import Buffer, Dim, InputSpec, NativeStep, OutputTensor, Plan, View

CSRC = Path(infopt.runtime.__file__).resolve().parent / "csrc"


class PlanBuilder:
    """Collects the parts of a plan; every size is an expression tuple or an int."""

    def __init__(self):
        self.expressions, self.inputs, self.dims = [], [], []
        self.buffers, self.views, self.steps = [], [], []
        self.outputs, self.mutations, self.guards = [], [], []

    def slot(self, expression):
        tokens = expression if isinstance(expression, tuple) else (expression,)
        if tokens not in self.expressions:
            self.expressions.append(tokens)
        return self.expressions.index(tokens)

    def slots(self, sizes):
        return tuple(self.slot(size) for size in sizes)

    def add_input(self, name, shape, dtype="torch.float32", strides="contiguous", kind="tensor"):
        """Returns the input's buffer."""
        if strides == "contiguous":
            strides = contiguous(shape)
        self.inputs.append(
            InputSpec(
                name,
                kind,
                dtype,
                self.slots(shape),
                None if strides is None else self.slots(strides),
            )
        )
        return self.buffer("input", 0, len(self.inputs) - 1)

    def buffer(self, kind, size, index=0):
        self.buffers.append(Buffer(kind, index, self.slot(size)))
        return len(self.buffers) - 1

    def view(self, buffer, shape, dtype="torch.float32", strides=None, offset=0):
        strides = contiguous(shape) if strides is None else strides
        self.views.append(
            View(buffer, self.slot(offset), self.slots(shape), self.slots(strides), dtype)
        )
        return len(self.views) - 1

    def step(self, kernel, buffers, numbers, tasks, scratch=None, error=None):
        pointers = tuple(
            (b, self.slot(0)) if isinstance(b, int) else (b[0], self.slot(b[1])) for b in buffers
        )
        scratch = None if scratch is None else self.slot(scratch)
        self.steps.append(
            NativeStep(
                kernel, "test", pointers, self.slots(numbers), self.slot(tasks), scratch, error
            )
        )

    def output(self, *args, **kwargs):
        self.outputs.append(OutputTensor(self.view(*args, **kwargs)))

    def plan(self):
        parts = (
            self.expressions,
            self.dims,
            self.inputs,
            self.buffers,
            self.views,
            self.steps,
            self.outputs,
            self.mutations,
            self.guards,
        )
        return Plan(*(tuple(part) for part in parts))


def contiguous(shape):
    """Postfix expressions of the strides of a contiguous tensor."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        if isinstance(step, int) and isinstance(size, int):
            step = step * size
        else:
            step = (*as_tokens(step), *as_tokens(size), "*")
    return tuple(reversed(strides))


def as_tokens(size):
    return size if isinstance(size, tuple) else (size,)


@pytest.fixture
def builder():
    return PlanBuilder()


@pytest.fixture(scope="session")
def compile_cpp(tmp_path_factory):
    """compile_cpp(source) -> path of a shared library; skips without a compiler."""
    compiler = shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    folder, numbers = tmp_path_factory.mktemp("libraries"), itertools.count()

    def build(source, *flags):
        target = folder / f"{source.stem}{next(numbers)}.so"
        subprocess.run(
            [
                compiler,
                "-std=c++17",
                "-O2",
                "-Wall",
                "-Wextra",
                "-Werror",
                "-fPIC",
                "-shared",
                "-pthread",
                f"-I{CSRC}",
                *flags,
                str(source),
                "-o",
                str(target),
            ],
            check=True,
        )
        return target

    return build


@pytest.fixture(scope="session")
def executor_path(compile_cpp):
    return compile_cpp(CSRC / "executor.cpp")


@pytest.fixture(scope="session")
def executor(executor_path):
    return load_executor(executor_path)


@pytest.fixture(scope="session")
def kernels_path(compile_cpp):
    return compile_cpp(Path(__file__).with_name("kernels.cpp"))


@pytest.fixture(scope="session")
def make_program(executor, kernels_path):
    """make_program(plan, constants=(), threads=2) -> Program with the test kernels."""
    libraries = {"test": ctypes.CDLL(str(kernels_path))}

    def make(plan, constants=(), threads=2, **options):
        return Program(plan, constants, libraries, threads, executor=executor, **options)

    return make


@pytest.fixture
def bits():
    """A double as the int a plan carries."""
    return lambda value: struct.unpack("<q", struct.pack("<d", value))[0]


@pytest.fixture
def adder(builder, bits):
    """The plan of (x + c) * 2 + x over a dim n <= 1000, with two steps in the arena."""
    return add_plan(builder, bits)


def add_plan(builder, bits, block=16):
    builder.dims.append(Dim("n", 0, 1000, 0, 0))
    n, size, tasks = ("d0",), ("d0", 4, "*"), ("d0", block - 1, "+", block, "//")
    x = builder.add_input("x", (n,))
    c = builder.buffer("const", size, 0)
    t, u = builder.buffer("arena", size), builder.buffer("arena", size)
    out = builder.buffer("output", size)
    builder.step("add", (x, c, t), (n, block), tasks)
    builder.step("scale", (t, u), (n, block, bits(2.0)), tasks, scratch=4 * block)
    builder.step("add", (u, x, out), (n, block), tasks)
    builder.output(out, (n,))
    return builder.plan()


@pytest.fixture
def constant():
    return torch.arange(1000, dtype=torch.float32)
