"""`infopt demo`: a real sentence encoder, compiled, searched with, compared, saved and loaded."""

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from safetensors.torch import save_file
from torch import Tensor

from infopt.codegen import build
from infopt.compiler.commands.demo_arm import Arm, run_artifact
from infopt.compiler.commands.output import (
    bytes_text,
    milliseconds,
    print_json,
    print_table,
    print_text,
    progress,
)
from infopt.compiler.commands.timing import Timing
from infopt.compiler.target import Target
from infopt.models.minilm import tokenize
from infopt.models.sentences import QUERIES, SENTENCES

SIZES = ("one", "batch")  # what is timed
BATCH = 16
SHOWN = 3  # nearest sentences per query
TURN = 0.05  # seconds an arm runs before the next one has its turn
LEAST_COSINE = {None: 0.99999, "bf16": 0.999}  # to fp32 eager, of every embedding


def run(args: argparse.Namespace) -> int:
    """1 where an embedding is far from fp32 eager, or the artifact does not give the same."""
    names = ["eager", "infopt"] if args.no_inductor else ["eager", "torch.compile", "infopt"]
    with tempfile.TemporaryDirectory(prefix="infopt-demo-") as work, ExitStack() as stack:
        folder = Path(work)
        inputs = _write_inputs(folder)
        arms = {n: stack.enter_context(Arm(n, inputs, args.compute, folder)) for n in names}
        with progress() as bar:
            measured = _measure(arms, args.seconds, bar)
        embeddings = {name: arm.embeddings("all") for name, arm in arms.items()}
        exact = embeddings["eager"]
        if args.compute is not None:
            with Arm("eager", inputs, None, folder) as arm:
                exact = arm.embeddings("all")
        artifact = Path(args.output) if args.output else folder / "minilm"
        arms["infopt"].ask("save", path=str(artifact))
        loaded, took = run_artifact(artifact, inputs, folder)
        report = arms["infopt"].ask("report")
        files = [artifact] if artifact.is_file() else [*artifact.rglob("*")]
        size = sum(file.stat().st_size for file in files if file.is_file())
    for name, found in embeddings.items():
        measured[name]["accuracy"] = _accuracy(exact, found)
    difference = (loaded - embeddings["infopt"]).abs().max().item()
    result = {
        "sentences": len(SENTENCES),
        "compute": args.compute or "fp32",
        "threads": torch.get_num_threads(),
        "neighbours": _neighbours(embeddings["infopt"]),
        "arms": measured,
        "artifact": {**took, "bytes": size, "largest_difference": difference},
        "native_share": report["native_share"],
        "rebuilt": not build.is_installed(build.executor_library())
        or not build.is_installed(build.prebuilt(Target.detect().level)),
    }
    failures = _failures(result, args.compute)
    if args.json:
        print_json({**result, "failures": failures})
    else:
        _show(result, failures, args.output)
    return 1 if failures else 0


def _write_inputs(folder: Path) -> Path:
    file = folder / "inputs.safetensors"
    sizes = {
        "one": tokenize(SENTENCES[:1]),
        "batch": tokenize(SENTENCES[:BATCH]),
        "all": tokenize([*QUERIES, *SENTENCES]),
    }
    tensors = {f"{size}.ids": batch.ids for size, batch in sizes.items()}
    tensors |= {f"{size}.mask": batch.mask for size, batch in sizes.items()}
    save_file(tensors, file)
    return file


def _measure(arms: dict[str, Arm], seconds: float, bar: Progress) -> dict[str, dict[str, Any]]:
    """First calls, then the arms in turn, size by size; then the memory each arm needed."""
    result: dict[str, dict[str, Any]] = {name: {} for name in arms}
    task = bar.add_task("first calls", total=len(arms) * len(SIZES) * 2)
    for name, arm in arms.items():
        bar.update(task, description=f"first calls: {name}")
        for size in SIZES:
            result[name][f"first_call_{size}"] = arm.ask("first", size=size)
            bar.advance(task)
    for size in SIZES:
        bar.update(task, description=f"timing, {size}")
        timings = _in_turn(arms, size, seconds, lambda: bar.advance(task, 1 / _turns(seconds)))
        for name, timing in timings.items():
            result[name][f"time_{size}"] = timing.to_json()
    for name, arm in arms.items():
        result[name]["peak_memory"] = arm.ask("memory")
    return result


