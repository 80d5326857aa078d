"""What a launch says about its arguments."""

import sympy
import torch

from infopt.codegen.launch import Launch, Pointer, Scratch, is_multiple, type_name

S = sympy.Symbol("s", integer=True, positive=True)


def test_types_of_arguments():
    parts = Scratch("parts", 64 * S)
    launch = Launch(
        "",
        "entry",
        (Pointer("x", torch.bfloat16), Pointer(parts, torch.float32), 48, 2**31, S, 0.5),
        grid=(S,),
    )
    assert launch.signature == ("*bf16", "*fp32", "i32", "i64", "i64", "fp32")
    assert launch.divisible == (True, True, True, True, False, False)
    assert list(launch.scratches) == [parts]
    assert hash(launch) == hash(Launch("", "entry", launch.arguments, grid=(S,)))


def test_open_sizes_that_are_multiples_of_16_at_every_value():
    assert is_multiple(64 * S) and is_multiple(16 * (S + 3)) and is_multiple(16 * S + 32)
    assert not is_multiple(S) and not is_multiple(16 * S + 8) and not is_multiple(3)
    assert type_name(Pointer("x", torch.float8_e4m3fn)) == "*fp8e4nv"
