"""Low-rank adapters as they are stored: tensors by name, or a folder that PEFT wrote.

lora_A [r, in] and lora_B [out, r] of a layer add scale * B A x to what it gives; in a folder the
scale is lora_alpha / r, or lora_alpha / sqrt(r) with rsLoRA, of which r and lora_alpha may be those
of a pattern of layers. (LoRA, Hu et al., 2022; rsLoRA, Kalajdzievski, 2023.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from infopt.runtime.errors import AdapterMismatch, AdapterUnsupported

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."  # PEFT's wrappers around the model
_FORM = re.compile(r"(?P<layer>.+)\.lora_(?P<side>[AB])(?:\.[^.]+)?(?:\.weight)?")
# Of adapter_config.json: what changes the sum, the base weights, or more than linear layers.
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": (None, "none"),
    "init_lora_weights": (None, True, False, "gaussian", "orthogonal", "eva"),
    **dict.fromkeys(
        (
            *("use_dora", "use_qalora", "lora_bias", "modules_to_save", "layer_replication"),
            *("trainable_token_indices", "target_parameters", "alora_invocation_tokens"),
        ),
        (None, False, [], {}),
    ),
}


@dataclass(frozen=True)
class Factors:
    """What an adapter adds to a layer: scale * b (a x), a [r, in] and b [out, r]."""

    a: Tensor
    b: Tensor
    scale: float

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])


def read_adapter(
    source: Mapping[str, Tensor] | str | Path, scale: float | None = None
) -> dict[str, Factors]:
    """The factors of an adapter by layer.

    source: a folder of PEFT's, or tensors by PEFT's names: "layers.0.q.lora_A.weight". scale: of
    tensors, 1 if None; a folder says its own. Nothing is unpickled.
    Raises AdapterUnsupported for kinds of adapters that are more than this sum, AdapterMismatch for
    missing files, factors without the other, and sizes that do not go together.
    """
    if isinstance(source, Mapping):
        return {
            layer: Factors(a, b, 1.0 if scale is None else scale)
            for layer, (a, b) in _pairs(source).items()
        }
    if scale is not None:
        raise AdapterMismatch(f"scale: {CONFIG} says it, found {scale}")
    folder = Path(source)
    config = _config(folder)
    pairs = _pairs(load_file(_file(folder, WEIGHTS)))
    return {
        layer: Factors(a, b, _scale(config, layer, int(a.shape[0])))
        for layer, (a, b) in pairs.items()
    }


def _file(folder: Path, name: str) -> Path:
    if not (folder / name).is_file():
        raise AdapterMismatch(f"{folder}: expected a folder with {name}")
    return folder / name


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads(_file(folder, CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise AdapterMismatch(f"{folder / CONFIG}: {error}") from None
    if not isinstance(config, dict):
        raise AdapterMismatch(f"{folder / CONFIG}: expected an object")
    for name, plain in _PLAIN.items():
        found = config.get(name)
        if not any(found == value and type(found) is type(value) for value in plain):
            raise AdapterUnsupported(
                f"{folder / CONFIG}: {name} is {found!r}, which is more than adding two factors"
            )
    return config


def _scale(config: Mapping[str, Any], layer: str, rank: int) -> float:
    alpha: Any = config.get("lora_alpha", 8)  # PEFT's default
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", layer):
            alpha = value
            break
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise AdapterMismatch(f"lora_alpha of {layer}: expected a number, found {alpha!r}")
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)


def _pairs(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    sides: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        form = _FORM.fullmatch(name)
        if form is None:
            raise AdapterUnsupported(f"{name}: expected the lora_A and lora_B of linear layers")
        if not isinstance(tensor, Tensor) or tensor.dim() != 2 or not tensor.is_floating_point():
            found = f"{tensor.dtype} {list(tensor.shape)}" if isinstance(tensor, Tensor) else tensor
            raise AdapterMismatch(f"{name}: expected a matrix of numbers, found {found}")
        layer = form["layer"].removeprefix(_PREFIX)
        if sides.setdefault(layer, {}).setdefault(form["side"], tensor) is not tensor:
            raise AdapterMismatch(f"{name}: there are two of {layer}")
    for layer, pair in sides.items():
        if set(pair) != {"A", "B"}:
            raise AdapterMismatch(f"{layer}: found only its lora_{'/'.join(pair)}")
        if pair["A"].shape[0] != pair["B"].shape[1] or 0 in pair["A"].shape:
            shapes = f"{list(pair['A'].shape)} and {list(pair['B'].shape)}"
            raise AdapterMismatch(f"{layer}: expected [r, in] and [out, r], found {shapes}")
    if not sides:
        raise AdapterMismatch("an adapter without a layer")
    return {layer: (pair["A"], pair["B"]) for layer, pair in sides.items()}
