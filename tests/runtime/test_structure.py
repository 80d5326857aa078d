"""Nested values as data: what goes in comes out, with the original classes where imported."""

import collections
import dataclasses
import json
import math
import sys
import types

import pytest

from infopt.runtime.errors import ArtifactCorrupt, InputMismatch, PlanError
from infopt.runtime.records import freeze
from infopt.runtime.signature import Parameter, Signature
from infopt.runtime.structure import Leaf, Record, builder, check, describe, flatten, leaves

Point = collections.namedtuple("Point", "x y")


@dataclasses.dataclass
class Pair:
    first: object
    second: object = None


class Bag(dict):
    pass


def through_json(structure):
    found = freeze(json.loads(json.dumps(structure)))
    check(found, "here")
    return found


TREES = [
    Leaf(0),
    (Leaf(1), [Leaf(0), None], {"a": Leaf(2), 3: ()}),
    {"x": Point(Leaf(0), Leaf(0)), "y": Pair(Leaf(1), "text")},
    [1, 2.5, True, None, "s", math.inf, -math.inf],
    Bag(a=Leaf(0)),
]


@pytest.mark.parametrize("tree", TREES)
def test_round_trip(tree):
    structure = through_json(describe(tree))
    again = builder(structure)([Leaf(0), Leaf(1), Leaf(2)])
    assert again == tree and type(again) is type(tree)
    flat = [None] * 3
    flatten(structure, tree, flat, "x")
    assert {i for i, v in enumerate(flat) if v is not None} == set(leaves(structure))


def test_keys_and_order_survive():
    again = builder(through_json(describe({"b": Leaf(0), 1: Leaf(1), "a": Leaf(2)})))([1, 2, 3])
    assert list(again.items()) == [("b", 1), (1, 2), ("a", 3)]


def test_a_class_that_is_not_imported_becomes_a_record():
    module = types.ModuleType("infopt_test_outputs")
    exec(
        "import dataclasses\n@dataclasses.dataclass\nclass Out:\n  a: object\n  b: object = None",
        sys.modules.setdefault(module.__name__, module).__dict__,
    )
    build = builder(through_json(describe(module.Out(Leaf(0), Leaf(1)))))
    assert build([3, 4]) == module.Out(3, 4)
    del sys.modules[module.__name__]
    out = build([3, 4])
    assert type(out) is Record and out.a == out["a"] == out[0] == 3 and out[1:] == [4]
    assert out.to_tuple() == (3, 4) and dict(out) == {"a": 3, "b": 4}
    with pytest.raises(AttributeError, match="no 'c'"):
        _ = out.c


def test_functions_are_never_called():
    """Only classes of values are built, whatever the artifact names."""
    structure = {"record": (("command", {"const": "exit 1"}),), "class": "os:system"}
    assert builder(structure)([]) == {"command": "exit 1"}
    structure = {"record": (("args", {"const": "true"}),), "class": "subprocess:Popen"}
    assert type(builder(structure)([])) is Record


def test_transformers_outputs():
    outputs = pytest.importorskip("transformers.modeling_outputs")
    import torch

    tree = outputs.BaseModelOutput(last_hidden_state=Leaf(0))
    x = torch.zeros(2)
    again = builder(through_json(describe(tree)))([x])
    assert (
        type(again) is outputs.BaseModelOutput
        and again[0] is x
        and list(again) == ["last_hidden_state"]
    )


@pytest.mark.parametrize(
    "bad",
    [
        None,
        [],
        {},
        {"leaf": -1},
        {"leaf": "0"},
        {"leaf": 0, "const": 1},
        {"const": []},
        {"tuple": {}},
        {"tuple": [{"leaf": True}]},
        {"dict": [["a"]]},
        {"dict": [[None, {"leaf": 0}]]},
        {"named": []},
        {"record": [], "class": 3},
        {"pickle": "x"},
    ],
)
def test_other_json_is_refused(bad):
    with pytest.raises(ArtifactCorrupt, match=r"here.*: expected a structure"):
        check(freeze(bad), "here")


def test_unsupported_values_are_named():
    with pytest.raises(PlanError, match="found builtins:set"):
        describe({"a": {1}})
    deep = Leaf(0)
    for _ in range(100):
        deep = [deep]
    with pytest.raises(PlanError, match="nested deeper than 64"):
        describe(deep)


SIGNATURE = Signature(
    (
        Parameter("ids", "positional", {"leaf": 0}),
        Parameter("mask", "positional", freeze(describe(None))),
        Parameter("caches", "positional", freeze(describe([(Leaf(1), Leaf(2))]))),
        Parameter("scale", "keyword", freeze(describe(2.0))),
    )
)


def test_binding():
    assert SIGNATURE.bind(["i", None, [("a", "b")]], {}) == ["i", "a", "b"]
    assert SIGNATURE.bind(["i"], {"caches": [("a", "b")], "scale": 2.0}) == ["i", "a", "b"]
    assert SIGNATURE.bind([], {"caches": [(1, 2)], "ids": 0}) == [0, 1, 2]


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        (["i"], {}, r"'caches' is missing \(the program takes ids, mask, caches, scale\)"),
        (["i", None, [], 2.0], {}, "at most 3 positional"),
        (["i"], {"ids": 1}, "'ids' is given twice"),
        (["i"], {"caches": [(1, 2)], "labels": 1}, "unknown argument 'labels'"),
        (
            ["i", 5],
            {"caches": [(1, 2)]},
            "mask: expected None, which is part of the program, found 5",
        ),
        (["i"], {"caches": [(1, 2)], "scale": 2}, "scale: expected 2.0.*, found 2"),
        (["i"], {"caches": [(1, 2)] * 2}, r"expected a list of \[0\], found a list of \[0, 1\]"),
        (["i"], {"caches": [[1, 2]]}, r"caches\[0\]: expected a tuple of \[0, 1\], found a list"),
        (["i"], {"caches": 7}, "caches: expected tensors.*, found builtins:int"),
    ],
)
def test_arguments_that_do_not_fit(args, kwargs, message):
    with pytest.raises(InputMismatch, match=message):
        SIGNATURE.bind(args, kwargs)
