"""Weights held as torchao holds them, without torchao: what is read of them, and at both doors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx, nn

from infopt.compiler.errors import TraceDeclined
from infopt.compiler.frozen import Freezing
from infopt.compiler.graph import Graph
from infopt.compiler.infer import Builder
from infopt.compiler.integer_weight import quantize_rows, rounded_rows
from infopt.compiler.interpret import interpret
from infopt.compiler.tracing.export import export
from infopt.compiler.tracing.torchao_weight import is_torchao, torchao_weight
from infopt.compiler.types import TensorType
from tests.compiler.tracing.torchao_stand_in import (
    Float8Tensor,
    Int8Tensor,
    IntxUnpackedToInt8Tensor,
    dynamic,
)
from tests.compiler.tracing.traced import names

N, K = 4, 6


def integers(n: int = N, k: int = K) -> torch.Tensor:
    return torch.randint(-128, 128, (n, k), dtype=torch.int8)


def scales(n: int = N, groups: int = 1) -> torch.Tensor:
    return torch.rand(n, groups) + 0.5


def made(kind: type = Int8Tensor, **held: Any) -> torch.Tensor:
    return kind(integers(), scales(), **held)


def test_what_a_weight_holds() -> None:
    value = made(dtype=torch.bfloat16)
    assert is_torchao(value) and not is_torchao(value.qdata) and not is_torchao("torchao.x")
    found = torchao_weight("w", value)
    assert found.integers is value.qdata and torch.equal(found.scales, value.scale)
    assert found.dtype == torch.bfloat16 and found.rounding is None
    grouped = torchao_weight("w", Int8Tensor(integers(), scales(N, 3), block_size=(1, 2)))
    assert grouped.scales.shape == (N, 3)
    flat = Int8Tensor(integers(), scales(N, 3).reshape(-1), block_size=(1, 2))
    assert torchao_weight("w", flat).scales.tolist() == flat.scale.reshape(N, 3).tolist()


def test_one_scale_for_all_rows() -> None:
    value = Int8Tensor(integers(), torch.tensor([[0.25]]), block_size=(N, K))
    found = torchao_weight("w", value).scales
    assert found.tolist() == [[0.25]] * N and found.is_contiguous()
    row = Int8Tensor(integers(1), torch.tensor([[0.25]]))
    assert torchao_weight("w", row).scales.tolist() == [[0.25]]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (lambda: made(Float8Tensor), "a torchao Float8Tensor; the ones that run on integers are"),
        (
            lambda: Int8Tensor(torch.zeros(2, 3, 4, dtype=torch.int8), scales()),
            r"a torchao Int8Tensor of shape \(2, 3, 4\)",
        ),
        (lambda: made(zero_point=torch.tensor([0, 1])), "with zero points that are not 0"),
        (lambda: Int8Tensor(integers(), scales(2), block_size=(2, K)), r"in blocks of \(2, 6\)"),
        (lambda: made(act_quant_scale=1.0), "with act_quant_scale: static activations"),
        (lambda: made(act_pre_scale=1.0), "with act_pre_scale: static activations"),
        (
            lambda: made(act_quant_kwargs=dynamic("SYMMETRIC", granularity="PerTensor")),
            "with PerTensor activations",
        ),
        (lambda: made(act_quant_kwargs=dynamic("OTHER")), "with OTHER activations; expected SYMM"),
    ],
)
def test_what_has_no_such_form(value: Any, reason: str) -> None:
    with pytest.raises(TraceDeclined, match=f"^w is .*{reason}"):
        torchao_weight("w", value())


def test_how_its_layers_round() -> None:
    def rounding(**held: Any) -> str | None:
        return torchao_weight("w", made(zero_point=torch.zeros(N), **held)).rounding

    assert rounding() is None and rounding(act_quant_scale=None) is None
    assert rounding(act_quant_kwargs=dynamic("SYMMETRIC")) == "int8-symmetric"
    assert rounding(act_quant_kwargs=dynamic("ASYMMETRIC")) == "int8-affine"
    assert rounding(act_quant_kwargs=dynamic("SYMMETRIC", True)) == "int8-symmetric-reduced"
    assert rounding(act_quant_kwargs=dynamic("ASYMMETRIC", True)) == "int8-affine-reduced"
    per_token = made(IntxUnpackedToInt8Tensor, activation_quantization="int8_asym_per_token")
    assert torchao_weight("w", per_token).rounding == "int8-affine-per-token"


class Net(nn.Module):
    """A layer of integers between two others, whose matrix is also read on its own."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(K, K), nn.Linear(N, 2)
        self.inner = nn.Linear(K, N)
        self.inner.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("shift", torch.randn(K))

    def forward(self, x):
        return self.last(self.inner(self.first(x) + self.shift))


def expected(net: Net, x: torch.Tensor, rounding: str | None) -> torch.Tensor:
    held = torchao_weight("w", net.inner.weight)
    y = net.first(x) + net.shift
    y = rounded_rows(y, rounding) if rounding else y
    return net.last(y @ (held.integers * held.scales).T + net.inner.bias)


