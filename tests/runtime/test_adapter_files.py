"""Adapters as they are stored: PEFT's folders, tensors by name, and what is refused."""

import pytest
import torch

from infopt.runtime.adapter_files import read_adapter
from infopt.runtime.errors import AdapterMismatch, AdapterUnsupported
from tests.adapters import peft_folder

A, B = torch.randn(4, 6), torch.randn(5, 4)
ADAPTER = {"layers.0.q.lora_A.weight": A, "layers.0.q.lora_B.weight": B}


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 4.0),
        ({"alpha_pattern": {"q": 2}}, 0.5),
        ({"alpha_pattern": {"0.q": 12, "q": 2}}, 3.0),
        ({"alpha_pattern": {"layers": 2}, "rank_pattern": {"q": 4}, "r": 64}, 2.0),
    ],
)
def test_a_folder_says_its_scale(tmp_path, config, scale) -> None:
    (found,) = read_adapter(peft_folder(tmp_path, ADAPTER, **config)).items()
    assert found[0] == "layers.0.q" and found[1].scale == scale and found[1].rank == 4
    assert torch.equal(found[1].a, A) and torch.equal(found[1].b, B)


@pytest.mark.parametrize("form", ["{}.lora_{}.weight", "{}.lora_{}.default.weight", "{}.lora_{}"])
@pytest.mark.parametrize("prefix", ["", "base_model.model."])
def test_names_of_tensors(form, prefix) -> None:
    tensors = {prefix + form.format("a.b", side): t for side, t in (("A", A), ("B", B))}
    assert read_adapter(tensors)["a.b"].scale == 1
    assert read_adapter(tensors, 0.25)["a.b"].scale == 0.25


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"use_dora": True}, "use_dora is True"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"modules_to_save": ["head"]}, r"modules_to_save is \['head'\]"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens is "),
    ],
)
def test_kinds_of_adapters_that_are_more(tmp_path, config, name) -> None:
    with pytest.raises(AdapterUnsupported, match=f"{name}.*more than adding two factors"):
        read_adapter(peft_folder(tmp_path, ADAPTER, **config))


@pytest.mark.parametrize("name", ["q.lora_magnitude_vector", "q.lora_embedding_A", "q.weight"])
def test_other_tensors(name) -> None:
    with pytest.raises(AdapterUnsupported, match=f"{name}: expected the lora_A and lora_B"):
        read_adapter({**ADAPTER, name: torch.ones(3)})


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "an adapter without a layer"),
        ({"q.lora_A.weight": A}, "q: found only its lora_A"),
        ({"q.lora_A.weight": A, "q.lora_B.weight": A}, r"q: expected \[r, in\] and \[out, r\]"),
        ({"q.lora_A.weight": A[0]}, r"expected a matrix of numbers, found torch.float32 \[6\]"),
        ({"q.lora_A.weight": A.int()}, "expected a matrix of numbers, found torch.int32"),
        ({"q.lora_A.weight": A, "q.lora_A": A.clone()}, "q.lora_A: there are two of q"),
    ],
)
def test_tensors_that_are_no_factors(tensors, message) -> None:
    with pytest.raises(AdapterMismatch, match=message):
        read_adapter(tensors)


def test_folders_that_are_none(tmp_path) -> None:
    with pytest.raises(AdapterMismatch, match=r"expected a folder with adapter_config\.json"):
        read_adapter(tmp_path)
    folder = peft_folder(tmp_path, ADAPTER)
    with pytest.raises(AdapterMismatch, match=r"scale: adapter_config\.json says it, found 2\.0"):
        read_adapter(folder, 2.0)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(AdapterMismatch, match=r"expected a folder with adapter_model\.safetensors"):
        read_adapter(folder)
    for text in ("{", "[]", '{"peft_type": "LORA", "lora_alpha": "8"}'):
        (folder / "adapter_config.json").write_text(text)
        (folder / "adapter_model.bin").rename(folder / "adapter_model.safetensors")
        with pytest.raises(AdapterMismatch, match=r"adapter_config|lora_alpha of layers\.0\.q"):
            read_adapter(folder)
        (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
