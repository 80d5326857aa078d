"""GPU kernels, one file per family of ops; importing this package registers them all."""

from infopt.codegen.gpu import linear, norm, softmax

__all__ = ["linear", "norm", "softmax"]
