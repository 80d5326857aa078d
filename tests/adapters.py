"""Random adapters, and models with one merged into their weights: what a row is compared with."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn


def random_adapter(
    model: nn.Module, layers: Iterable[str], rank: int, seed: int
) -> dict[str, Tensor]:
    """Factors of these layers by PEFT's names, large enough to matter."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name in layers:
        n, k = model.get_submodule(name).weight.shape
        found[f"{name}.lora_A.weight"] = torch.randn(rank, k, generator=generator) / k**0.5
        found[f"{name}.lora_B.weight"] = torch.randn(n, rank, generator=generator) / rank**0.5
    return found


def merged(model: nn.Module, adapter: dict[str, Tensor], scale: float = 1.0) -> nn.Module:
    """The model with scale * B A added to its weights."""
    made = copy.deepcopy(model)
    for name, a in adapter.items():
        if ".lora_A." in name:
            b = adapter[name.replace("lora_A", "lora_B")]
            weight = made.get_submodule(name.partition(".lora_A")[0]).weight
            weight.data += (scale * b.double() @ a.double()).to(weight.dtype)
    return made


def peft_folder(folder: Path, adapter: dict[str, Tensor], **config: object) -> Path:
    """The folder that PEFT would write."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"base_model.model.{name}": t for name, t in adapter.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    usual = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "use_dora": False}
    (folder / "adapter_config.json").write_text(json.dumps({**usual, **config}))
    return folder
