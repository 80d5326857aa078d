"""Property tests made for a pass: they pass for right ones and find what is wrong in others."""

from __future__ import annotations

import pytest
import torch

import infopt
from infopt.compiler.certification.property_test import LAYOUTS, VALUES, hypothesis_test, tensor
from infopt.compiler.errors import ContractBroken
from infopt.compiler.testing import check_pass, property_test


class ScaledSum(infopt.Rule):
    """x s + y s -> (x + y) s"""

    name, always = "scaled-sum", True
    narrow_is_wrong = False

    def pattern(self, o, x, y):
        return o.add(o.mul(x, o.any("s")), o.mul(y, o.any("s")))

    def rewrite(self, o, x, y, s):
        total = o.add(x, y)
        if self.narrow_is_wrong and x.shape[-1] == 17:
            total = o.sub(x, y)
        return o.mul(total, s)


class WrongWhereNarrow(ScaledSum):
    name, narrow_is_wrong = "wrong-where-narrow", True


def before(o, x, y):
    return o.add(o.mul(x, 2.0), o.mul(y, 2.0))


test_a_right_pass = property_test(
    ScaledSum(), before, [("rows", "width"), ("rows", "width")], (torch.float32, torch.float64)
)
test_broadcast_programs_count_where_they_exist = property_test(
    ScaledSum(), before, [("rows", 4), ("rows", "width")], examples=30
)


def test_the_wrong_size_is_found() -> None:
    made = property_test(WrongWhereNarrow(), before, [("rows", "width")] * 2, examples=60)
    with pytest.raises(ContractBroken, match="wrong-where-narrow promises Exact"):
        made()


def test_a_pass_that_never_applies_fails() -> None:
    def nothing(o, x):
        return o.relu(x)

    with pytest.raises(AssertionError, match="applied nowhere in 5 draws"):
        property_test(ScaledSum(), nothing, [("n",)], examples=5)()


def test_a_pass_that_is_not_idempotent_fails() -> None:
    class Grows(infopt.Pass):
        """relu(x) -> relu(relu(x))"""

        name = "grows"

        def run(self, graph, ctx):
            old = [n for n in graph.nodes() if n.op.name == "aten.relu.default"]
            return ctx.exchange(graph, {n: ctx.builder.relu(n) for n in old})

    made = property_test(Grows(), lambda o, x: o.relu(x), [("n",)], examples=5)
    with pytest.raises(AssertionError, match="grows is not idempotent"):
        made()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("values", VALUES)
def test_tensors_are_what_was_asked_for(layout: str, values: str) -> None:
    for shape in ([], [3], [4, 6]):
        for dtype in (torch.float32, torch.bfloat16, torch.int64, torch.bool):
            made = tensor(shape, dtype, layout, values, 1)
            assert list(made.shape) == shape and made.dtype == dtype
            assert torch.equal(made, tensor(shape, dtype, layout, values, 1))
    strides = tensor([4, 6], torch.float32, layout, values, 1).stride()
    wanted = {"dense": (6, 1), "transposed": (1, 4), "every second": (12, 2), "expanded": (0, 1)}
    assert strides == wanted[layout]


def test_kinds_of_values() -> None:
    def values(kind: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return tensor([400], dtype, "dense", kind, 5)

    normal = values("normal")
    assert torch.equal(values("small"), normal * 1e-3)
    assert torch.equal(values("large"), normal * 30)
    assert torch.equal(values("equal"), torch.full([400], 0.75))
    zeros = values("signed zeros")
    assert torch.equal(zeros != 0, normal > 0.5) and torch.equal(
        zeros[zeros != 0], normal[normal > 0.5]
    )
    assert torch.equal(zeros.signbit(), normal.signbit())
    assert set(values("normal", torch.int64).tolist()) == set(range(-3, 4))
    share = values("normal", torch.bool).float().mean().item()
    assert 0.4 < share < 0.6


def test_the_test_has_the_name_of_its_pass() -> None:
    made = property_test(ScaledSum(), before, [("n",), ("n",)], examples=1)
    assert made.__name__ == "test_scaled_sum"


def test_check_pass_says_what_is_wrong() -> None:
    class Twice(infopt.Pass):
        """relu(x) -> relu(relu(x)), again and again"""

        name = "twice"

        def run(self, graph, ctx):
            old = [n for n in graph.nodes() if n.op.name == "aten.relu.default"]
            return ctx.exchange(graph, {n: ctx.builder.relu(n) for n in old[-1:]})

    class Halved(infopt.Rule):
        """x + x -> x, and its accuracy is exact"""

        name, always = "halved", True

        def pattern(self, o, x):
            return o.add(x, x)

        def rewrite(self, o, x):
            return o.mul(x, 1.5)

    x = torch.randn(4)
    with pytest.raises(AssertionError, match="twice is not idempotent"):
        check_pass(Twice(), lambda o, x: o.relu(x), lambda o, x: o.relu(o.relu(x)), [x])
    with pytest.raises(AssertionError, match="twice made another graph than expected"):
        check_pass(Twice(), lambda o, x: o.relu(x), lambda o, x: o.relu(x), [x])
    with pytest.raises(ContractBroken, match="halved"):
        check_pass(Halved(), lambda o, x: o.add(x, x), lambda o, x: o.mul(x, 1.5), [x])


def test_draws_that_the_program_does_not_take_do_not_count() -> None:
    taken = []

    def check(inputs):
        if inputs[0].shape[0] % 2:
            return None
        taken.append(inputs)
        return 1

    hypothesis_test("half", check, [("n",)], [torch.float32], 25)()
    assert len(taken) >= 25
