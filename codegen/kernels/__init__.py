"""Kernel declarations, one file per family of ops; importing this package registers them all."""

from infopt.codegen.kernels import (
    attention,
    conv,
    embedding,
    gather,
    layer_norm,
    linear,
    matmul,
    narrow_linear,
    pool,
    quantized_linear,
    ragged,
    reduce,
    rms_norm,
    rotary,
    scan,
    softmax,
)

__all__ = [
    "attention",
    "conv",
    "embedding",
    "gather",
    "layer_norm",
    "linear",
    "matmul",
    "narrow_linear",
    "pool",
    "quantized_linear",
    "ragged",
    "reduce",
    "rms_norm",
    "rotary",
    "scan",
    "softmax",
]
