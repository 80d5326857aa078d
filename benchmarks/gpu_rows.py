"""The rows of `python -m benchmarks gpu`: what is measured, against whom, and the goal.

Shares of bandwidth count the bytes that must move, weights once, and compare with copying large
tensors in the same run; shares of arithmetic compare with cuBLAS at 8192³ in the same run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import infopt
from benchmarks.gpu_lab import Lab
from infopt.codegen.gpu_tuning.clock import Arm
from infopt.models.encoder import BERT_BASE, Encoder, EncoderConfig
from infopt.models.vision import VIT_BASE, VisionConfig, VisionTransformer

LINEARS_8B = {"qkv": (6144, 4096), "o": (4096, 4096), "up": (14336, 4096), "down": (4096, 14336)}
GOAL_BANDWIDTH = {"bf16": 0.85, "int8": 0.80, "int4-g32": 0.70}


@dataclass
class Row:
    """One measurement. own: infopt's arm; goal: the least `score` to reach; score: of what, see
    `of`; needs: about the seconds it takes."""

    name: str
    needs: float
    goal: float
    of: str
    run: Callable[[Lab], dict[str, Any]]


def compiled(lab: Lab, module: nn.Module, args: tuple, **options: Any) -> Callable[..., Any]:
    """infopt's program of a module for this device, to be called with flat inputs."""
    options = {"target": lab.target, "device": lab.device, "tune": lab.tune} | options
    made = infopt.compile(module, args, **options)
    if not isinstance(made, infopt.Compiled):
        raise RuntimeError(f"not compiled: {made.report.declined}")
    lab.schedules |= {what: str(choice) for what, choice in made.report.schedules.items()}
    return made


def linear(
    lab: Lab, m: int, n: int, k: int, dtype: torch.dtype, bits: float = 16, **options: Any
) -> tuple:
    """(copies, infopt's arm, cuBLAS's arm) of one linear layer with rotating weights, which take
    so many bits each: enough copies that also the smallest find the cache cold."""
    copies = lab.copies(int(n * k * bits / 8) + (m * k + m * n) * dtype.itemsize)
    xs = [torch.randn(m, k, dtype=dtype, device=lab.where) for _ in range(copies)]
    layers = []
    for _ in range(copies):
        layer = nn.Linear(k, n, bias=False, dtype=dtype, device=lab.where).eval()
        layers.append(layer.requires_grad_(False))
    programs = [compiled(lab, layer, (xs[0],), **options) for layer in layers]
    own: Arm = lambda i: programs[i](xs[i])  # noqa: E731
    return copies, own, lambda i: layers[i](xs[i])


def gemm(size: int) -> Row:
    def run(lab: Lab) -> dict[str, Any]:
        n = 64 if lab.tiny else size
        copies, own, cublas = linear(lab, n, n, n, torch.bfloat16)
        arms = lab.measure({"infopt": own, "cublas": cublas}, copies)
        if "median" in arms["cublas"]:
            lab.ceilings["flops"] = 2 * n**3 / arms["cublas"]["median"]
        return _against(arms, ("cublas",))

    return Row(f"gemm bf16 {size}^3", 15, 0.95, "cuBLAS's speed", run)


def copy_bandwidth() -> Row:
    def run(lab: Lab) -> dict[str, Any]:
        bytes = 1 << 16 if lab.tiny else 1 << 30
        a = torch.ones(bytes, dtype=torch.uint8, device=lab.where)
        b = torch.empty_like(a)
        arms = lab.measure({"copy": lambda i: b.copy_(a)}, 2)
        lab.ceilings["bytes"] = 2 * bytes / arms["copy"]["median"]
        share = lab.ceilings["bytes"] / (lab.target.bandwidth * 1e9)
        return {"arms": arms, "score": share, "bytes_per_second": lab.ceilings["bytes"]}

    return Row("copy bandwidth", 3, 0.0, "the datasheet's", run)


def decode_linear(name: str, form: str) -> Row:
    def run(lab: Lab) -> dict[str, Any]:
        n, k = (64, 64) if lab.tiny else LINEARS_8B[name]
        options = {} if form == "bf16" else {"weights": form}
        bits = {"bf16": 16, "int8": 8 + 16 / k, "int4-g32": 4 + 32 / 32}[form]
        copies, own, cublas = linear(lab, 1, n, k, torch.bfloat16, bits, **options)
        arms = lab.measure({"infopt": own, "cublas bf16": cublas}, copies)
        moved = n * k * bits / 8 + 2 * (n + k)
        return {"arms": arms} | _share(lab, arms, moved)

    return Row(f"decode linear {name} {form}", 8, GOAL_BANDWIDTH[form], "copy bandwidth", run)


