"""The parent's side of a demo worker: start it, ask it, end it."""

import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

import infopt

# Runs on a machine that has only infopt.runtime, torch and safetensors.
RUN_ARTIFACT = """
import json, sys, time
from safetensors.torch import load_file, save_file
import torch
import infopt
start = time.perf_counter()
program = infopt.load(sys.argv[1])
loaded = time.perf_counter()
inputs = load_file(sys.argv[2])
result = program(inputs["all.ids"], inputs["all.mask"])
called = time.perf_counter()
save_file({"embeddings": result.float().contiguous()}, sys.argv[3])
print(json.dumps({"load": loaded - start, "first_call": called - loaded,
                  "compiler_imported": "infopt.compiler" in sys.modules}))
"""


def child_environment() -> dict[str, str]:
    """What makes a child import this very infopt, also in a folder where another one lies."""
    paths = [str(Path(infopt.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    joined = os.pathsep.join(path for path in paths if path)
    return {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": joined}


class ArmFailed(RuntimeError):
    """A worker process reported an error or ended."""


class Arm:
    """One worker process with empty caches of its own in `folder`."""

    def __init__(self, name: str, inputs: Path, compute: str | None, folder: Path) -> None:
        self.name, self.folder = name, folder
        caches = Path(tempfile.mkdtemp(prefix="caches-", dir=folder))
        environment = {
            **child_environment(),
            "INFOPT_CACHE": str(caches / "infopt"),
            "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        }
        self._log = (folder / f"{name}.log").open("w+")
        command = [sys.executable, "-m", "infopt.compiler.commands.demo_worker", name, str(inputs)]
        self._process = subprocess.Popen(
            command + ([compute] if compute else []),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )

    def ask(self, do: str, **arguments: Any) -> Any:
        """The worker's answer; raises ArmFailed with its message."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._log.seek(0)
            last = self._log.read().strip().splitlines()[-1:] or ["without a message"]
            raise ArmFailed(f"{self.name}: the process ended: {last[0]}")
        answer = json.loads(line)
        if "error" in answer:
            raise ArmFailed(f"{self.name}: {answer['error']}")
        return answer["value"]

    def embeddings(self, size: str) -> Tensor:
        """What this arm computes for a size."""
        file = self.folder / f"{self.name}.{size}.safetensors"
        self.ask("embed", size=size, path=str(file))
        return load_file(file)["embeddings"]

    def __enter__(self) -> "Arm":
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()  # the worker's loop ends
        if error is not None:
            self._process.terminate()
        self._process.wait()
        self._log.close()


def run_artifact(artifact: Path, inputs: Path, folder: Path) -> tuple[Tensor, dict[str, Any]]:
    """Load and call an artifact in a fresh process: its embeddings, and what it took."""
    result = folder / "artifact.safetensors"
    command = [sys.executable, "-c", RUN_ARTIFACT, str(artifact), str(inputs), str(result)]
    done = subprocess.run(command, capture_output=True, text=True, env=child_environment())
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["without a message"]
        raise ArmFailed(f"the fresh process that loads {artifact} failed: {last[0]}")
    return load_file(result)["embeddings"], json.loads(done.stdout)
