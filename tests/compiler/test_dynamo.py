"""torch.compile(backend="infopt"): conventions of a backend, fallbacks, reports."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import infopt
from infopt.compiler import dynamo
from infopt.compiler.errors import BadOption, CannotInfer, FallbackRefused
from infopt.compiler.graph import Graph
from infopt.compiler.infer import Builder
from infopt.compiler.machine import Machine
from infopt.compiler.options import Options
from infopt.compiler.report import Report
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType
from infopt.runtime.errors import InputOverlap, InputUnaligned, PlanError
from tests.compiler.elsewhere import there


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def compiled(function, **kwargs):
    return torch.compile(function, backend="infopt", **kwargs)


def test_torch_lists_the_backend_without_importing_infopt():
    program = (
        "import sys, torch; assert 'infopt' in torch.compiler.list_backends(); "
        "assert 'infopt' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_modes_and_options_are_checked():
    x = torch.randn(3)
    for mode in ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"):
        torch._dynamo.reset()
        assert torch.equal(compiled(torch.relu, mode=mode)(x), torch.relu(x))
    for wrong in ({"mode": "fastest"}, {"options": {"colour": 1}}, {"options": {"tune": 9}}):
        torch._dynamo.reset()
        with pytest.raises(Exception) as raised:
            compiled(lambda v: v + 1, **wrong)(x)
        cause = raised.value
        assert isinstance(cause, BadOption) or isinstance(
            cause.__cause__ or cause.inner_exception, BadOption
        )


def test_options_do_not_leak_into_the_next_compile():
    x = torch.randn(3)
    compiled(lambda v: v + 1, options={"strict": True, "threads": 1})(x)
    data_dependent = compiled(lambda v: torch.unique(v) + 1)
    assert torch.equal(data_dependent(x), torch.unique(x) + 1)


def test_strict_refuses_what_torch_would_have_to_run():
    with pytest.raises(Exception, match="strict=True"):
        compiled(lambda v: torch.linalg.inv(v) + 1, options={"strict": True})(torch.eye(3))


def test_dynamic_sizes_do_not_recompile():
    f = compiled(lambda v: (v * 2).sum(-1), dynamic=True)
    for size in (3, 5, 8, 64, 1000):
        x = torch.randn(size, 7)
        torch.testing.assert_close(f(x), (x * 2).sum(-1))
    assert counters["infopt"]["graphs"] == 1


def test_training_graphs_run_as_torch_runs_them():
    net = nn.Linear(4, 4)
    fast = compiled(net)
    x = torch.randn(2, 4)
    y = fast(x)
    assert y.requires_grad
    y.sum().backward()
    assert net.weight.grad is not None
    assert "requires grad" in infopt.explain(fast)
    with torch.no_grad():
        assert not fast(x).requires_grad
    assert counters["infopt"]["eager_graphs"] == 1 and counters["infopt"]["graphs"] == 2


def test_weights_changed_in_place_or_exchanged_are_seen():
    net = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    fast, x = compiled(net), torch.randn(5, 16)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), net(x))
        net[0].weight.mul_(2)
        torch.testing.assert_close(fast(x), net(x))
        net[0].weight.data = torch.randn(16, 16)
        torch.testing.assert_close(fast(x), net(x))
        net[2].weight = nn.Parameter(torch.randn(3, 16))
        torch.testing.assert_close(fast(x), net(x))


def test_autocast_inside_and_outside():
    net = nn.Linear(8, 8).eval()
    x = torch.randn(3, 8)

    def inside(v):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return net(v)

    with torch.no_grad():
        assert compiled(inside)(x).dtype == torch.bfloat16
        fast = compiled(net)
        plain = fast(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert fast(x).dtype == torch.bfloat16
        assert plain.dtype == torch.float32


def test_tensor_subclasses_and_complex_numbers_run_as_torch_runs_them():
    class Tagged(torch.Tensor):
        pass

    tagged = torch.randn(3).as_subclass(Tagged)
    assert torch.equal(compiled(lambda v: v * 2)(tagged), tagged * 2)
    z = torch.randn(3, dtype=torch.complex64)
    assert torch.equal(compiled(lambda v: v.conj() * v)(z), z.conj() * z)


def test_random_numbers_come_in_the_same_order():
    def f(v):
        return torch.rand(3) + v, torch.randn(2), nn.functional.dropout(v, 0.5, training=True)

    torch.manual_seed(1)
    want = f(torch.ones(3))
    torch.manual_seed(1)
    got = compiled(f)(torch.ones(3))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_stance_and_reset():
    f = compiled(lambda v: v + 1, dynamic=False)
    f(torch.randn(3))
    with torch.compiler.set_stance("fail_on_recompile"), pytest.raises(RuntimeError):
        f(torch.randn(4))
    assert infopt.explain(f).startswith("target")
    torch._dynamo.reset()
    assert infopt.explain(f).startswith("nothing was compiled yet")


def test_faults_of_ours_are_loud_and_harmless(monkeypatch, caplog):
    from infopt.compiler import dynamo

    def broken(*_, **__):
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr(dynamo, "build", broken)
    x = torch.randn(3)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(compiled(lambda v: v + 1)(x), x + 1)
    assert "internal error" in caplog.text
    assert counters["infopt"]["internal_errors"] == 1


@pytest.mark.parametrize("fault", [CannotInfer("a rewrite of ours"), ZeroDivisionError("a fault")])
def test_faults_of_ours_are_fatal_where_that_is_asked_for(monkeypatch, fault):
    def broken(*_, **__):
        raise fault

    monkeypatch.setattr(dynamo, "build", broken)
    x = torch.randn(3)
    assert torch.equal(compiled(lambda v: v + 1)(x), x + 1)
    assert counters["infopt"]["internal_errors"] == 1
    report = dynamo._entries[-1].report
    assert report.declined == f"internal error: {type(fault).__name__}: {fault}"
    with pytest.raises(Exception, match=str(fault)):
        compiled(lambda v: v + 2, options={"strict": True})(x)
    assert counters["infopt"]["internal_errors"] == 1


def test_what_the_user_asked_wrongly_is_an_error(monkeypatch):
    def refused(*_, **__):
        raise infopt.BadOption("that is no budget")

    monkeypatch.setattr(dynamo, "build", refused)
    with pytest.raises(Exception, match="that is no budget"):
        compiled(lambda v: v + 1)(torch.randn(3))
    assert not counters["infopt"]["internal_errors"]


def test_calibration_is_for_modules():
    options = {"weights": "int8", "calibration": [(torch.randn(3),)]}
    with pytest.raises(Exception, match="calibration: its inputs are a module's, give them to"):
        compiled(lambda v: v + 1, options=options)(torch.randn(3))


def test_overlapping_written_inputs_take_torchs_way():
    def f(x, y):
        x.mul_(2)
        return x + y

    fast = compiled(f)
    a, b = torch.randn(6), torch.randn(6)
    assert torch.equal(fast(a.clone(), b), f(a.clone(), b))
    base, again = torch.arange(8.0), torch.arange(8.0)
    assert torch.equal(fast(base[:6], base[2:]), f(again[:6], again[2:]))
    assert torch.equal(base, again)


def test_a_trace_that_breaks_the_rules_runs_as_torch_runs_it() -> None:
    """What an in-place write through a view leaves may lie in other strides than torch says."""

    def program(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        turned = x.repeat_interleave(2, 1).transpose(1, 0)
        filled = turned.masked_fill_(mask, 1)
        return turned.masked_fill(filled > 0, 2)

    x, mask = torch.randn(2, 34), torch.rand(68, 2) > 0.5
    torch._dynamo.reset()
    found = torch.compile(program, backend="infopt")(x, mask)
    assert torch.equal(found, program(x, mask)) and found.stride() == program(x, mask).stride()


def test_parameters_and_buffers_are_weights_and_times_are_kept():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.randn(4))
            self.register_buffer("shift", torch.randn(4))

        def forward(self, x):
            return x * self.scale + self.shift

    model, x = Shifted().eval(), torch.randn(3, 4)
    with torch.no_grad():
        assert torch.equal(compiled(model)(x), model(x))
    entry = dynamo._entries[-1]
    assert sorted(node.attr("weight") for node in entry.graph.inputs) == [False, True, True]
    assert {n.shape for n in entry.graph.inputs if n.attr("weight")} == {(4,)}
    assert list(entry.report.phases) == ["trace", "passes", "lower", "build"]


def without_tensors(**kwargs):
    """A call of the backend that it declines."""
    return dynamo.infopt(torch.fx.symbolic_trace(lambda v: torch.relu(v)), [3], **kwargs)


def test_what_is_declined_runs_as_torch_runs_it_or_is_refused() -> None:
    run = without_tensors()
    assert torch.equal(run(torch.tensor([-1.0, 2.0])), torch.tensor([0.0, 2.0]))
    assert dynamo._entries[-1].report.declined == "the program has no tensor inputs"
    assert counters["infopt"]["eager_graphs"] == counters["infopt"]["graphs"] == 1
    with pytest.raises(FallbackRefused, match="cannot be compiled: the program has no tensor"):
        without_tensors(options={"strict": True})


def test_graphs_between_passes_are_kept_of_the_newest(monkeypatch) -> None:
    dynamo.reset()
    monkeypatch.setattr(dynamo, "_KEPT_HISTORIES", 2)
    for _ in range(4):
        without_tensors()
        dynamo._entries[-1].report.history.append("a step")
    kept = [len(entry.report.history) for entry in dynamo._entries]
    assert kept == [0, 0, 1, 1]


def test_torch_runs_the_operators_that_strict_refuses() -> None:
    report = Report(fallbacks={"aten.b": "late", "aten.a": "early"})
    dynamo.refuse_fallbacks(Options.parse({}), report)
    dynamo.refuse_fallbacks(Options.parse({"strict": True}), Report())
    with pytest.raises(FallbackRefused, match=r"have to run aten.a: early; aten.b: late$"):
        dynamo.refuse_fallbacks(Options.parse({"strict": True}), report)


def test_inputs_come_in_the_order_of_the_graph() -> None:
    for order, found in (([0, 1, 2], "abc"), ([2, 0, 1], "cab"), ([1, 0, 2], "bac")):
        run = dynamo.Compiled("".join, order, print, Report(), False)
        assert run("a", "b", "c") == found


@pytest.mark.parametrize("order, found", [([2, 0], "ca"), ([0, 1], "ab"), ([0], "a"), ([2], "c")])
def test_weights_that_became_constants_are_no_inputs(order: list[int], found: str) -> None:
    run = dynamo.Compiled("".join, order, print, Report(), False)
    assert run("a", "b", "c") == found


def test_a_plan_that_fails_is_not_run_again(caplog) -> None:
    calls = []

    def program(args):
        calls.append(args)
        raise PlanError("step 3 made f32[2]")

    run = dynamo.Compiled(program, [0], torch.relu, Report(), False)
    x = torch.tensor([-1.0, 2.0])
    with caplog.at_level(logging.WARNING):
        assert torch.equal(run(x), torch.relu(x)) and torch.equal(run(x), torch.relu(x))
    assert len(calls) == 1 and "as torch runs it from now on" in caplog.text
    assert run.report.declined == "at run time: step 3 made f32[2]"


@pytest.mark.parametrize("error", [InputOverlap("shared"), InputUnaligned("odd"), PlanError("no")])
def test_torch_draws_the_numbers_that_the_program_would_have_drawn(error) -> None:
    def program(_):
        torch.rand(5)
        raise error

    def torchs(*_):
        return torch.rand(3)

    for random in (True, False):
        run = dynamo.Compiled(program, [0], torchs, Report(), random)
        torch.manual_seed(4)
        expected = torchs()
        torch.manual_seed(4)
        assert torch.equal(run(torch.ones(1)), expected) == random
    assert bool(run.report.declined) == isinstance(error, PlanError)


def test_the_numbers_of_a_gpu_are_its_own(monkeypatch) -> None:
    where, states = torch.device("cuda", 1), []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: ("state of", device))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *given: states.append(given))

    def program(_):
        raise InputOverlap("shared")

    before = torch.get_rng_state()
    dynamo.Compiled(program, [0], torch.rand, Report(), True, where)(3)
    assert states == [(("state of", where), where)]
    assert not torch.equal(torch.get_rng_state(), before)  # not set back


def test_constants_and_samples_of_a_gpu_program(monkeypatch) -> None:
    o = Builder()
    x, w = (TensorType.dense(s, torch.float32) for s in ((2, 3), (4, 3)))
    const = there(torch.randn(4, 3))
    made = o.linear(o.input("x", x), o.const("w", w))
    graph, sample = Graph((made.args[0],), (made,), {"w": const}), (there(torch.randn(2, 3)), 7)
    plain, lossy = Options.parse({}), Options.parse({"weights": "int8"})
    here = Machine(Target.parse("cpu:scalar"))
    assert dynamo._off_gpu(graph, [sample], plain, here) == (graph, [sample])
    gpu = Machine(Target.parse("cuda:sm90"))
    found, kept = dynamo._off_gpu(graph, [sample], plain, gpu)
    assert type(found.consts["w"]) is torch.Tensor and torch.equal(found.consts["w"], const.cpu())
    assert found.outputs == graph.outputs and kept == []
    for options, check in ((lossy, "0"), (plain, "1")):
        monkeypatch.setenv("INFOPT_CHECK", check)
        _, [(tensor, number)] = dynamo._off_gpu(graph, [sample], options, gpu)
        assert type(tensor) is torch.Tensor and number == 7
        assert torch.equal(tensor, sample[0].cpu())
