"""Results written over what they were the last to read: the same bits, and less memory."""

import pytest
import torch
import torch.nn.functional as F

from infopt.codegen import kernel
from infopt.codegen.build import find_compiler
from infopt.codegen.kernels.conv import conv_act
from infopt.codegen.kernels.group_sparse_linear import group_sparse_linear
from infopt.codegen.kernels.linear import linear_act
from infopt.codegen.kernels.linear_chain import linear_chain, narrow_linear_chain
from infopt.codegen.kernels.narrow_conv import narrow_conv
from infopt.codegen.kernels.narrow_linear import narrow_linear
from infopt.codegen.kernels.quantized_linear import quantized_linear
from infopt.codegen.kernels.rms_norm import rms_norm
from infopt.codegen.load import lower_for, program
from infopt.compiler.graph import Graph
from infopt.compiler.infer import Builder
from infopt.compiler.ops import find
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType
from infopt.runtime.lifetime import arena_bytes
from tests.codegen.kernel_call import every_level
from tests.codegen.traced import bits_equal, graph_of, lowered, program_of, target

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")
F32, BF16 = torch.float32, torch.bfloat16


def rows(dtype):
    for shape in ((1, 1), (5, 17), (2, 16, 64), (33, 130)):
        yield torch.randn(shape).to(dtype)


def norms(dtype, **attrs):
    for x in rows(dtype):
        n = x.shape[-1]
        given = attrs | ({"normalized_shape": (n,)} if "cudnn_enable" in attrs else {})
        bias = [torch.randn(n).to(dtype)] * ("cudnn_enable" in attrs)
        yield (x, torch.randn(n).to(dtype), *bias), given


def products(dtype, **attrs):
    for m, n, k in ((1, 40, 30), (8, 33, 64), (9, 17, 5), (37, 70, 129), (300, 96, 64)):
        weight, bias = torch.randn(n, k).to(dtype), torch.randn(n).to(dtype)
        yield (torch.randn(m, k).to(dtype), weight, bias, torch.randn(m, n).to(dtype)), attrs


def narrow_products():
    for (x, weight, bias, residual), _ in products(F32):
        given = {"activation": "gelu"}
        yield (x, weight.bfloat16(), bias, residual), given
        yield (x.bfloat16(), weight, bias, residual), given


def chains(dtype, narrow=False):
    for m in (1, 8, 9, 37, 300):
        x, b = torch.randn(m, 48).to(dtype), torch.randn(48).to(dtype)
        sizes = ((11, 48), (70, 11), (13, 70), (48, 13))
        w = [(torch.randn(s) / 7).to(BF16 if narrow else dtype) for s in sizes]
        two, four = ("none", "relu"), ("none", "gelu", "none", "none")
        attrs = {"out": dtype} if narrow else {}
        no = [None]
        pair = [w[0], w[3][:, :11].contiguous(), *no * 2]
        yield (x, *pair, *no * 5), attrs | {"functions": two}
        yield (x, *pair, *no, b, *no * 2, x.clone()), attrs | {"functions": two}
        yield (x, *w, *no * 3, b, torch.randn_like(x)), attrs | {"functions": four}
        gated = (x, *w, *no * 3, b, torch.randn_like(x))
        up0, up1 = torch.randn_like(w[0]) / 7, torch.randn_like(w[1]) / 7
        yield (*gated, None, up1, None), attrs | {"functions": four}
        if dtype is F32:
            yield (*gated, up0, up1, torch.randn(70)), attrs | {"functions": four}


