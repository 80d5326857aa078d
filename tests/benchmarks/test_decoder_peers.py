"""The peers of the decoding benchmark, where they are installed: they run our decoder."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import decode
from infopt.models.decoder import SMALL, Decoder

LENGTH = 16
# relative errors of logits; random weights lose more in few bits than trained ones
ERRORS = {"fp32": 1e-5, "bf16": 0.02, "int8": 0.06, "int4": 0.5}


@pytest.fixture
def model() -> Decoder:
    torch.manual_seed(0)
    made = Decoder(SMALL).bfloat16().eval()
    for parameter in made.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.1)
    return made


@torch.no_grad()
def check(model: Decoder, arms: Iterator[tuple[str, Any]]) -> list[str]:
    """Compare all arms' logits with ours, and their tokens where they round nothing."""
    exact = deepcopy(model).float()
    ids = torch.randint(0, SMALL.vocabulary, (3, 7))
    ids[0, 0] = ids[1, -1] = 0  # an id like others, though peers know texts that end with it
    wanted = exact(ids)[:, -1]
    forms = []
    for form, arm in arms:
        forms.append(form)
        error = (arm.logits(ids) - wanted).norm() / wanted.norm()
        assert error < ERRORS[form.split("-")[0]], (form, float(error))
        tokens = decode.greedy(arm, ids, 4)
        assert tokens.shape == (3, 4)
        if form == "fp32":
            assert torch.equal(tokens, greedy(exact, ids, 4))
    return forms


def greedy(model: Decoder, ids: Tensor, n: int) -> Tensor:
    for _ in range(n):
        ids = torch.cat((ids, model(ids)[:, -1:].argmax(-1)), 1)
    return ids[:, -n:]


def test_onnxruntime_genai(model):
    for package in ("onnxruntime_genai", "onnx", "onnx_ir", "transformers", "tokenizers"):
        pytest.importorskip(package)
    from benchmarks import ort_genai_arm

    forms = ("fp32", "int8-act", "int4-g32-act")
    assert check(model, ort_genai_arm.arms(model, LENGTH, 1, forms)) == list(forms)


def test_openvino(model):
    for package in ("openvino", "nncf"):
        pytest.importorskip(package)
    from benchmarks import openvino_decoder_arm as arm

    assert check(model, arm.arms(model, 1, tuple(arm.FORMS))) == list(arm.FORMS)
