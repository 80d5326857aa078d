"""The attention function that transformers' models are traced with: what it passes on, what it
refuses, and that a model is left as it was."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from infopt.compiler.decoding import transformers_cache
from infopt.compiler.decoding.transformers_cache import _own_attention, _picked, is_transformers
from infopt.compiler.errors import TraceDeclined

Q = torch.randn(1, 2, 3, 4)


class Met:
    """Keeps what it is asked to attend with."""

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}

    def attend(self, q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor:
        self.given = given
        return q + 1


def called(module: Any = None, mask: Tensor | None = None, **given: Any) -> tuple[Any, Met]:
    """What the registered function makes of a call by a layer of a model."""
    model, met = SimpleNamespace(config=SimpleNamespace(_attn_implementation="sdpa")), Met()
    with _own_attention(model, met):  # type: ignore[arg-type]
        assert model.config._attn_implementation == transformers_cache.NAME
        attend = AttentionInterface()[transformers_cache.NAME]
        return attend(module or nn.Identity(), Q, Q, Q, mask, **given), met


def test_arguments_reach_the_cache() -> None:
    (out, weights), met = called(scaling=0.5, sliding_window=16, softcap=30.0)
    assert met.given == {"scale": 0.5, "window": 16, "softcap": 30.0} and weights is None
    assert torch.equal(out, (Q + 1).transpose(1, 2)) and out.is_contiguous()
    assert called()[1].given == {"scale": None, "window": None, "softcap": None}


@pytest.mark.parametrize("name", ["s_aux", "position_bias", "attention_bias", "head_mask"])
def test_what_attention_has_no_form_for(name: str) -> None:
    with pytest.raises(TraceDeclined, match=f"attention with {name} has no form with a compiled"):
        called(**{name: torch.zeros(2)})
    called(**{name: None})


def test_attention_that_is_not_causal() -> None:
    both_ways = nn.Identity()
    both_ways.is_causal = False  # type: ignore[assignment]
    for call in (
        lambda: called(mask=torch.zeros(3, 3)),
        lambda: called(is_causal=False),
        lambda: called(both_ways),
    ):
        with pytest.raises(TraceDeclined, match="attention that is not causal has no form"):
            call()
    called(is_causal=True)
    called(both_ways, is_causal=True)  # the call says more than the layer


def test_dropout() -> None:
    with pytest.raises(TraceDeclined, match=r"dropout is 0\.1; call model\.eval\(\) first"):
        called(dropout=0.1)


def test_the_model_is_left_as_it_was() -> None:
    model = SimpleNamespace(config=SimpleNamespace(_attn_implementation="eager"))
    with pytest.raises(ZeroDivisionError), _own_attention(model, Met()):  # type: ignore[arg-type]
        raise ZeroDivisionError
    assert model.config._attn_implementation == "eager"
    assert transformers_cache.NAME not in AttentionInterface._global_mapping


class Headed(nn.Module):
    def __init__(self, head: nn.Module | None) -> None:
        super().__init__()
        self.head = head

    def get_output_embeddings(self) -> nn.Module | None:
        return self.head


def test_the_head_sees_the_rows_that_are_asked_for() -> None:
    model = Headed(nn.Identity())
    with _picked(model, lambda x: x[:, -1:]):
        assert model.head(Q).shape == (1, 1, 3, 4)  # type: ignore[misc]
    assert model.head(Q).shape == Q.shape  # type: ignore[misc]
    with (
        pytest.raises(TraceDeclined, match="Headed has no output embeddings: not a causal model"),
        _picked(Headed(None), lambda x: x),
    ):
        pass


def test_transformers_models_are_known_by_their_configuration() -> None:
    assert not is_transformers(nn.Identity())
    for attribute, known in (("_attn_implementation", True), ("hidden_size", False)):
        model = nn.Identity()
        model.config = SimpleNamespace(**{attribute: "sdpa"})  # type: ignore[assignment]
        assert is_transformers(model) is known