def convolutions(dtype):
    """(images, channels, features, size, kernel, further attributes)"""
    shapes = [
        (1, 16, 40, (14, 14), 1, {}),
        (2, 6, 10, (9, 11), 3, {"padding": (1, 1), "groups": 2}),
        (1, 3, 33, (31, 29), 3, {"padding": (1, 1), "stride": (2, 2)}),
        (1, 24, 24, (17, 19), 3, {"padding": (1, 1), "groups": 24}),
        (3, 1, 8, (20, 23), 5, {"padding": (2, 2)}),
        (1, 70, 64, (8, 7), 3, {"padding": (1, 1), "dilation": (1, 1)}),
    ]
    for n, c, features, size, k, attrs in shapes:
        groups, stride = attrs.get("groups", 1), attrs.get("stride", (1, 1))
        x = torch.randn(n, c, *size).to(dtype)
        w = (torch.randn(features, c // groups, k, k) / k).to(dtype)
        padding = attrs.get("padding", (0, 0))
        out = F.conv2d(x.float(), w.float(), None, stride, padding, groups=groups)
        scale, shift = torch.rand(features) + 0.5, torch.randn(features)
        for more in ({"activation": "relu", "add_first": True}, {"activation": "silu"}):
            yield (x, w, scale, shift, torch.randn_like(out).to(dtype)), attrs | more


LAYER = {"eps": 1e-5, "cudnn_enable": False}
CASES = {
    "aten.layer_norm.default": lambda: [*norms(F32, **LAYER), *norms(BF16, **LAYER)],
    "aten.rms_norm.default": lambda: [
        (args, {"normalized_shape": (args[0].shape[-1],), "eps": 1e-5}) for args, _ in norms(F32)
    ],
    rms_norm.name: lambda: [
        *norms(F32, eps=1e-5, offset=0.0, cast_first=False),
        *norms(BF16, eps=1e-5, offset=1.0, cast_first=True),
    ],
    linear_act.name: lambda: [*products(F32, activation="relu"), *products(BF16)],
    narrow_linear.name: lambda: [*narrow_products()],
    linear_chain.name: lambda: [*chains(F32), *chains(BF16)],
    narrow_linear_chain.name: lambda: [*chains(F32, narrow=True)],
    quantized_linear.name: lambda: [
        (args, attrs) for args, attrs in quantized_linear.cases() if len(args) > 4
    ],
    group_sparse_linear.name: lambda: [
        (args, attrs) for args, attrs in group_sparse_linear.cases() if len(args) > 4
    ],
    conv_act.name: lambda: [*convolutions(F32), *convolutions(BF16)],
    narrow_conv.name: lambda: [*convolutions(F32)],
}


def test_every_declaration_is_tested():
    names = kernel.kernel_names(target())
    over = {n for n in names if any(e.over and e.kind == "cpu" for e in kernel.emitters(n))}
    assert over == set(CASES)


@every_level
@pytest.mark.parametrize("name", CASES)
def test_the_bits_are_the_same(name, level):
    where = Target.parse(f"cpu:{level}") if level != target().level else target()
    over = next(e.over for e in kernel.emitters(name) if e.over)
    parameters = [p.name for p in find(name).parameters if p.is_tensor]
    shared = 0
    for args, attrs in CASES[name]():
        for changed in over:
            i = parameters.index(changed)
            if args[i] is None:
                continue
            found, plan = results(name, args, attrs, where, i)
            expected, _ = results(name, args, attrs, where, None)
            shapes = [None if a is None else a.shape for a in args]
            assert bits_equal(found, expected), (changed, shapes, attrs)
            shared += arena_bytes(plan) < args[i].nbytes
    assert shared, f"{name} was never written over {over}"


def results(name, args, attrs, where, computed):
    """The op's result, operand `computed` being computed by the program itself."""
    o = Builder()
    nodes = [None if a is None else o.input(f"x{i}", TensorType.of(a)) for i, a in enumerate(args)]
    inputs = tuple(n for n in nodes if n is not None)
    given = [a for a in args if a is not None]
    if computed is not None:
        given = [-a if a is args[computed] else a for a in given]
        nodes[computed] = o.neg(nodes[computed])
    names = [p.name for p in find(name).parameters if p.is_tensor]
    result = o.call(find(name), **dict(zip(names, nodes, strict=False)), **attrs)
    made = lower_for(Graph(inputs, (result,)), where)
    return program(made, 2)(given)[0], made.plan


def plan_of(f, *args):
    made = lowered(graph_of(f, args))
    with torch.no_grad():
        (found,), expected = program(made, 2)(list(args)), f(*args)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)  # sums of 256 products
    return made.plan


X = torch.randn(64, 256)


def norm(x):
    return F.layer_norm(x, (x.shape[-1],))


def test_row_by_row_all_is_done_in_the_results_memory():
    plan = plan_of(lambda x: norm(torch.exp(norm(norm(x))) + 1), X)
    assert arena_bytes(plan) == 0


@pytest.mark.parametrize(
    "f",
    [
        lambda x: norm(y := norm(x)) * 2 @ y.T,  # read later
        lambda x: norm(x) @ norm(norm(x)).T,  # of matmul every task reads all
        lambda x: (y := norm(x)[:, :64]) + y.T,  # in another order
        lambda x: norm(x).reshape(2, 128, 64).flip(0) + 1,
        lambda x: torch.cat([norm(x), norm(norm(x))]),
    ],
)
def test_what_is_read_otherwise_stays(f):
    plan_of(f, torch.randn(64, 256))


def test_a_result_that_is_returned_stays():
    def both(x):
        y = norm(x)
        return y, norm(y), torch.exp(y)

    found = program_of(both, (X,))([X])
    for a, b in zip(found, both(X), strict=True):
        torch.testing.assert_close(a, b)


def test_of_several_results_none_is_written_over_an_operand():
    """The second might need what the first one was written over."""

    def both(x):
        y = norm(x)
        return norm(a := torch.exp(y)), norm(a - y)

    found = program_of(both, (X,))([X])
    for a, b in zip(found, both(X), strict=True):
        torch.testing.assert_close(a, b)


def test_open_sizes():
    def f(x):
        return norm(torch.tanh(norm(x)))

    made = lowered(graph_of(f, (X,), dynamic=True))
    run = program(made, 2)
    for n in (2, 3, 70):
        x = torch.randn(n, 256)
        torch.testing.assert_close(run([x])[0], f(x))
    assert arena_bytes(made.plan, [64, 256]) == 0
