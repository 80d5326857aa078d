"""Where constants come from: parameters, what was folded from them, or nothing that is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from infopt.codegen.lower import LoweringDeclined
from infopt.compiler import provenance as module
from infopt.compiler.graph import Graph, Node
from infopt.compiler.infer import Builder
from infopt.compiler.provenance import provenance
from infopt.compiler.tracing.export import Exported, export
from infopt.runtime.swap import PLAN


class Net(nn.Module):
    """Two layers of one matrix, a buffer, and a tensor that is neither."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
        self.third = self.second
        self.register_buffer("scale", torch.rand(3))
        self.code = torch.tensor([1.0, 2, 3])  # neither parameter nor buffer

    def forward(self, x):
        return self.third(self.first(x)) * self.scale + self.second(x) + self.code


@pytest.fixture
def exported() -> Exported:
    return export(Net().eval(), (torch.randn(2, 3),), {}, None, lambda i: i)


def consts(exported: Exported) -> dict[str, Node]:
    """The constants of the traced model by the names of the parameters they are."""
    found = {n.attr("name"): n for n in exported.graph.nodes() if n.op.name == "const"}
    named = {exported.names.get(name, "code"): node for name, node in found.items()}
    if "third.weight" in named:  # one memory under two names
        named["second.weight"] = named.pop("third.weight")
    return named


def finished(exported: Exported, derived: dict[str, Node]) -> Graph:
    """The graph with further constants that stand for these expressions."""
    o = Builder()
    made = {n: torch.zeros(e.tensor_type.shape, dtype=e.dtype) for n, e in derived.items()}
    nodes = tuple(o.const(n, e.tensor_type) for n, e in derived.items())
    return replace(
        exported.graph,
        outputs=(*exported.graph.outputs, *nodes),
        results=(),
        consts={**exported.graph.consts, **made},
    )


def found(exported: Exported, derived: dict[str, Node], **options: Any) -> module.Provenance:
    return provenance(exported, finished(exported, derived), derived, **options)


def test_constants_that_are_parameters(exported: Exported) -> None:
    entry = found(exported, {}).entry
    assert set(entry.direct.values()) == {"first.weight", "first.bias", "second.weight", "scale"}
    assert entry.aliases == {"third.weight": "second.weight"}
    assert set(entry.parameters) == set(entry.direct.values())
    assert entry.plan is None and entry.made == entry.made_from == () and not entry.fixed
    code = consts(exported)["code"].attr("name")
    assert code in exported.graph.consts and code not in entry.direct


def test_constants_that_were_folded_from_parameters(exported: Exported) -> None:
    """Also by calls with an argument left out."""
    o, c = Builder(), consts(exported)
    derived = {
        "product": o.linear(c["first.weight"], c["second.weight"], None),
        "root": o.call("aten.sqrt.default", c["scale"]),
    }
    result = found(exported, derived)
    assert result.entry.plan == PLAN and result.entry.made == ("product", "root")
    assert sorted(result.entry.made_from) == ["first.weight", "scale", "second.weight"]
    assert result.plan is not None and len(result.plan.inputs) == 3
    assert not result.entry.fixed


def test_constants_that_cannot_be_made_again(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    o, c = Builder(), consts(exported)
    both = o.add(c["scale"], c["code"])
    entry = found(exported, {"both": both, "own": o.neg(c["code"])}).entry
    assert entry.fixed == {"both": "was folded from parameters and from a tensor of the code"}
    graph = finished(exported, {"unknown": both})
    fixed = provenance(exported, graph, {}).entry.fixed
    assert fixed == {
        "unknown": "was made by a pass that does not say from what (PassContext.derive)"
    }

    def declined(*_: object) -> None:
        raise LoweringDeclined("no such call")

    monkeypatch.setattr(module, "_plan", declined)
    result = found(exported, {"root": o.call("aten.sqrt.default", c["scale"])})
    assert result.plan is None and result.entry.plan is None
    assert result.entry.made == result.entry.made_from == ()
    assert result.entry.fixed == {"root": "was folded, and not by torch calls: no such call"}


def test_what_was_chosen_for_values_holds_these(exported: Exported) -> None:
    """Those of a parameter whose values a rewrite has looked at are not exchanged silently."""
    o, c = Builder(), consts(exported)
    derived = {"root": o.call("aten.sqrt.default", c["first.weight"])}
    free = found(exported, derived).entry.parameters
    held = found(exported, derived, chosen=frozenset({"root"})).entry.parameters
    assert {n for n in free if free[n] != held[n]} == {"first.weight"}


def test_one_memory_has_one_name() -> None:
    whole = torch.randn(4, 4)
    empty = torch.empty(0)
    names = {
        "a": whole, "b": whole[:], "turned": whole.t(), "part": whole[:2], "empty": empty,
        "again": empty, "bits": whole.view(torch.int32),
    }  # fmt: skip
    assert module._aliases(names) == {"b": "a"}
