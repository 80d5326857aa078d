"""Plans as data: the JSON round trip, and every malformed plan refused with its place named."""

import dataclasses
import json
import math

import pytest

from infopt.runtime.errors import PlanError
from infopt.runtime.plan import (
    AtenStep,
    Buffer,
    Dim,
    Guard,
    InputSpec,
    Mutation,
    NativeStep,
    OutputConst,
    OutputInput,
    OutputInt,
    OutputNone,
    OutputTensor,
    Plan,
    View,
)

EVERYTHING = Plan(
    expressions=(
        ("d0",),
        (16,),
        ("d0", 15, "+", 16, "//"),
        ("s0", 4, "*"),
        (0,),
        (1,),
        ("d0", 3, "<", "d1", "max", 2, "min", 1, "-", 5, "%"),
    ),
    dims=(Dim("n", 0, 100, 0, 0), Dim("k", -5, None, 1)),
    inputs=(
        InputSpec("x", "tensor", "torch.float32", (0,), (5,)),
        InputSpec("k", "int"),
        InputSpec("w", "weight", "torch.bfloat16", (1, 1), (1, 5)),
        InputSpec("any", "tensor", "torch.int64", (0,)),
        InputSpec("obj", "other"),
    ),
    buffers=(
        Buffer("input", 0, 3),
        Buffer("output", 0, 3),
        Buffer("arena", 0, 3),
        Buffer("const", 1, 3),
        Buffer("torch", 0, 3),
    ),
    views=(View(1, 4, (0,), (5,), "torch.float32"), View(4, 4, (0,), (5,), "torch.bool")),
    steps=(
        NativeStep("k", "m", ((0, 4), (-1, 4), (1, 4)), (0,), 2, 1, "IndexError: no such row"),
        NativeStep("k", "m", (), (), 5),
        AtenStep(
            "aten.foo.default",
            ({"tensor": 0}, [1, 2.5, [None, True]], math.inf, {"dtype": "torch.float32"}),
            (0, None),
            {"dim": -1},
        ),
    ),
    outputs=(
        OutputTensor(0),
        OutputNone(),
        OutputConst(-math.inf),
        OutputConst(True),
        OutputConst("text"),
        OutputConst(1),
        OutputInt(2),
        OutputInput(0),
    ),
    mutations=(Mutation(0, 0),),
    guards=(Guard(6, "n must be small"),),
)


def test_round_trip():
    text = EVERYTHING.to_json()
    again = Plan.from_json(text)
    assert again == EVERYTHING
    assert again.to_json() == text
    assert [type(o) for o in again.outputs] == [type(o) for o in EVERYTHING.outputs]
    assert again.outputs[3].value is True and again.constants == 2 and again.libraries == ("m",)


def edit(path, value):
    """EVERYTHING as JSON with one place changed."""
    data = json.loads(EVERYTHING.to_json())
    place = data
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["format"], 2, "Plan.format: expected 1, found 2"),
        (["dims"], None, "field 'dims' is missing"),
        (["more"], 1, "unknown field 'more'"),
        (["dims"], {}, "Plan.dims: expected a list"),
        (["dims", 0, "lo"], "0", r"Plan.dims\[0\].lo: expected int, found \"0\""),
        (["dims", 0, "lo"], True, "expected int, found true"),
        (["dims", 0, "axis"], 1, r"dims\[0\] \(n\).axis: expected an index into 1 axes, found 1"),
        (["dims", 0, "input"], 9, r"expected an index into 5 inputs, found 9"),
        (["dims", 0, "input"], 1, "expected a tensor input, found int"),
        (["expressions", 0], ["d7"], r"expressions\[0\]: 'd7', but there are 2 dims"),
        (["expressions", 0], ["s0"], "but there are 0 earlier slots"),
        (["expressions", 0], [1, "+"], "'[+]' expected two values, found 1"),
        (["expressions", 0], [1, 2], "expected one value at the end, found 2"),
        (["expressions", 0], ["sin"], "expected an int"),
        (["expressions", 0], [2**63], "does not fit 64 bits"),
        (["expressions", 0], [1] * 70, "at most 64 values"),
        (["inputs", 0, "kind"], "list", "expected one of"),
        (["inputs", 0, "dtype"], "float32", "expected a torch dtype"),
        (["inputs", 0, "strides"], [5, 5], "1 sizes but 2 strides"),
        (["inputs", 2, "shape"], [0, 1], "sizes and strides must be constants"),
        (["buffers", 0, "kind"], "heap", "expected one of"),
        (["buffers", 0, "index"], 1, "input 1 is not a tensor"),
        (["buffers", 0, "index"], 3, "whose strides are not fixed"),
        (["buffers", 3, "index"], -1, "expected 0 or more"),
        (["buffers", 2, "bytes"], 99, "expected an index into 7 expressions"),
        (["views", 0, "buffer"], 9, "expected an index into 5 buffers"),
        (["views", 0, "buffer"], 2, "cannot lie in arena memory"),
        (["views", 0, "strides"], [], "1 sizes but 0 strides"),
        (["steps", 0, "pointers"], [[9, 4]], r"steps\[0\] \(k\).pointers"),
        (["steps", 0, "pointers"], [[1, 4, 4]], "expected a list of 2"),
        (["steps", 0, "tasks"], -1, "expected an index"),
        (["steps", 2, "op"], "aten.foo", "expected namespace.op.overload"),
        (["steps", 2, "args"], [{"tensor": 5}], "expected an index into 2 views"),
        (["steps", 2, "args"], [{"file": "x"}], "expected one key of"),
        (["steps", 2, "outputs"], [7], "expected an index into 2 views"),
        (["steps", 2], {"op": "a.b.c"}, r"steps\[2\]: expected NativeStep or AtenStep"),
        (["outputs", 0], {"view": 8}, "expected an index into 2 views"),
        (["outputs", 0], {"value": {"float": "1e3"}}, "expected float"),
        (["mutations", 0, "input"], 9, "expected an index into 5 inputs"),
        (["guards", 0, "slot"], 99, "expected an index into 7 expressions"),
    ],
)
def test_malformed_plans_are_refused(path, value, message):
    with pytest.raises(PlanError, match=message):
        Plan.from_json(edit(path, value))


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "{", '{"format":1,"format":1}', "NaN", "[" * 100_000, '{"format": 1}'],
)
def test_other_text_is_refused(text):
    with pytest.raises(PlanError):
        Plan.from_json(text)


def test_a_plan_is_checked_when_it_is_made():
    with pytest.raises(PlanError, match="outputs"):
        dataclasses.replace(EVERYTHING, outputs=(OutputTensor(7),))
