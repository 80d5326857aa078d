"""GPU kernels, one file per family of ops; importing this package registers them all."""

from infopt.codegen.gpu import (
    attention,
    embedding,
    grouped_linear,
    kv_cache,
    linear,
    norm,
    quantized_embedding,
    quantized_linear,
    reduce,
    rotary,
    softmax,
)

__all__ = [
    "attention",
    "embedding",
    "grouped_linear",
    "kv_cache",
    "linear",
    "norm",
    "quantized_embedding",
    "quantized_linear",
    "reduce",
    "rotary",
    "softmax",
]
