"""Linear layers whose weight lies in integers of some checkpoint's layout, in plain torch.

transformers needs a package for each of these; here a model with packed checkpoints runs without.
The layer unpacks its matrix at every call: the meaning of a layout, and what a compiler looks at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the columns in the eight places of a word


def unpacked(words: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    """int32 words -> their 32 / bits unsigned integers each along `dim`, low bits first."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    codes = words.unsqueeze(dim + 1) >> shifts.reshape(-1, *[1] * (words.dim() - 1 - dim))
    return (codes & (2**bits - 1)).flatten(dim, dim + 1)


class PackedLinear(nn.Module):
    """y = x wᵀ + bias for a matrix w [N, K] that `matrix` gives in f32."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)
        if "bias" not in tensors:
            self.bias = None

    def matrix(self) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.matrix().to(x.dtype), bias)


class GptqLinear(PackedLinear):
    """qweight int32 [K / 8, N], qzeros int32 [groups, N / 8], scales [groups, N], g_idx int32 [K];
    for 8 bits 4 to a word. A stored zero point is one too small, but not in format "gptq_v2"."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], bits: int, missing: int) -> None:
        super().__init__(tensors)
        self.bits, self.missing = bits, missing

    def matrix(self) -> torch.Tensor:
        groups = self.get_buffer("g_idx").long()
        zeros = unpacked(self.get_buffer("qzeros"), self.bits, 1) + self.missing
        codes = unpacked(self.get_buffer("qweight"), self.bits, 0) - zeros[groups]
        return (codes.float() * self.get_buffer("scales").float()[groups]).T


class AwqLinear(PackedLinear):
    """qweight int32 [K, N / 8], qzeros int32 [groups, N / 8], scales [groups, N]; the columns of a
    word in AWQ_ORDER."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__(tensors)
        places = torch.tensor([AWQ_ORDER.index(i) for i in range(8)])
        self.register_buffer("places", places, persistent=False)

    def matrix(self) -> torch.Tensor:
        codes, zeros = (
            unpacked(t, 4, 1).unflatten(1, (-1, 8))[:, :, self.get_buffer("places")].flatten(1)
            for t in map(self.get_buffer, ("qweight", "qzeros"))
        )
        group = codes.shape[0] // zeros.shape[0]
        spread = (t.repeat_interleave(group, 0) for t in (zeros, self.get_buffer("scales").float()))
        zeros, scales = spread
        return ((codes - zeros).float() * scales).T


class CompressedLinear(PackedLinear):
    """compressed-tensors: weight_packed int32 [N, K / 8], "pack-quantized", of integers + 8; or
    weight int8 [N, K], "int-quantized". weight_scale [N, groups], symmetric."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], bits: int) -> None:
        super().__init__(tensors)
        self.bits = bits

    def matrix(self) -> torch.Tensor:
        if "weight" in self._buffers:
            integers = self.get_buffer("weight")
        else:
            integers = unpacked(self.get_buffer("weight_packed"), self.bits, 1) - 2 ** (
                self.bits - 1
            )
        scales = self.get_buffer("weight_scale").float()
        groups = integers.unflatten(1, (scales.shape[1], -1)).float()
        return (groups * scales[..., None]).flatten(1)


def with_packed_linears(
    model: nn.Module, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any]
) -> nn.Module:
    """The model with its linear layers taken from a checkpoint that packs them.

    tensors  the checkpoint's tensors by name; those of other layers are loaded as they are
    config   "quantization_config" of its config.json
    Raises ValueError for methods and layouts that are not known here.
    """
    rest = dict(tensors)
    for name, module in list(model.named_modules()):
        own = {k.removeprefix(name + "."): v for k, v in tensors.items() if _is_of(k, name)}
        if not isinstance(module, nn.Linear) or not own.keys() - {"bias", "weight"}:
            continue
        own.pop("weight_shape", None)
        model.set_submodule(name, _layer(name, own, config))
        rest = {k: v for k, v in rest.items() if not _is_of(k, name)}
    model.load_state_dict(rest, strict=False)
    return model.eval()


def _is_of(key: str, module: str) -> bool:
    return key.rpartition(".")[0] == module


def _layer(name: str, tensors: dict[str, torch.Tensor], config: Mapping[str, Any]) -> PackedLinear:
    method = config.get("quant_method")
    if method == "gptq" and config["bits"] in (4, 8):
        missing = 0 if config.get("checkpoint_format") == "gptq_v2" else 1
        return GptqLinear(tensors, config["bits"], missing)
    if method == "awq" and config["bits"] == 4 and config.get("version", "gemm") == "gemm":
        return AwqLinear(tensors)
    if method == "compressed-tensors" and "weight_zero_point" not in tensors:
        (group, *others) = config["config_groups"].values()
        bits = group["weights"]["num_bits"]
        if not others and ("weight" in tensors or bits in (4, 8)):
            return CompressedLinear(tensors, bits)
    raise ValueError(f"{name}: expected gptq, awq or compressed-tensors integers, found {config}")
