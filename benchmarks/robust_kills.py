"""SIGKILL at random moments: of compiles into one cache, of whole models, of saving an artifact.

After every kill, readers must get the right answer, without an error and without a warning.
"""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import tempfile
import time
import warnings
from collections import Counter
from functools import partial
from pathlib import Path

import torch

import infopt
from benchmarks.forking import kill_after, outcome, start
from benchmarks.robust_subject import fresh_cache, subject
from infopt.codegen.build import build_all
from infopt.codegen.cache import CacheWarning

WRITERS, READERS = 3, 2
VISIBLE = 'extern "C" __attribute__((visibility("default")))'


def cache_kills(rounds: int, generator: random.Random) -> Counter[str]:
    """Several writers of the same three files, killed; what the readers found."""
    found: Counter[str] = Counter()
    longest = 0.0
    for number in range(rounds):
        with fresh_cache():
            texts = [_text(3 * number + i) for i in range(3)]
            work = partial(_build, texts, number)
            if number % 50 == 0:  # how long an undisturbed writer takes
                begin = time.monotonic()
                outcome(start(work))
                longest = time.monotonic() - begin
                shutil.rmtree(os.environ["INFOPT_CACHE"], ignore_errors=True)
            moments = sorted(generator.uniform(0, 1.2 * longest) for _ in range(WRITERS))
            writers, begin = [start(work) for _ in range(WRITERS)], time.monotonic()
            for pid, moment in zip(writers, moments):
                left = begin + moment - time.monotonic()
                found["writer " + kill_after(pid, max(0.0, left))] += 1
            for pid in [start(work) for _ in range(READERS)]:
                found["reader " + outcome(pid)] += 1
    return found


def _text(number: int) -> tuple[str, str, str]:
    return f"{VISIBLE} int answer() {{ return {number}; }}\n", "scalar", "answer"


def _build(texts: list[tuple[str, str, str]], number: int) -> bool:
    warnings.simplefilter("error")
    files = build_all(texts)
    return [ctypes.CDLL(str(f)).answer() for f in files] == [3 * number + i for i in range(3)]


def model_kills(rounds: int, generator: random.Random) -> Counter[str]:
    """torch.compile of a model killed; then the same model in a new process, against eager."""
    found: Counter[str] = Counter()
    for number in range(rounds):
        with fresh_cache(), torch.no_grad():
            model, x = subject(number, 1 + number / 1000), torch.randn(40, 32)
            expected = model(x)
            work = partial(_compile, model, x, expected)
            found["writer " + kill_after(start(work), generator.uniform(0, 1.5))] += 1
            found["reader " + outcome(start(work))] += 1
    return found


def _compile(model: torch.nn.Module, x: torch.Tensor, expected: torch.Tensor) -> bool:
    warnings.simplefilter("error", CacheWarning)
    compiled = torch.compile(model, backend="infopt", options={"strict": True})
    return torch.allclose(compiled(x), expected, rtol=1e-4, atol=1e-4)


def save_kills(rounds: int, generator: random.Random) -> Counter[str]:
    """Saving over an artifact, and to a new path, killed: whole or not there, never half."""
    found: Counter[str] = Counter()
    folder = Path(tempfile.mkdtemp(prefix="robustness-"))
    try:
        x = torch.randn(40, 32)
        programs = [infopt.compile(subject(0, salt), (x,)) for salt in (1.0, 2.0)]
        answers = [program(x).numpy().tobytes() for program in programs]
        there, new = folder / "there", folder / "new"
        programs[0].save(there)
        begin = time.monotonic()
        programs[1].save(there, overwrite=True)
        longest = time.monotonic() - begin
        for number in range(rounds):
            shutil.rmtree(new, ignore_errors=True)
            saver = start(partial(_save, programs[number % 2], there, new))
            found["writer " + kill_after(saver, generator.uniform(0, 2.4 * longest))] += 1
            found["reader " + outcome(start(partial(_loads, there, x, answers)))] += 1
            if new.exists():
                found["reader " + outcome(start(partial(_loads, new, x, answers)))] += 1
            else:
                found["new path empty"] += 1
            for half in folder.glob(".*"):
                shutil.rmtree(half, ignore_errors=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return found


def _save(program: infopt.Compiled, there: Path, new: Path) -> bool:
    program.save(there, overwrite=True)
    program.save(new)
    return True


def _loads(path: Path, x: torch.Tensor, answers: list[bytes]) -> bool:
    return infopt.load(path)(x).numpy().tobytes() in answers
