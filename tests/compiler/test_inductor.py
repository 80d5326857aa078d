"""infopt passes in Inductor's hooks, and Inductor's passes in infopt's pipeline."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import fx, nn
from torch._inductor import config
from torch._inductor.custom_graph_pass import CustomGraphModulePass, CustomGraphPass
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import infopt
from infopt.compiler.testing import graph_of, run_pass

aten = torch.ops.aten


class SinTwice(infopt.Rule):
    """sin(x) + sin(x) -> 2 sin(x)"""

    name, always = "sin-twice", True

    def pattern(self, o, x):
        return o.add(o.sin(x), o.sin(x))

    def rewrite(self, o, x):
        return o.mul(o.sin(x), 2.0)


class IntoOwnOp(infopt.Rule):
    """relu(x) -> gelu(x ones): an op of infopt's own, of which Inductor knows nothing"""

    name, always = "into-own-op", True

    def pattern(self, o, x):
        return o.relu(x)

    def rewrite(self, o, x):
        return o.call("linear_act", x, o.ones([4, 4], dtype=x.dtype), None, activation="gelu")


def program(x, state):
    y = torch.sin(x) + torch.sin(x)
    state.add_(y.sum(0))
    return [y * 3, None, x.shape[0]]


def traced(function, *inputs) -> fx.GraphModule:
    """As Inductor has it after functionalisation: pure, with a copy_ into what is written to."""
    functional = torch.func.functionalize(function, remove="mutations")
    return make_fx(functional, tracing_mode="fake")(*inputs)


def targets(module: fx.GraphModule) -> list:
    return [n.target for n in module.graph.nodes if n.op == "call_function"]


def test_a_graph_is_rewritten_in_its_place() -> None:
    module = traced(lambda x, state: program(x, state)[:1], torch.randn(5, 4), torch.zeros(4))
    known = [n for n in module.graph.nodes if n.op in ("placeholder", "output")]
    mine = infopt.InductorPass(SinTwice())
    mine(module.graph)
    module.recompile()
    assert aten.mul.Tensor in targets(module) or aten.mul.Scalar in targets(module)
    assert targets(module).count(aten.sin.default) == 1
    assert [n for n in module.graph.nodes if n.op in ("placeholder", "output")] == known
    assert all("val" in n.meta for n in module.graph.nodes if n.op == "call_function")
    assert len(mine.report.find("sin-twice").applied) == 1
    x, state, expected_state = torch.randn(5, 4), torch.ones(4), torch.ones(4)
    [found] = module(x, state)
    expected = program(x, expected_state)[0]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(state, expected_state)


def test_infopts_own_ops_become_aten_calls() -> None:
    import infopt.codegen.kernels  # declares linear_act

    module = traced(lambda x: (torch.relu(x),), torch.randn(5, 4))
    infopt.InductorPass(IntoOwnOp())(module.graph)
    module.recompile()
    assert all(isinstance(t, torch._ops.OpOverload) for t in targets(module))
    x = torch.randn(5, 4)
    torch.testing.assert_close(module(x)[0], nn.functional.gelu(x @ torch.ones(4, 4)))


def test_what_cannot_be_a_graph_stays() -> None:
    module = traced(lambda x: (torch.nonzero(x),), torch.ones(3))
    before = targets(module)
    mine = infopt.InductorPass(SinTwice())
    mine(module.graph)
    assert mine.report.declined and targets(module) == before


def test_uuid_is_the_content() -> None:
    def same(module):
        return module

    assert infopt.InductorPass(SinTwice()).uuid() == infopt.InductorPass(SinTwice()).uuid()
    assert infopt.InductorPass(SinTwice()).uuid() != infopt.InductorPass(IntoOwnOp()).uuid()
    assert infopt.InductorPass(infopt.FxPass(same)).uuid() is not None
    lock = threading.Lock()
    opaque = infopt.FxPass(lambda module: same(module) if lock else None)
    assert infopt.InductorPass(opaque).uuid() is None


