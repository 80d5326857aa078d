"""Kernel declarations, one file per family of ops; importing this package registers them all."""

from infopt.codegen.kernels import (
    attention,
    embedding,
    layer_norm,
    linear,
    matmul,
    narrow_linear,
    rms_norm,
    rotary,
    softmax,
)

__all__ = [
    "attention",
    "embedding",
    "layer_norm",
    "linear",
    "matmul",
    "narrow_linear",
    "rms_norm",
    "rotary",
    "softmax",
]