def attention() -> Row:
    def run(lab: Lab) -> dict[str, Any]:
        batch, heads, tokens, width = (1, 2, 64, 32) if lab.tiny else (1, 16, 8192, 128)
        shape = (batch, heads, tokens, width)
        q, k, v = (torch.randn(shape, dtype=torch.bfloat16, device=lab.where) for _ in range(3))

        class Causal(nn.Module):
            def forward(self, q: Any, k: Any, v: Any) -> Any:
                return F.scaled_dot_product_attention(q, k, v, is_causal=True)

        program = compiled(lab, Causal().eval(), (q, k, v))
        arms: dict[str, Arm] = {"infopt": lambda i: program(q, k, v)}
        for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
            arms[f"sdpa {backend.name}"] = _sdpa(backend, q, k, v)
        found = lab.measure(arms, 2)
        flops = 2 * batch * heads * tokens * tokens * width  # half of the square, two products
        scored = _against(found, tuple(n for n in found if n.startswith("sdpa")))
        if "flops" in lab.ceilings and "median" in found["infopt"]:
            scored["of_cublas"] = flops / found["infopt"]["median"] / lab.ceilings["flops"]
        return scored

    return Row("causal prefill attention D=128 S=8k", 15, 1.0, "torch's best SDPA", run)


def _sdpa(backend: SDPBackend, q: Any, k: Any, v: Any) -> Arm:
    def arm(i: int) -> Any:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    return arm


def model(name: str, batch: int, make: Callable[[bool], tuple[nn.Module, tuple]]) -> Row:
    """A whole model in bf16: eager, Inductor as it is and tuned, infopt; all in graphs."""

    def run(lab: Lab) -> dict[str, Any]:
        module, args = make(lab.tiny)
        module = module.to(lab.where, torch.bfloat16).eval().requires_grad_(False)
        args = tuple(
            a.to(lab.where, torch.bfloat16 if a.is_floating_point() else None) for a in args
        )
        program = compiled(lab, module, args)
        arms: dict[str, Arm] = {
            "infopt": lambda i: program(*args),
            "eager": lambda i: module(*args),
        }
        if not lab.tiny:
            torch._dynamo.reset()
            inductor = torch.compile(module)
            tuned = torch.compile(module, mode="max-autotune-no-cudagraphs")  # we capture it
            arms["inductor"] = lambda i: inductor(*args)
            arms["inductor max-autotune"] = lambda i: tuned(*args)
        with torch.no_grad():
            found = lab.measure(arms, 2)
            error = _distance(program(*args), module(*args))
        others = tuple(n for n in found if n.startswith("inductor")) or ("eager",)
        return _against(found, others) | {"error": error, "launches": _launches(program)}

    return Row(f"{name} batch {batch} bf16", 90, 1.2, "Inductor max-autotune", run)


def bert(batch: int) -> Callable[[bool], tuple[nn.Module, tuple]]:
    def make(tiny: bool) -> tuple[nn.Module, tuple]:
        small = EncoderConfig(50, 32, 1, 2, 64, 32)
        config = small if tiny else BERT_BASE
        return Encoder(config), (torch.randint(0, 50, (1 if tiny else batch, 8 if tiny else 128)),)

    return make


def vit(batch: int) -> Callable[[bool], tuple[nn.Module, tuple]]:
    def make(tiny: bool) -> tuple[nn.Module, tuple]:
        small = VisionConfig(image=32, patch=16, width=32, layers=1, heads=2, hidden=64, classes=8)
        config = small if tiny else VIT_BASE
        images = torch.randn(1 if tiny else batch, 3, config.image, config.image)
        return VisionTransformer(config), (images,)

    return make


def rows() -> Iterator[Row]:
    """In the order in which they are worth their time."""
    yield copy_bandwidth()
    yield gemm(8192)
    yield gemm(4096)
    for form in GOAL_BANDWIDTH:
        for name in LINEARS_8B:
            yield decode_linear(name, form)
    yield attention()
    for batch in (1, 32):
        yield model("BERT-base", batch, bert(batch))
        yield model("ViT-base", batch, vit(batch))


def measure(lab: Lab, row: Row) -> dict[str, Any]:
    """The row's result: arms, score and whether it reaches its goal; or why there is none."""
    start = time.perf_counter()
    about = {"row": row.name, "goal": row.goal, "of": row.of}
    if row.needs > lab.left:
        return about | {"failure": f"left out: {lab.left:.0f} s are left, it needs {row.needs:.0f}"}
    try:
        found = row.run(lab)
    except Exception as error:
        found = {"failure": f"{type(error).__name__}: {error}"[:300]}
    found["schedules"], lab.schedules = lab.schedules, {}
    if "score" in found:
        found["reached"] = found["score"] >= row.goal
    return about | found | {"seconds": time.perf_counter() - start}


def _against(arms: dict[str, Any], others: tuple[str, ...]) -> dict[str, Any]:
    """How often infopt's time goes into the best of the others'."""
    if "failure" in arms["infopt"]:
        return {"arms": arms, "failure": arms["infopt"]["failure"]}
    times = [arms[n]["median"] for n in others if "median" in arms[n]]
    if not times:
        return {"arms": arms, "failure": f"none of {', '.join(others)} runs here"}
    return {"arms": arms, "score": min(times) / arms["infopt"]["median"]}


def _share(lab: Lab, arms: dict[str, Any], moved: float) -> dict[str, Any]:
    if "failure" in arms["infopt"]:
        return {"failure": arms["infopt"]["failure"]}
    return {"score": moved / arms["infopt"]["median"] / lab.ceilings["bytes"]}


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative RMS difference."""
    a, b = found.float(), expected.float()
    return float((a - b).square().mean().sqrt() / b.square().mean().sqrt())


def _launches(program: Any) -> dict[str, int]:
    return {"kernels": program.report.native_nodes, "torch": program.report.aten_nodes}
