"""One arm of the demo in a process of its own, so that its memory and first call are its own.

Started as `python -m infopt.compiler.commands.demo_worker ARM INPUTS [bf16]`; reads one JSON
request per line and answers each with one JSON line.
"""

import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import infopt
from infopt.models.minilm import MAX_TOKENS, load_minilm

ARMS = ("eager", "torch.compile", "infopt")
Run = Callable[[Tensor, Tensor], Tensor]


class Worker:
    """Holds the model of one arm. `inputs`: per size name, the tensors `<size>.ids` and `.mask`."""

    def __init__(self, arm: str, inputs: str, compute: str | None) -> None:
        self.arm, self.compute = arm, compute
        self.tensors = load_file(inputs)
        self.model: Any = load_minilm()
        self.run: Run | None = None

    def first(self, size: str) -> float:
        """Seconds of the first call of a size, everything it compiles included."""
        start = time.perf_counter()
        self._call(size)
        return time.perf_counter() - start

    def turn(self, size: str, calls: int) -> list[float]:
        """Seconds of each of `calls` calls, after one that brings the caches back."""
        self._call(size)
        taken = []
        for _ in range(calls):
            start = time.perf_counter()
            self._call(size)
            taken.append(time.perf_counter() - start)
        return taken

    def embed(self, size: str, path: str) -> None:
        """Write the embeddings of a size."""
        save_file({"embeddings": self._call(size).float().contiguous()}, path)

    def save(self, path: str) -> float:
        """Write the artifact; the seconds it took."""
        start = time.perf_counter()
        self.model.save(path)
        return time.perf_counter() - start

    def memory(self) -> int:
        """Peak resident bytes of this process."""
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def report(self) -> Any:
        """What infopt did."""
        return self.model.report.to_json()

    def _call(self, size: str) -> Tensor:
        ids, mask = self.tensors[f"{size}.ids"], self.tensors[f"{size}.mask"]
        if self.run is None:
            self.run = self._compiled()
        with torch.no_grad():
            if self.compute and self.arm != "infopt":  # the same permission, torch's way
                with torch.autocast("cpu", torch.bfloat16):
                    return self.run(ids, mask)
            return self.run(ids, mask)

    def _compiled(self) -> Run:
        if self.arm == "eager":
            return self.model
        if self.arm == "torch.compile":
            return torch.compile(self.model)
        sizes = {
            0: torch.export.Dim("batch", min=1, max=4096),
            1: torch.export.Dim("length", min=1, max=MAX_TOKENS),
        }
        example = self.tensors["batch.ids"], self.tensors["batch.mask"]
        self.model = infopt.compile(
            self.model, example, dynamic_shapes=(sizes, sizes), compute=self.compute
        )
        return self.model


def main() -> None:
    """Answer requests {"do": method, ...arguments} until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever else prints must not mix with the answers
    worker = Worker(sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"value": getattr(worker, request.pop("do"))(**request)}
        except Exception as failure:
            lines = str(failure).splitlines() or ["no message"]
            answer = {"error": f"{type(failure).__name__}: {lines[0]}\n{traceback.format_exc()}"}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
