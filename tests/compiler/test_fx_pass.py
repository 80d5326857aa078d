"""fx functions as passes: round trip, contract, mistakes."""

from __future__ import annotations

import pytest
import torch

from infopt.compiler.accuracy import Close
from infopt.compiler.errors import ContractBroken
from infopt.compiler.fx_pass import FxPass
from infopt.compiler.interpret import interpret
from infopt.compiler.testing import graph_of, run_pass

aten = torch.ops.aten


def replace_all(old, new):
    def function(module):
        for node in module.graph.nodes:
            if node.target is old:
                node.target = new
        return module

    return function


def test_a_function_that_edits_the_module():
    start = graph_of(lambda o, x: o.relu(o.gelu(x)), [torch.randn(4)])
    found, report = run_pass(
        FxPass(replace_all(aten.relu.default, aten.sigmoid.default), Close(9, 9)), start
    )
    assert found.outputs[0].op.name == "aten.sigmoid.default"
    assert report.name == "fx-function" and report.applied


def test_a_function_that_changes_nothing_returns_the_same_graph():
    start = graph_of(
        lambda o, x, y: (o.add(o.linear(x, y), 1.0), x), [torch.randn(4, 3), torch.randn(2, 3)]
    )
    found, report = run_pass(FxPass(lambda module: module), start)
    assert found is start and not report.applied


def test_the_contract_is_measured():
    x = torch.randn(4)
    start = graph_of(lambda o, v: o.relu(v), [x])
    with pytest.raises(ContractBroken, match="fx-function promises Exact"):
        run_pass(FxPass(replace_all(aten.relu.default, aten.sigmoid.default)), start, [(x,)])


def test_new_calls_keep_their_values():
    def add_one(module):
        [end] = [n for n in module.graph.nodes if n.op == "output"]
        with module.graph.inserting_before(end):
            value = module.graph.call_function(aten.add.Scalar, (end.args[0][0], 1.0))
        end.args = ([value],)
        return module

    x = torch.randn(4)
    start = graph_of(lambda o, v: o.relu(v), [x])
    found, _ = run_pass(FxPass(add_one, Close(9, 9)), start)
    assert torch.equal(interpret(found, [x])[0], torch.relu(x) + 1)


def test_mistakes_are_named():
    start = graph_of(lambda o, x: o.relu(x), [torch.randn(4)])
    with pytest.raises(ContractBroken, match=r"use torch\.ops overloads"):
        run_pass(FxPass(replace_all(aten.relu.default, torch.sigmoid)), start)
    with pytest.raises(ContractBroken, match="returned int"):
        run_pass(FxPass(lambda module: 3), start)


def test_another_number_of_results_is_refused():
    def one_more(module):
        end = module.graph.output_node()
        end.args = ([*end.args[0], end.args[0][0]],)
        return module

    start = graph_of(lambda o, x: o.relu(x), [torch.randn(4)])
    with pytest.raises(ContractBroken, match="changed the number of results to 2"):
        run_pass(FxPass(one_more), start)


def test_a_constant_that_the_function_adds_is_the_graph_s():
    added = torch.randn(4)

    def add_constant(module):
        module.register_buffer("added", added)
        end = module.graph.output_node()
        with module.graph.inserting_before(end):
            constant = module.graph.get_attr("added")
            value = module.graph.call_function(aten.add.Tensor, (end.args[0][0], constant))
        end.args = ([value],)
        return module

    x = torch.randn(4)
    start = graph_of(lambda o, v: o.relu(v), [x])
    found, _ = run_pass(FxPass(add_constant, Close(9, 9)), start)
    assert list(found.consts) == ["added"]
    assert torch.equal(interpret(found, [x])[0], torch.relu(x) + added)


def test_the_output_must_stay():
    def without_output(module):
        module.graph.erase_node(module.graph.output_node())
        return module

    start = graph_of(lambda o, x: o.relu(x), [torch.randn(4)])
    with pytest.raises(ContractBroken, match="removed the output"):
        run_pass(FxPass(without_output), start)
