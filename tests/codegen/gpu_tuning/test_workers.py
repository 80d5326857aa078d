"""Compiling in worker processes: a kernel that fails, kills its compiler or hangs is alone."""

import pytest
import torch

pytest.importorskip("triton", minversion="3.6")
from infopt.codegen import triton_compile
from infopt.codegen.gpu.text import HEADER, launch
from infopt.codegen.gpu_tuning.workers import Workers
from infopt.codegen.launch import Pointer
from infopt.codegen.launches import KernelText
from infopt.codegen.triton_compile import Compiled, compile_launch

COPY = """

@triton.jit
def copied(x, out, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at))
"""
FAILS = HEADER + COPY.replace("tl.load(x + at)", "no_such_name")
DIES = HEADER + "\nimport os\nos._exit(7)\n" + COPY
KILLED = HEADER + "\nimport os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n" + COPY
HANGS = HEADER + "\nimport time\ntime.sleep(1000)\n" + COPY
PRINTS = HEADER + "\nprint('x' * 100)\n" + COPY


def text(source):
    x = Pointer("x", torch.float32)
    made = launch(source, "copied", grid=(2,), x=x, out=Pointer("out", torch.float32), BLOCK=64)
    return KernelText(made, frozenset(), "copied")


@pytest.fixture
def workers():
    made = Workers(count=2)
    yield made
    made.close()


def test_the_same_code_as_here(workers):
    (found,) = workers.compiled([text(HEADER + COPY)], "sm90")
    assert compile_launch(text(HEADER + COPY).launch, "sm90") is found
    triton_compile._compiled.clear()
    assert compile_launch(text(HEADER + COPY).launch, "sm90") == found


@pytest.mark.slow
def test_each_failure_is_alone(workers):
    sources = [FAILS, DIES, HEADER + COPY, KILLED, PRINTS]
    fails, dies, good, killed, prints = workers.compiled([text(s) for s in sources], "sm80")
    assert isinstance(good, Compiled) and isinstance(prints, Compiled)
    assert triton_compile.is_compiled(text(PRINTS).launch, "sm80", frozenset())
    assert "copied for sm80: " in fails and "no_such_name" in fails
    assert dies == "copied for sm80: its compiler ended with status 7"
    assert killed == "copied for sm80: its compiler ended with SIGSEGV"
    (again,) = workers.compiled([text(HEADER + COPY)], "sm90")
    assert isinstance(again, Compiled)


def test_what_hangs_is_ended():
    workers = Workers(count=1, seconds=0.4)
    (found,) = workers.compiled([text(HANGS)], "sm80")
    assert found == "copied for sm80: its compiler was ended after 0.4 s"
    workers.close()
