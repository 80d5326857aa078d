"""The child of the encoder, first-call and memory benchmarks: one arm on one workload."""

from __future__ import annotations

import resource
import time
import warnings
from typing import Any

import torch

from benchmarks.arm import Call
from benchmarks.arms import arm
from benchmarks.process import serve
from benchmarks.workloads import workloads
from infopt.models.agreement import relative_error

_call: list[Call] = []


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """prepare: build, compile and call once; run: n timed calls; memory: peak so far; save and
    load: the same by way of an artifact.
    """
    known = (reference, prepare, run, memory, save, load)
    with torch.no_grad():
        return {f.__name__: f for f in known}[question.pop("do")](**question)


def reference(workload: str, path: str) -> dict[str, Any]:
    """Write what float32 eager gives."""
    chosen = workloads()[workload]
    torch.save(chosen.build()(*chosen.inputs()), path)
    return {}


def prepare(
    workload: str, name: str, dtype: str, threads: int, reference: str | None = None
) -> dict[str, Any]:
    """Seconds from the module to the first result, and its error against stored float32."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(threads)
    chosen, way = workloads()[workload], arm(name, dtype)
    model, inputs = chosen.build(), chosen.inputs()
    started = time.perf_counter()
    call = way.prepare(model, inputs)
    result = call()
    first = time.perf_counter() - started
    _call.append(call)
    error = None if reference is None else relative_error(torch.load(reference), result.float())
    return {"first": first, "error": error}


def run(count: int) -> dict[str, Any]:
    """Seconds of `count` calls after one that only warms the caches the other arms used."""
    call = _call[0]
    call()
    seconds = []
    for _ in range(count):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return {"seconds": seconds}


def save(workload: str, dtype: str, path: str) -> dict[str, Any]:
    """Write an artifact; bf16 is that of the float32 model, by permission."""
    import infopt

    chosen = workloads()[workload]
    compute = None if dtype == "fp32" else dtype
    infopt.compile(chosen.build(), chosen.inputs(), compute=compute).save(path)
    return {}


def load(workload: str, path: str, threads: int) -> dict[str, Any]:
    """Seconds until an artifact is loaded and has been called once."""
    import infopt

    torch.set_num_threads(threads)
    inputs = workloads()[workload].inputs()
    started = time.perf_counter()
    program = infopt.load(path)
    program(*inputs)
    _call.append(lambda: program(*inputs))
    return {"first": time.perf_counter() - started}


def memory() -> dict[str, Any]:
    """Peak resident bytes of this process."""
    return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


if __name__ == "__main__":
    serve(answer)
