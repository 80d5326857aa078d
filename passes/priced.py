"""Forms of layers with what they cost, and why a budget takes one and not another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from infopt.compiler.allocation import Choice
from infopt.passes.layer_forms import Form


@dataclass(frozen=True)
class Priced:
    """A form of a layer with what it costs."""

    form: Form
    choice: Choice

    def __str__(self) -> str:
        return str(self.form)


def priced(form: Form, costs: Mapping[Form, float], error: float = 0.0) -> Priced:
    return Priced(form, Choice(costs.get(form, form.bytes), error, form.bytes))


def amount(form: Priced, timed: bool) -> str:
    cost = form.choice.cost
    return f"{cost * 1e6:.4g} us" if timed else f"{cost:.0f} bytes"


def why_not(forms: Sequence[Priced], timed: bool) -> str:
    """Why a layer stays as it is."""
    plain, others = forms[0], forms[1:]
    if not others:
        return "nothing pays"
    cheapest = min(others, key=lambda f: f.choice.cost)
    if cheapest.choice.cost >= plain.choice.cost:
        return f"does not pay: {against(cheapest, plain, timed)}"
    least = min(others, key=lambda f: f.choice.error)
    return f"the budget is spent elsewhere: {least} would add {least.choice.error:.1e}"


def why_not_less(forms: Sequence[Priced], chosen: Priced, timed: bool) -> str:
    """What a layer could have been for less."""
    less = [f for f in forms if f.choice.cost < chosen.choice.cost]
    if not less:
        return ""
    other = min(less, key=lambda f: f.choice.error)
    return f" ({against(other, chosen, timed)}, but adds {other.choice.error:.1e})"


def against(one: Priced, other: Priced, timed: bool) -> str:
    return f"{one} takes {amount(one, timed)}, {other} {amount(other, timed)}"