@pytest.mark.parametrize("rounding", [None, "int8-symmetric"])
def test_an_exported_model_reads_the_integers(rounding: str | None) -> None:
    held = {"act_quant_kwargs": dynamic("SYMMETRIC")} if rounding else {}
    value = made(**held)
    net, x = Net(value).eval(), torch.randn(3, K)
    found = export(net, (x,), {}, None, lambda i: i)
    own = {n for n in names(found.graph) if "." not in n}
    assert own == {"integer_weight", *(["byte_rows"] if rounding else [])}
    assert sorted(t.dtype == torch.int8 for t in found.graph.consts.values()).count(True) == 1
    assert any(t is value.qdata for t in found.graph.consts.values())
    assert not any(t.shape == (N, K) and t.is_floating_point() for t in found.graph.consts.values())
    assert set(found.names.values()) == {
        "first.weight", "first.bias", "inner.bias", "last.weight", "last.bias", "shift",
    }  # fmt: skip
    assert set(found.parameters) == set(found.names.values())
    for name, tensor in found.parameters.items():  # the model's own memory
        assert tensor.data_ptr() == net.get_parameter(name).data_ptr() if name != "shift" else True
    assert net.inner.weight.qdata is value.qdata
    with torch.no_grad():
        torch.testing.assert_close(interpret(found.graph, [x])[0], expected(net, x, rounding))


def test_in_training_mode_it_is_declined() -> None:
    net = Net(made()).train().requires_grad_(False)
    with pytest.raises(TraceDeclined, match="the model is in training mode"):
        export(net, (torch.randn(3, K),), {}, None, lambda i: i)


def frozen(outputs: str = "linear", updates: bool = False) -> tuple[fx.GraphModule, Graph]:
    """A program x, w, b -> x w' + b, as torch.compile traces it."""
    o = Builder()
    x, w, b = (
        o.input(n, TensorType.dense(s, torch.float32), n != "x")
        for n, s in (("x", (3, K)), ("w", (N, K)), ("b", (N,)))
    )
    module = fx.Graph()
    for name in "xwb":
        module.placeholder(name)
    module.output(())
    made = {"linear": o.linear(x, w, b), "w": w}[outputs]
    graph = Graph((x, w, b), (made,), updates=((1, o.neg(w)),) if updates else ())
    return fx.GraphModule(nn.Module(), module), graph


@pytest.mark.parametrize("rounding", [None, "int8-affine"])
def test_weights_of_a_compiled_program_become_constants(rounding: str | None) -> None:
    held = {"act_quant_kwargs": dynamic("ASYMMETRIC")} if rounding else {}
    x, value, b = torch.randn(3, K), made(**held), torch.randn(N)
    freezing = Freezing.find(*frozen(), [0, 1, 2], [x, value, b], matrices=False)
    assert freezing.names == {1: "w"}
    graph, order = freezing.apply([x, value, b])
    assert order == [0, 2] and [n.attr("name") for n in graph.inputs] == ["x", "b"]
    assert set(graph.consts) == {"w_integers", "w_scales"}
    assert graph.consts["w_integers"] is value.qdata
    rows = x if rounding is None else rounded_rows(x, rounding)
    matrix = value.qdata * value.scale
    torch.testing.assert_close(interpret(graph, [x, b])[0], rows @ matrix.T + b)
    if rounding:
        assert not torch.equal(rows, x) and quantize_rows(x, rounding)[0].shape == x.shape


def test_integers_that_are_written_are_another_state() -> None:
    value = made()
    args = [torch.randn(3, K), value, torch.randn(N)]
    freezing = Freezing.find(*frozen(), [0, 1, 2], args)
    before = freezing.state(args)
    assert before == freezing.state([torch.randn(3, K), value, torch.randn(N)])
    value.qdata.add_(1)
    assert freezing.state(args) != before
    before = freezing.state(args)
    value.scale.mul_(2)
    assert freezing.state(args) != before


def test_a_weight_that_leaves_the_program_is_declined() -> None:
    args = [torch.randn(3, K), made(), torch.randn(N)]
    for case in ({"outputs": "w"}, {"updates": True}):
        with pytest.raises(TraceDeclined, match="torchao's is written to or returned"):
            Freezing.find(*frozen(**case), [0, 1, 2], args)


def test_which_plain_weights_are_frozen() -> None:
    """Matrices that the program only reads, if that is asked for."""
    x, b = torch.randn(3, K), nn.Parameter(torch.randn(N))
    w = nn.Parameter(torch.randn(N, K))

    def found(weight: torch.Tensor, matrices: bool = True, **case: Any) -> dict[int, str]:
        freezing = Freezing.find(*frozen(**case), [0, 1, 2], [x, weight, b], matrices=matrices)
        return dict(freezing.names)

    assert found(w) == {1: "w"} and found(w, matrices=False) == {}
    assert found(w, outputs="w") == {} and found(w, updates=True) == {}
    assert found(torch.ones(N, K, dtype=torch.int64)) == {}
    with torch.inference_mode():
        uncounted = torch.randn(N, K)
    assert found(uncounted) == {}
    graph, order = Freezing.find(*frozen(), [0, 1, 2], [x, w, b]).apply([x, w, b])
    assert order == [0, 2] and list(graph.consts) == ["w"] and not graph.consts["w"].requires_grad
    torch.testing.assert_close(interpret(graph, [x, b])[0], x @ w.T + b)
