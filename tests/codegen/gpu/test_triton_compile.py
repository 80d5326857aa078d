"""Machine code without a GPU, what it takes of one, and Triton's interpreter put right."""

from dataclasses import replace

import pytest
import torch

from infopt.codegen.gpu.interpret import interpret, module
from infopt.codegen.gpu.text import HEADER, launch
from infopt.codegen.launch import Pointer, Scratch
from infopt.codegen.triton_compile import CannotCompile, compile_launch
from tests.codegen.gpu.launched import every_arch

SOURCE = (
    HEADER
    + """

@triton.jit
def double_rows(x, bias, out, width, factor, BLOCK: tl.constexpr):
    at = tl.program_id(0) * width + tl.arange(0, BLOCK)
    inside = tl.arange(0, BLOCK) < width
    y = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) * factor
    y += tl.sum(y, 0) * 0.0
    if bias is not None:
        y += tl.load(bias + tl.arange(0, BLOCK), mask=inside, other=0.0)
    tl.store(out + at, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def gram(x, out, N: tl.constexpr):
    at = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    a = tl.load(x + at)
    tl.store(out + at, tl.dot(a, tl.trans(a)))
"""
)


def doubled(dtype=torch.bfloat16, bias=None):
    x = Pointer("x", dtype)
    bias = None if bias is None else Pointer("bias", torch.float32)
    return launch(
        SOURCE,
        "double_rows",
        grid=(3,),
        x=x,
        bias=bias,
        out=replace(x, of="out"),
        width=48,
        factor=2.0,
        BLOCK=64,
    )


@every_arch
def test_machine_code(arch):
    made = compile_launch(doubled(), arch)
    assert made.binary[:4] == b"\x7fELF" and made.symbol == "double_rows"
    assert made.kind == ("hsaco" if arch == "gfx942" else "cubin")
    assert made.signature == ("*bf16", "*bf16", "i32", "fp32")
    assert made.threads == (256 if arch == "gfx942" else 128)
    found = made.resources
    assert 0 < found.registers < 64 and found.spills == 0 and 0 < found.occupancy <= 1
    assert "registers" in str(found) and "spilled" not in str(found)
    assert compile_launch(doubled(), arch) is made
    assert compile_launch(doubled(), arch, unaligned=frozenset({0})) is not made


def test_spills_are_seen():
    big = launch(
        HEADER
        + """

@triton.jit
def crowded(x, out, N: tl.constexpr):
    at = tl.arange(0, N)
    a = tl.load(x + at)
    b = tl.load(x + N + at)
    for i in range(100):
        c = tl.load(x + i)
        a = a * c + tl.flip(b)
        b = b * a + tl.flip(a)
    tl.store(out + at, a + b)
""",
        "crowded",
        grid=(1,),
        warps=1,
        x=Pointer("x", torch.float32),
        out=Pointer("out", torch.float32),
        N=4096,
    )
    assert compile_launch(big, "sm90").resources.spills > 0
    assert "spilled" in str(compile_launch(big, "sm90").resources)


def test_what_cannot_be_compiled():
    with pytest.raises(CannotCompile, match="'sm70': expected one of sm80, sm90"):
        compile_launch(doubled(), "sm70")
    with pytest.raises(CannotCompile, match="double_rows for sm90: "):
        compile_launch(replace(doubled(), constants={"bias": None, "BLOCK": 63}), "sm90")
    pointers = {"x": Pointer("x", torch.bfloat16), "out": Pointer("out", torch.float32)}
    large = launch(SOURCE, "gram", grid=(1,), warps=16, **pointers, N=256)
    with pytest.raises(CannotCompile, match=r"bytes of shared memory, expected at most 65536"):
        compile_launch(large, "gfx942")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_interpreted_values_round_to_nearest(dtype):
    x, bias = torch.randn(3, 48).to(dtype), torch.randn(48)
    out = torch.empty_like(x)
    interpret([doubled(dtype)], {"x": x, "out": out})
    assert torch.equal(out, x * 2)
    interpret([doubled(dtype, bias)], {"x": x, "bias": bias, "out": out})
    assert torch.equal(out, (x.float() * 2 + bias).to(dtype))


def test_interpreted_products_of_bf16():
    x, out = torch.randn(16, 16).bfloat16(), torch.empty(16, 16)
    pointers = {"x": Pointer("x", torch.bfloat16), "out": Pointer("out", torch.float32)}
    interpret([launch(SOURCE, "gram", grid=(1,), **pointers, N=16)], {"x": x, "out": out})
    torch.testing.assert_close(out, x.float() @ x.float().t())


def test_scratch_is_shared_by_name_and_poisoned():
    x, out = torch.randn(3, 48), torch.empty(3, 48)
    middle = Pointer(Scratch("middle", 4 * 3 * 48), torch.float32)
    first = doubled(torch.float32)
    first = replace(first, arguments=(first.arguments[0], middle, *first.arguments[2:]))
    last = replace(first, arguments=(middle, Pointer("out", torch.float32), *first.arguments[2:]))
    interpret([first, last], {"x": x, "out": out})
    assert torch.equal(out, 4 * x)
    interpret([last], {"out": out})
    assert out.isnan().all()


def test_a_tensor_of_another_dtype_is_refused():
    with pytest.raises(TypeError, match=r"x: expected torch\.bfloat16, found torch\.float32"):
        interpret([doubled()], {"x": torch.randn(3, 48), "out": torch.empty(3, 48)})


def test_interpreting_leaves_triton_as_it_was():
    from triton import language as tl
    from triton.runtime.jit import JITFunction

    before = {k: id(v) for k, v in (vars(tl) | vars(tl.tensor) | vars(tl.core)).items()}
    calls = id(JITFunction.__call__)
    x = torch.randn(3, 48)
    interpret([doubled(torch.float32)], {"x": x, "out": torch.empty_like(x)})
    with pytest.raises(Exception, match="power of 2"):
        broken = replace(doubled(torch.float32), constants={"bias": None, "BLOCK": 63})
        interpret([broken], {"x": x, "out": torch.empty_like(x)})
    after = {k: id(v) for k, v in (vars(tl) | vars(tl.tensor) | vars(tl.core)).items()}
    assert before == after and id(JITFunction.__call__) == calls


def test_modules_are_read_once():
    assert module(SOURCE) is module(SOURCE) and module(SOURCE) is not module(SOURCE, True)