def _turns(seconds: float) -> int:
    return max(5, round(seconds / TURN))


def _in_turn(arms: dict[str, Arm], size: str, seconds: float, advance: Any) -> dict[str, Timing]:
    taken: dict[str, list[float]] = {name: [] for name in arms}
    calls = {}
    for name, arm in arms.items():
        calls[name] = max(1, round(TURN / min(arm.ask("turn", size=size, calls=3))))
    for _ in range(_turns(seconds)):
        for name, arm in arms.items():
            taken[name] += arm.ask("turn", size=size, calls=calls[name])
            advance()
    return {name: Timing.of(values) for name, values in taken.items()}


def _accuracy(exact: Tensor, found: Tensor) -> dict[str, float]:
    cosine = torch.nn.functional.cosine_similarity(exact.double(), found.double())
    return {
        "largest_difference": (exact - found).abs().max().item(),
        "least_cosine": cosine.min().item(),
    }


def _neighbours(embeddings: Tensor) -> list[dict[str, Any]]:
    queries, sentences = embeddings[: len(QUERIES)], embeddings[len(QUERIES) :]
    best = (queries @ sentences.T).topk(SHOWN)
    return [
        {
            "query": query,
            "nearest": [
                {"sentence": SENTENCES[int(column)], "cosine": score.item()}
                for score, column in zip(scores, columns)
            ],
        }
        for query, scores, columns in zip(QUERIES, best.values, best.indices)
    ]


def _failures(result: dict[str, Any], compute: str | None) -> list[str]:
    failures = []
    found, least = result["arms"]["infopt"]["accuracy"]["least_cosine"], LEAST_COSINE[compute]
    if not found >= least:
        failures.append(f"embeddings: least cosine to fp32 eager {found:.6f}, expected {least}")
    if not (difference := result["artifact"]["largest_difference"]) <= 1e-6:
        failures.append(f"the loaded artifact differs from the program by {difference:.2g}")
    if result["artifact"]["compiler_imported"]:
        failures.append("loading the artifact imported infopt.compiler")
    return failures


def _show(result: dict[str, Any], failures: list[str], output: str | None) -> None:
    print_text(f"The nearest of {result['sentences']} sentences, with their cosine:\n")
    for entry in result["neighbours"]:
        print_text(entry["query"])
        for near in entry["nearest"]:
            print_text(f"   {near['cosine']:.2f}  {near['sentence']}")
    print_text("")
    title = f"{result['compute']}, {result['threads']} threads, arms in turn: median (fastest)"
    columns = ("", "first calls s", "1 sentence ms", f"{BATCH} ms", "peak MiB", "error")
    print_table(columns, [_row(name, arm) for name, arm in result["arms"].items()], title)
    print_text("first calls: of both sizes, with empty caches; error: largest, to fp32 eager")
    if result["rebuilt"]:
        print_text("infopt's include building its libraries: they are older than their sources")
    artifact = result["artifact"]
    print_text(
        f"\nartifact: {bytes_text(artifact['bytes'])}, loaded in a fresh process in "
        f"{milliseconds(artifact['load'])}, largest difference to the program "
        f"{artifact['largest_difference']:.1g}"
        + (f", kept in {output}" if output else "")
        + f"\nran natively: {result['native_share']:.0%} of the operations"
    )
    for failure in failures:
        print_text(f"FAILED: {failure}")


def _row(name: str, arm: dict[str, Any]) -> list[str]:
    times = [arm[f"time_{size}"] for size in SIZES]
    return [
        name,
        " + ".join(f"{arm[f'first_call_{size}']:.2f}" for size in SIZES),
        *(f"{t['median'] * 1e3:.2f} ({t['fastest'] * 1e3:.2f})" for t in times),
        f"{arm['peak_memory'] / 2**20:.0f}",
        f"{arm['accuracy']['largest_difference']:.1e}",
    ]
