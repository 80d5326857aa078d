"""Matrices that a model unpacks from integers, whatever its layout is."""

from __future__ import annotations

import pytest
import torch

from infopt.compiler.accuracy import Exact
from infopt.compiler.graph import Graph
from infopt.compiler.infer import Builder
from infopt.compiler.integer_weight import integer_weight
from infopt.compiler.interpret import interpret
from infopt.compiler.testing import run_pass
from infopt.compiler.types import TensorType
from infopt.passes.recognize_quantized import RecognizeQuantized

K, N, GROUPS = 128, 64, 4


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(5, K)


def graph_with(x, consts, build):
    o = Builder()
    node = o.input("x", TensorType.of(x))
    nodes = [o.const(name, TensorType.of(t)) for name, t in consts.items()]
    return Graph((node,), (build(o, node, *nodes),), consts)


def halves(x, build=None):
    """Bytes of two integers, a product with factors first and the zero point taken off after."""
    torch.manual_seed(1)
    consts = {
        "q": torch.randint(0, 256, (K // 2, N), dtype=torch.uint8),
        "z": torch.randint(0, 16, (GROUPS, N), dtype=torch.uint8),
        "s": torch.rand(GROUPS, N) / 50,
    }

    def matrix(o, x, q, z, s):
        both = o.stack([o.bitwise_and(q, 15), o.bitwise_right_shift(q, 4)], 1)
        grouped = o.to(o.view(both, (GROUPS, K // GROUPS, N)), torch.float32)
        factors = o.unsqueeze(s, 1)
        zeros = o.mul(o.to(o.unsqueeze(z, 1), torch.float32), factors)
        whole = o.view(o.sub(o.mul(grouped, factors), zeros), (K, N))
        return build(o, x, whole) if build else o.mm(x, whole)

    return graph_with(x, consts, matrix)


FLOATS = (torch.float8_e4m3fn, torch.float8_e5m2)


def small_floats(x, dtype, factors, out=torch.float32):
    """Floats of 8 bits, with the exponents of some least, times factors if there are any."""
    torch.manual_seed(1)
    consts = {"q": (torch.randn(N, K) * torch.randn(N, K).exp() / 8).to(dtype)}
    consts |= {} if factors is None else {"s": factors}

    def layer(o, x, q, *s):
        made = o.to(q, out)
        return o.linear(x, o.mul(made, o.to(s[0], out)) if s else made)

    return graph_with(x, consts, layer)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(N, 1), (1,), (), None])
@pytest.mark.parametrize("out", [torch.float32, torch.bfloat16])
def test_floats_of_8_bits(x, dtype, shape, out):
    """With a factor for a row, one for all, or none."""
    factors = None if shape is None else torch.rand(shape) + 0.01
    start = small_floats(x.to(out), dtype, factors, out)
    found, report = run_pass(RecognizeQuantized(), start, [(x.to(out),)])
    assert [s.where for s in report.applied] == ["q"]
    assert report.applied[0].reason.startswith(str(dtype).removeprefix("torch."))
    assert torch.equal(found.consts["q_integers"].float(), start.consts["q"].float())
    assert torch.equal(interpret(found, [x.to(out)])[0], interpret(start, [x.to(out)])[0])


def test_floats_of_8_bits_that_are_something_else(x):
    """A factor for each column: no format has that."""
    start = small_floats(x, FLOATS[0], torch.rand(1, K) + 0.5)
    found, report = run_pass(RecognizeQuantized(), start, [(x,)])
    assert found is start and [s.where for s in report.declined] == ["q"]


def test_rewrites(x):
    found, report = run_pass(RecognizeQuantized(), halves(x), [(x,)])
    assert integer_weight in {n.op for n in found.nodes()}
    assert found.consts["q_integers"].shape == (N, K)
    assert found.consts["q_scales"].shape == (N, GROUPS)
    [site] = report.applied
    assert (site.where, site.reason) == ("q", "integers from -15 to 15, a factor for 32")


def test_accuracy(x):
    start = halves(x, lambda o, x, w: o.linear(x, o.t(w)))
    found, _ = run_pass(RecognizeQuantized(), start, [(x,)])
    assert integer_weight in {n.op for n in found.nodes()}
    results = [interpret(graph, [x])[0] for graph in (start, found)]
    assert RecognizeQuantized.accuracy == Exact() and Exact().accepts(*results) is None


def narrow(x, dtype, after):
    """Bytes times factors in a narrow dtype, zero points taken off before the product or after."""
    torch.manual_seed(2)
    consts = {
        "q": torch.randint(24, 232, (N, K), dtype=torch.uint8),
        "z": torch.randint(120, 136, (N, 1), dtype=torch.uint8),
        "s": (torch.rand(N, 1) / 50).to(dtype),
    }

    def build(o, x, q, z, s):
        q, z = (o.to(a, dtype) for a in (q, z))
        whole = o.sub(o.mul(q, s), o.mul(z, s)) if after else o.mul(o.sub(q, z), s)
        return o.linear(x, whole)

    return graph_with(x.to(dtype), consts, build)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_matrices_are_the_models_to_the_bit(x, dtype):
    """The last bit of 100 in bf16 is half a step: what differs there are other weights."""
    start = narrow(x, dtype, after=False)
    found, _ = run_pass(RecognizeQuantized(), start, [(x.to(dtype),)])
    assert integer_weight in {n.op for n in found.nodes()}
    results = [interpret(graph, [x.to(dtype)])[0] for graph in (start, found)]
    assert torch.equal(*results)
    start = narrow(x, dtype, after=True)
    assert run_pass(RecognizeQuantized(), start, [(x.to(dtype),)])[0] is start


def test_declines(x):
    start = halves(x, lambda o, x, w: o.mm(x, o.sin(w)))
    found, report = run_pass(RecognizeQuantized(), start, [(x,)])
    reason = "its matrix is not whole multiples of any factors it is made with"
    assert found is start and [(s.where, s.reason) for s in report.declined] == [("q", reason)]


def test_a_matrix_of_floats_alone_is_no_site(x):
    start = graph_with(x, {"w": torch.randn(N, K)}, lambda o, x, w: o.linear(x, o.mul(w, 2)))
    found, report = run_pass(RecognizeQuantized(), start, [(x,)])
    assert found is start and not report.sites


def test_idempotent(x):
    found, _ = run_pass(RecognizeQuantized(), halves(x), [(x,)])
    assert run_pass(RecognizeQuantized(), found, [(x,)])[0] is found


def test_gain(x):
    """The matrix is an eighth of its floats, zero points included in integers of 5 bits."""
    found, _ = run_pass(RecognizeQuantized(), halves(x), [(x,)])
    assert sum(t.nbytes for t in found.consts.values()) < N * K * 4 / 3


def test_integers_that_are_inputs_stay(x):
    o, scales = Builder(), torch.rand(N, 1)
    node = o.input("x", TensorType.of(x))
    q = o.input("q", TensorType.dense((N, K), torch.int8), weight=True)
    matrix = o.mul(o.to(q, torch.float32), o.const("s", TensorType.of(scales)))
    start = Graph((node, q), (o.linear(node, matrix),), {"s": scales})
    found, report = run_pass(RecognizeQuantized(), start)
    told = [(s.where, s.applied, s.reason) for s in report.sites]
    assert told == [("q", False, "its integers are inputs of the program")] and found is start


def test_new_constants_take_names_that_are_free(x):
    consts = {
        "q": torch.randint(-127, 128, (N, K), dtype=torch.int8),
        "s": torch.rand(N, 1),
        "q_scales": torch.rand(5, N),
    }

    def build(o, x, q, s, other):
        return o.add(o.linear(x, o.mul(o.to(q, torch.float32), s)), other)

    found, _ = run_pass(RecognizeQuantized(), graph_with(x, consts, build), [(x,)])
    assert sorted(found.consts) == ["q_integers", "q_scales", "q_scales_"]
    assert torch.equal(found.consts["q_scales"], consts["q_scales"])