class ReluToSigmoid(CustomGraphPass):
    def __init__(self, uuid: object = "version 1") -> None:
        self.identity = uuid

    def __call__(self, graph: fx.Graph) -> None:
        for node in graph.nodes:
            if node.target is aten.relu.default:
                node.target = aten.sigmoid.default

    def uuid(self) -> object:
        return self.identity


class ModulePass(CustomGraphModulePass):
    def __call__(self, gm: fx.GraphModule) -> None:
        ReluToSigmoid()(gm.graph)

    def uuid(self) -> object:
        return "module"


@pytest.mark.parametrize("theirs", [ReluToSigmoid(), ModulePass()], ids=["graph", "module"])
def test_inductors_passes_run_here(theirs) -> None:
    p = infopt.FxPass(theirs, accuracy=infopt.Close(2, 2))
    start = graph_of(lambda o, x: o.relu(x), [torch.randn(3)])
    found, report = run_pass(p, start, [(torch.randn(3),)])
    assert found.outputs[0].op.name == "aten.sigmoid.default"
    assert report.name == p.name == f"fx-{type(theirs).__name__.lower()}"


def test_inductors_uuid_is_the_key_here() -> None:
    one, again, two = (infopt.FxPass(ReluToSigmoid(u)) for u in ("a", "a", "b"))
    assert one.key == again.key != two.key
    unknown = infopt.FxPass(ReluToSigmoid(None))
    assert unknown.content.opaque == ("ReluToSigmoid, whose uuid() is None",)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("state", torch.zeros(4))

    def forward(self, x):
        y, nothing, rows = program(x, self.state)
        return self.linear(y), nothing, rows


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("hook", ["post_grad_custom_pre_pass", "joint_custom_post_pass"])
def test_in_inductor(dynamic: bool, hook: str) -> None:
    net, x = Net().eval(), torch.randn(5, 4)
    torch._dynamo.reset()
    mine = infopt.InductorPass(SinTwice())
    with config.patch({hook: mine, "force_disable_caches": True}), torch.no_grad():
        found = torch.compile(net, dynamic=dynamic)(x)
        state, net.state = net.state, torch.zeros(4)
        expected = net(x)
    assert len(mine.report.find("sin-twice").applied) == 1
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(state, net.state)
    assert found[1:] == expected[1:]


def with_constants(*names: str) -> fx.GraphModule:
    """sin(x) + sin(x) + the buffers of these names."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    graph, root, fake = fx.Graph(), nn.Module(), mode.from_tensor(torch.randn(5, 4))
    x = graph.placeholder("x")
    value = graph.call_function(
        aten.add.Tensor, tuple(graph.call_function(aten.sin.default, (x,)) for _ in range(2))
    )
    for name in names:
        root.register_buffer(name, torch.randn(5, 4))
        value = graph.call_function(aten.add.Tensor, (value, graph.get_attr(name)))
    graph.output([value])
    for node in graph.nodes:
        if node.op != "output":
            node.meta["val"] = fake
    return fx.GraphModule(root, graph)


def test_constants_are_buffers_of_the_module() -> None:
    """Of free names, however many there are."""
    module, x = with_constants("first", "_infopt_constant0", "last"), torch.randn(5, 4)
    [expected] = module(x)
    before = dict(module.named_buffers())
    infopt.InductorPass(SinTwice())(module.graph)
    module.recompile()
    assert targets(module).count(aten.sin.default) == 1
    torch.testing.assert_close(module(x)[0], expected)
    held = dict(module.named_buffers())
    assert {f"_infopt_constant{i}" for i in range(4)} <= set(held)
    assert held["_infopt_constant0"] is before["_infopt_constant0"]
    for index, name in ((1, "first"), (2, "_infopt_constant0"), (3, "last")):
        assert torch.equal(held[f"_infopt_constant{index}"], before[name])
    read = [n for n in module.graph.nodes if n.op == "get_attr"]
    assert len(read) == 3 and all(n.meta["val"].shape == (5, 4) for n in read)
