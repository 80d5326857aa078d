"""Size expressions: Python's own integers are the reference, native and Python evaluation equal."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infopt.runtime.context import Context, NativeProgram
from infopt.runtime.errors import SizeError
from infopt.runtime.expression import evaluate
from infopt.runtime.plan import Dim, InputSpec, Plan
from infopt.runtime.plan_check import OPERATORS


@st.composite
def expressions(draw, depth=3):
    """(postfix tokens, the same as Python text)."""
    if depth == 0 or draw(st.booleans()):
        if draw(st.booleans()):
            i = draw(st.integers(0, 1))
            return (f"d{i}",), f"d[{i}]"
        n = draw(st.integers(-20, 20))
        return (n,), f"({n})"
    a, left = draw(expressions(depth - 1))
    b, right = draw(expressions(depth - 1))
    op = draw(st.sampled_from(OPERATORS))
    text = f"{op}({left}, {right})" if op in ("max", "min") else f"int({left} {op} {right})"
    return (*a, *b, op), text


def plan_of(expressions):
    inputs = (InputSpec("a", "int"), InputSpec("b", "int"))
    dims = (Dim("a", -(2**62), None, 0), Dim("b", -(2**62), None, 1))
    return Plan(tuple(expressions), dims, inputs, (), (), (), ())


@settings(max_examples=300)
@given(st.data())
def test_native_and_python_agree_with_python_text(executor, data):
    tokens, text = data.draw(expressions())
    d = [data.draw(st.integers(-50, 50)), data.draw(st.integers(-50, 50))]
    plan = plan_of([tokens, ("s0", 1, "+")])
    context = Context(plan, NativeProgram(plan, executor, {}), 1)
    try:
        expected = eval(text, {"d": d})
    except ZeroDivisionError:
        with pytest.raises(SizeError, match="divides by zero"):
            evaluate(plan.expressions, d)
        with pytest.raises(SizeError, match="divides by zero"):
            context.resize(d)
        return
    assert evaluate(plan.expressions, d) == [expected, expected + 1]
    context.resize(d)
    assert context.slots[:2] == [expected, expected + 1]


@pytest.mark.parametrize(
    "tokens", [("d0", "d0", "*"), ("d0", "d0", "+"), (-(2**63), -1, "//"), (0, -(2**63), "-")]
)
def test_overflow_is_an_error(executor, tokens):
    plan = plan_of([tokens])
    context = Context(plan, NativeProgram(plan, executor, {}), 1)
    with pytest.raises(SizeError, match="leaves 64 bits"):
        context.resize([2**62, 0])
    with pytest.raises(SizeError, match="leaves 64 bits"):
        evaluate(plan.expressions, [2**62, 0])
