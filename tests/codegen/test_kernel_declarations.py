"""Every declared kernel against its reference: own ops by their cases, torch's by these."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import infopt.codegen.kernels  # noqa: F401
from infopt.codegen import kernel
from infopt.codegen.build import find_compiler
from infopt.codegen.kernel import Call, KernelOp, aten_kernel, kernel_op
from infopt.codegen.load import program
from infopt.compiler.accuracy import Exact
from infopt.compiler.graph import Graph
from infopt.compiler.infer import Builder
from infopt.compiler.ops import known_ops
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType
from tests.codegen.extra_operands import check_reads
from tests.codegen.traced import check, flat, graph_of, lowered, program_of, target

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16

KERNEL_OPS = [o for o in known_ops() if isinstance(o, KernelOp) and o.cases is not None]


def graph_of_op(op, args, attrs):
    o = Builder()
    nodes = [None if a is None else o.input(f"x{i}", TensorType.of(a)) for i, a in enumerate(args)]
    made = o.call(op, *nodes, **attrs)
    results = (
        (made,)
        if isinstance(made.type, TensorType)
        else tuple(o.getitem(made, i) for i in range(len(made.type)))
    )
    return Graph(tuple(n for n in nodes if n is not None), results)


def run_case(op, args, attrs):
    made = lowered(graph_of_op(op, args, attrs))
    given = [a for a in args if a is not None]
    found = program(made, 2)(given)
    check_reads(made, given, found)
    with torch.no_grad():
        expected = flat(op.reference(*args, **attrs))
        double = flat(
            op.reference(
                *[a.double() if a is not None and a.is_floating_point() else a for a in args],
                **attrs,
            )
        )
    return made, found, expected, double


@pytest.mark.parametrize("op", KERNEL_OPS, ids=lambda o: o.name)
def test_cases_of_own_ops(op):
    for args, attrs in op.cases():
        made, found, expected, double = run_case(op, args, attrs)
        assert made.report.native[op.name] == 1, made.report
        for a, b, d in zip(found, expected, double, strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            reason = op.tolerance.accepts(b, a, d)
            assert reason is None, f"{op.name} {[tuple(x.shape) for x in args]} {attrs}: {reason}"


def close(f, *args, native=1, dynamic=False):
    """f compiled is as close to f in float64 as the accuracy rule for reordered sums demands."""
    lower = lowered(graph_of(f, args, dynamic))
    made = program(lower, 2)
    found = made(list(args))
    check_reads(lower, args, found)
    with torch.no_grad():
        expected = flat(f(*args))
        double = flat(f(*[a.double() if a.is_floating_point() else a for a in args]))
    for a, b, d in zip(found, expected, double, strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())
        reason = Exact().accepts(b, a, d)
        assert reason is None, reason
    count = sum(type(s).__name__ == "NativeStep" for s in made.plan.steps)
    assert count >= native, made.plan.steps
    return made


FLOATS = pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)


@FLOATS
@pytest.mark.parametrize("m", [1, 3, 8, 9, 16, 100])
def test_linear(m, dtype):
    x, w, b = torch.randn(m, 70), torch.randn(50, 70) / 8, torch.randn(50)
    x, w, b = (t.to(dtype) for t in (x, w, b))
    close(lambda x, w, b: F.linear(x, w, b), x, w, b)
    close(lambda x, w: F.linear(x.unsqueeze(0), w), x, w)


def test_linear_of_strided_rows():
    w = torch.randn(48, 32)
    close(lambda x, w: F.linear(x, w), torch.randn(5, 4, 64)[:, :, :32], w)
    close(lambda x, w: F.linear(x, w), torch.randn(32, 20).t(), w)
    close(lambda x, w: F.linear(x, w), torch.randn(20, 32), torch.randn(32, 48).t())
    close(lambda x, w: F.linear(x, w), torch.randn(1, 32).expand(20, 32), w)
    close(lambda x, w: F.linear(x, w), torch.randn(32), w)


def test_linear_at_several_sizes():
    w, b = torch.randn(48, 32), torch.randn(48)
    made = program_of(
        lambda x, w, b: F.linear(x, w, b), (torch.randn(5, 7, 32), w, b), dynamic=True
    )
    for shape in ((5, 7), (2, 3), (2, 4), (3, 3), (40, 9), (2, 2)):
        x = torch.randn(*shape, 32)
        torch.testing.assert_close(made([x, w, b])[0], F.linear(x, w, b), rtol=1e-4, atol=1e-5)


def test_panels_are_shared():
    w = torch.randn(48, 32)
    made = close(lambda x, a, b: (F.linear(x, a), F.linear(x, b)), torch.randn(33, 32), w, w + 1)
    packs = [s for s in made.plan.steps if getattr(s, "kernel", "") == "infopt_pack_panels"]
    assert len(packs) == 1


@FLOATS
def test_products(dtype):
    def t(*shape):
        return torch.randn(*shape).to(dtype)

    close(lambda a, b: a @ b, t(20, 30), t(30, 40))
    close(lambda a, b: a @ b, t(20, 30), t(40, 30).t())
    close(lambda a, b: a @ b, t(2, 3, 20, 30), t(2, 3, 30, 40))
    close(lambda a, b: a @ b.transpose(-1, -2), t(2, 3, 20, 30), t(2, 1, 40, 30))
    close(lambda a, b: a @ b, t(5, 20, 30), t(30, 40))
    close(lambda a, b: torch.bmm(a.transpose(1, 2), b), t(4, 30, 20), t(4, 30, 40))
    close(lambda a, b, c: torch.addmm(c, a, b), t(20, 30), t(30, 40), t(40))
    close(
        lambda a, b, c: torch.addmm(c, a, b, alpha=0.5, beta=2.0), t(20, 30), t(30, 40), t(20, 40)
    )
    close(lambda a, b, c: torch.baddbmm(c, a, b), t(4, 20, 30), t(4, 30, 40), t(1, 20, 40))


@FLOATS
def test_norms(dtype):
    x, w, b = (torch.randn(*s).to(dtype) for s in ((3, 11, 50), (50,), (50,)))
    close(lambda x, w, b: F.layer_norm(x, (50,), w, b, 1e-5), x, w, b)
    close(lambda x: F.layer_norm(x, (50,)), x)
    close(lambda x, w: F.layer_norm(x.transpose(0, 1), (50,), w), x, w)
    close(lambda x, w: F.rms_norm(x, (50,), w, 1e-6), x, w)


@FLOATS
def test_group_norm(dtype):
    x, w, b = (torch.randn(*s).to(dtype) for s in ((2, 12, 5, 7), (12,), (12,)))
    close(lambda x, w, b: F.group_norm(x + 3, 4, w, b, 1e-5), x, w, b, native=2)
    close(lambda x: F.group_norm(x, 3), x)
    close(lambda x, b: F.group_norm(x, 12, None, b), x[:, :, 0], b)
    close(lambda x, w: F.group_norm(x.transpose(2, 3), 1, w), x, w)
    close(lambda x, w: F.group_norm(x, 6, w), x.to(memory_format=torch.channels_last), w)
    wide = torch.randn(1, 8, 40, 50).to(dtype)
    close(lambda x, w: F.group_norm(x, 2, w), wide, w[:8].float() if dtype is BF16 else w[:8])


def test_group_norm_at_several_sizes():
    """The sizes of planes may be computed, so that nothing says that they are not 0."""
    w = torch.randn(8)
    shapes = [(2, 8, 6, 5), (5, 8, 3, 3), (4, 8, 2, 17)]
    made = program_of(
        lambda x, w: F.group_norm(x, 4, w), (torch.randn(3, 8, 4, 9), w), dynamic=True
    )
    for shape in shapes:
        x = torch.randn(*shape)
        torch.testing.assert_close(made([x, w])[0], F.group_norm(x, 4, w), rtol=1e-5, atol=1e-5)

    def halves(x):
        return F.group_norm(F.max_pool2d(x, 2), 4)

    made = program_of(halves, (torch.randn(3, 8, 4, 9),), dynamic=True)
    assert all(type(s).__name__ == "NativeStep" for s in made.plan.steps), made.plan.steps
    for shape in (shapes[0], (2, 8, 9, 5)):
        x = torch.randn(*shape)
        torch.testing.assert_close(made([x])[0], halves(x), rtol=1e-5, atol=1e-5)


@FLOATS
def test_softmax(dtype):
    x = (torch.randn(2, 3, 4, 37) * 3).to(dtype)
    close(lambda x: x.softmax(-1), x)
    close(lambda x: x.log_softmax(-1), x)
    close(lambda x: x.transpose(1, 2).softmax(-1), x)
    close(lambda x: x.transpose(2, 3).softmax(-1), x)
    close(lambda x: x[0, 0, 0].softmax(0), x)


@FLOATS
def test_attention(dtype):
    q, k, v = (torch.randn(2, h, t, 16).to(dtype) for h, t in ((4, 20), (4, 33), (4, 33)))
    sdpa = F.scaled_dot_product_attention
    close(lambda q, k, v: sdpa(q, k, v), q, k, v)
    close(lambda q, k, v, m: sdpa(q, k, v, m), q, k, v, torch.rand(2, 1, 20, 33) > 0.2)
    close(lambda q, k, v, m: sdpa(q, k, v, m), q, k, v, torch.randn(20, 33).to(dtype))
    close(lambda q: sdpa(q, q, q, is_causal=True), q)
    close(lambda q, k, v: sdpa(q, k, v, enable_gqa=True, scale=0.3), q, k[:, :2], v[:, :2])
    close(lambda q, k, v: sdpa(q, k, v), q, k[:, :1], v[:, :1])
    split = torch.randn(2, 20, 3, 4, 16).to(dtype)
    close(
        lambda s: sdpa(*(s[:, :, i].transpose(1, 2) for i in range(3))).transpose(1, 2).flatten(2),
        split,
    )


@FLOATS
def test_reductions(dtype):
    x = torch.randn(5, 70, 33).to(dtype)
    made = close(
        lambda x: (
            x.sum(-1),
            x.sum((0, 1)),
            x.mean(1),
            x.mean(1, keepdim=True),
            x.sum(),
            x.amax(-1),
            x.amin((0, 2)),
            x.transpose(0, 1).mean((0, 2)),
            x[:, ::2, 1:].sum(1),
            x.amax(),
        ),
        x,
    )
    assert len(made.plan.steps) == 10
    nan = x.clone()
    nan[1, 2, 3] = float("nan")
    check(
        lambda x: (x.amax(1), x.amin(-1), (x > 0).any(1), (x < 9).all((1, 2)), x.isnan().any()), nan
    )
    long = torch.rand(3, 100_000).to(dtype) + (0 if dtype is F16 else 1)
    close(lambda x: (x.mean(1), x.t().contiguous().mean(0)), long)


def test_reductions_of_integers():
    i, b = torch.randint(-9, 9, (4, 30)), torch.rand(4, 30) > 0.5
    check(
        lambda i, b: (i.sum(1), b.sum(0), i.amax(), i.int().sum(), i.any(1), i.all(), b.any()), i, b
    )
    check(lambda x: (x.sum(1), x.mean(0), (x > 0).all(1)), torch.randn(3, 0))


@pytest.mark.parametrize("index", [torch.int64, torch.int32])
def test_embedding(index):
    table, ids = torch.randn(30, 20), torch.randint(0, 30, (4, 7)).to(index)
    made = check(lambda t, i: F.embedding(i, t), table, ids)
    check(lambda t, i: F.embedding(i.t(), t), table, ids)
    with pytest.raises(IndexError, match="index out of range in self"):
        made([table, ids + 30])


def test_running_sums():
    x, i = torch.randn(3, 40, 5), torch.randint(-5, 9, (4, 30))
    close(
        lambda x: (x.cumsum(1), x.bfloat16().cumsum(0), x.transpose(1, 2).cumsum(-1)), x, native=3
    )
    check(lambda i: (i.cumsum(1), (i > 0).cumsum(0), i.int().cumsum(-1), i.short().cumsum(0)), i)


def test_picked_elements():
    x, i, j = torch.randn(5, 6, 7), torch.tensor([[0, -1, 4], [2, 2, 3]]), torch.tensor([1, 0, -2])
    made = check(
        lambda x, i, j: (
            x[i],
            x[i, j],
            x[:, i],
            x[:, j, 1:],
            x[i, :, j],
            x.transpose(0, 2)[j],
            x[i, j, j],
        ),
        x,
        i,
        j,
    )
    k = torch.randint(0, 5, (4, 6, 2))
    check(
        lambda x, k: (x.gather(0, k), x.t_() if False else x.transpose(0, 2).gather(1, k), x > 0),
        x,
        k,
    )
    check(lambda x, k: ((x > 0).gather(0, k), x.bfloat16().index_select(1, k[0, 0])), x, k)
    with pytest.raises(IndexError, match="out of bounds"):
        made([x, i + 5, j])
    made = program_of(lambda x, k: x.gather(0, k), (x, k))
    with pytest.raises(RuntimeError, match="out of bounds"):
        made([x, k - 5])


def test_a_kernel_with_its_own_text():
    text = """#include "vec.h"
    using namespace infopt;
    INFOPT_EXPORT void scaled_rows(const infopt_call *call, int64_t first, int64_t last) {
      const int64_t width = call->numbers[0];
      const float factor = float(as_double(call->numbers[1]));
      for (int64_t i = first * width; i < last * width; ++i)
        pointer<float>(call, 1)[i] = factor * pointer<const float>(call, 0)[i];
    }"""

    @kernel_op
    def scaled_rows(x, *, factor):
        return x * factor

    @scaled_rows.kernel(
        "cpu",
        legal=lambda t, x, factor: None if x.rank == 2 else "not a matrix",
        layouts={"x": lambda t: None if t.is_contiguous else (t.shape[1], 1)},
    )
    def emit(cfg, target, x, *, factor):
        return Call("scaled_rows", ("x", "out"), (x.shape[1], factor), x.shape[0], source=text)

    try:
        made, found, expected, _ = run_case(scaled_rows, (torch.randn(6, 5).t(),), {"factor": 2.5})
        assert torch.equal(found[0], expected[0])
        assert made.report.native["scaled_rows"] == 1
        # not legal: the reference's aten calls
        made, found, expected, _ = run_case(scaled_rows, (torch.randn(6),), {"factor": 2.5})
        assert torch.equal(found[0], expected[0])
        assert made.report.native["scaled_rows"] == 0
    finally:
        kernel._EMITTERS.pop("scaled_rows")


def test_the_reason_of_a_declined_kernel_is_reported():
    x = torch.randn(3, 4, dtype=torch.float64)
    graph = graph_of_op("aten.softmax.int", (x,), {"dim": -1, "dtype": None})
    report = lowered(graph).report
    assert report.aten["aten.softmax.int"] == 1
    assert "float64" in report.reasons["aten.softmax.int"]


def test_legal_may_ask_the_target_alone():
    declare = aten_kernel("erfinv.default", legal=lambda target: target.lacks("no such feature"))
    declare(lambda cfg, target, x: None)
    try:
        graph = graph_of_op("aten.erfinv.default", (torch.rand(3),), {})
        assert "no such feature" in lowered(graph).report.reasons["aten.erfinv.default"]
    finally:
        kernel._EMITTERS.pop("aten.erfinv.default")
    assert target().kind == "cpu"


def test_kernel_names_are_those_of_the_target():
    here = kernel.kernel_names(target())
    assert {"rms_norm", "aten.linear.default"} <= set(here) and list(here) == sorted(here)
    there = kernel.kernel_names(replace(target(), kind="gpu"))
    assert "aten.linear.default" in there and "aten.cumsum.default" not in there
    assert not kernel.kernel_names(replace(target(), kind="fpga"))

    @kernel_op
    def only_where_amx_is(x):
        """x"""
        return x

    @only_where_amx_is.kernel("cpu", legal=lambda target: target.lacks("amx"))
    def never_called(cfg, target, x): ...

    assert "only_where_amx_is" not in kernel.kernel_names(Target.parse("cpu:avx2"))
    assert "only_where_amx_is" in kernel.kernel_names(Target.parse("cpu:amx"))
