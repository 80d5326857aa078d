"""`python -m benchmarks gpu_compile`: a cold compile of an 8B-shaped decoder, without a GPU.

Weights are memory that nobody reads. Each arm is a process with an empty cache of Triton's: kernels
compiled one by one, in threads as every compile does, or in worker processes as the tuner does; and
all candidates of the tuner in worker processes, which is what tuning compiles.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time

import torch

import infopt
from infopt.codegen.gpu_tuning.candidates import candidates
from infopt.codegen.gpu_tuning.workers import workers
from infopt.codegen.kernel import find_emitter
from infopt.codegen.launches import KernelText
from infopt.codegen.load_gpu import compiled_kernels, lower_for_gpu
from infopt.codegen.triton_compile import compile_launch
from infopt.compiler.target import Target
from infopt.models.decoder import Decoder, DecoderConfig

SHAPE_8B = DecoderConfig(width=4096, layers=32, hidden=14336, tied=False)
TOKENS = 512
ARMS = ("one by one", "threads", "workers", "candidates")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu_compile", description=__doc__)
    parser.add_argument("--target", default="cuda:sm90")
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=ARMS)
    parser.add_argument("--one", choices=ARMS, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.one:
        print(arm(given.one, given.target))
        return 0
    for name in given.arms:
        command = [sys.executable, "-m", "benchmarks", "gpu_compile", "--target", given.target]
        with tempfile.TemporaryDirectory() as folder:
            fresh = {**os.environ, "TRITON_CACHE_DIR": folder, "INFOPT_CACHE": folder}
            subprocess.run([*command, "--one", name], check=True, env=fresh)
    return 0


def arm(name: str, target: str) -> str:
    """One line of results: seconds from the module to a plan, and of its kernels' code."""
    begin = time.perf_counter()
    with torch.device("meta"):
        module = Decoder(SHAPE_8B).to(torch.bfloat16)
    module = module.to_empty(device="cpu").eval().requires_grad_(False)
    ids = torch.zeros(1, TOKENS, dtype=torch.int64)
    compiled = infopt.compile(module, (ids,), target=target, tune=0)
    assert isinstance(compiled, infopt.Compiled), compiled.report.declined
    traced = time.perf_counter() - begin
    gpu, graph = Target.parse(target), compiled.graph
    lowered = lower_for_gpu(graph, gpu)
    texts = list(lowered.kernels)
    if name == "candidates":
        texts = texts_of_candidates(graph, gpu)
    begin = time.perf_counter()
    if name == "one by one":
        for text in texts:
            compile_launch(text.launch, lowered.level, text.unaligned)
    elif name == "threads":
        compiled_kernels(lowered)
    else:
        workers().compiled(texts, lowered.level)
    seconds = time.perf_counter() - begin
    return f"{name}: {traced:.1f} s to a plan, {len(texts)} kernels in {seconds:.1f} s"


def texts_of_candidates(graph: infopt.Graph, gpu: Target) -> list[KernelText]:
    """The kernels of all schedules that tuning would try, each once."""
    texts: dict[str, KernelText] = {}
    seen = set()
    for node in graph.nodes():
        emitter, _ = find_emitter(node, gpu)
        key = (node.op.name, str([str(n.type) for n in node.inputs]), node.attrs)
        if emitter is None or key in seen:
            continue
        seen.add(key)
        found = candidates(node, emitter, gpu, graph.dims)
        for candidate in found.kept:
            made = lower_for_gpu(found.graph, gpu, lambda n, e, s=candidate.schedule: s)
            texts |= {text.name: text for text in made.kernels}
    return list(texts.values())
