"""`python -m benchmarks low_rank`: thin factors and slices, what they save and what they cost.

Two tables. BERT-base's shape in bf16 with random weights of a quarter of the full rank: weights,
peak memory of activations and time of the dense model, of its factors in one kernel and one by one,
and of all in slices; quality says nothing there. The real MiniLM: factors chosen for calibration
sentences, with and without int8, against int8 alone, and budgets with and without ranks to choose
from, judged on other sentences.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

import infopt
from benchmarks.quantization import nearest
from benchmarks.report import wide_console, write_json
from infopt.models.agreement import relative_error
from infopt.models.encoder import BERT_BASE, Encoder
from infopt.models.minilm import load_minilm, tokenize
from infopt.models.sentences import SENTENCES
from infopt.runtime.measure import measure

SHARE = 0.25  # of the full rank
GOAL = 0.35  # of the memory without slices
ENERGIES = ("energy-0.995", "energy-0.99", "energy-0.95")
LIMIT = 0.02  # of budgets
BUDGETS: dict[str, dict[str, Any]] = {
    "formats": {"ranks": ()},
    "formats and ranks": {"ranks": "auto"},
    "all techniques": {"ranks": "auto", "techniques": "all"},
}
Way = tuple[str, dict[str, Any]]


@torch.no_grad()
def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks low_rank", description=__doc__)
    parser.add_argument("--json", help="also write the rows to this file")
    parser.add_argument("--layers", type=int, default=12, help="of BERT-base's shape")
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing, per table")
    parser.add_argument("--only", choices=("bert", "minilm", "budgets"))
    options = parser.parse_args(arguments)
    console, found = wide_console(), {}
    if options.only in (None, "bert"):
        found["bert"] = bert(options.layers, options.seconds)
        console.print(table(f"BERT-base shape, {options.layers} layers, 8x512", found["bert"]))
    if options.only != "bert":
        only = "budget" if options.only == "budgets" else ""
        found["minilm"] = minilm(options.seconds, only)
        console.print(table("MiniLM, judged on sentences that chose nothing", found["minilm"]))
    if options.json:
        write_json(options.json, found | {"layers": options.layers})
    return 0


def bert(layers: int, seconds: float) -> list[dict[str, Any]]:
    """The dense model, its factors, fused and one by one, and all in slices for at most GOAL of the
    memory."""
    torch.manual_seed(0)
    model = Encoder(replace(BERT_BASE, layers=layers)).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            n, k = module.weight.shape
            rank = round(SHARE * min(n, k))
            thin = torch.randn(n, rank) @ torch.randn(rank, k)
            module.weight.copy_(thin / (rank * k) ** 0.5)
    ids = torch.randint(0, BERT_BASE.vocabulary, (8, 512))
    args = (ids, torch.ones_like(ids))
    made: dict[str, Any] = {}
    given: dict[str, Any] = {"compute": "bf16"}
    factors = given | {"low_rank": SHARE}
    made["dense"] = infopt.compile(model, args, **given)
    made["factors, one by one"] = infopt.compile(model, args, passes=unfused(**factors))
    made["factors"] = infopt.compile(model, args, **factors)
    # of the memory of what is neither sliced nor fused
    limit = int(GOAL * made["dense"].report.memory["arena"])
    sliced = factors | {"max_activations": limit}
    made["factors, one by one, in slices"] = infopt.compile(model, args, passes=unfused(**sliced))
    made["factors in slices"] = infopt.compile(model, args, **sliced)
    made["dense in slices"] = infopt.compile(model, args, max_activations=limit, **given)
    expected = made["dense"](*args)
    times = measure({k: lambda c=c: c(*args) for k, c in made.items()}, seconds, rounds=15)
    return [
        figures(name, compiled) | {"seconds": times[name].min, "median": times[name].median}
        | {"error": relative_error(expected, compiled(*args))}
        for name, compiled in made.items()
    ]  # fmt: skip


def unfused(**given: Any) -> tuple[infopt.Pass, ...]:
    """The passes that leave two thin products two kernels, and attention apart from them."""
    return infopt.default_passes(remove=["fuse-low-rank", "fuse-low-rank-attention"], **given)


def minilm(seconds: float, only: str = "") -> list[dict[str, Any]]:
    """Formats and factors of the real model; only: ways whose names begin so."""
    model = load_minilm()
    chosen, calibrating = SENTENCES[::4][:48], SENTENCES[1::4][:48]
    samples, calibration = tokenize(chosen), tokenize(calibrating)
    held_out = tokenize([s for s in SENTENCES if s not in {*chosen, *calibrating}])
    expected = model(held_out.ids, held_out.mask)
    ids, mask = (torch.export.Dim(n, min=1, max=512) for n in ("sentences", "tokens"))
    shapes = ({0: ids, 1: mask}, {0: ids, 1: mask})
    made, rows = {}, []
    for name, given in _minilm_ways((calibration.ids, calibration.mask)):
        if not name.startswith(only):
            continue
        try:
            compiled = infopt.compile(
                model, (samples.ids, samples.mask), dynamic_shapes=shapes, **given
            )
        except infopt.ContractBroken as refused:
            rows.append({"name": name, "refused": str(refused)})
            continue
        made[name] = compiled
        found = compiled(held_out.ids, held_out.mask)
        rows.append(figures(name, compiled) | _quality(expected, found))
    args = (samples.ids, samples.mask)
    times = measure({k: lambda c=c: c(*args) for k, c in made.items()}, seconds, rounds=15)
    for row in rows:
        if row["name"] in times:
            timing = times[row["name"]]
            row |= {"seconds": timing.min, "median": timing.median}
    return rows


def _minilm_ways(seen: tuple[Tensor, Tensor]) -> Iterator[Way]:
    calibrated = {"calibration": [seen]}
    int8 = {"weights": "int8"}
    yield "fp32", {}
    yield "int8", int8
    yield "int8, calibrated", int8 | calibrated
    yield f"{ENERGIES[1]}, plain", {"low_rank": ENERGIES[1]}
    for energy in ENERGIES:
        yield energy, {"low_rank": energy} | calibrated
    for energy in ENERGIES:
        yield f"{energy}, int8", {"low_rank": energy} | int8 | calibrated
    for objective in ("size", "latency"):
        for chosen, more in BUDGETS.items():
            budget = infopt.Budget(LIMIT, objective, **more)
            yield f"budget {LIMIT:.0%}, {objective}, {chosen}", {"budget": budget} | calibrated


def figures(name: str, compiled: Any) -> dict[str, Any]:
    report = compiled.report
    lossy = [p for p in report.passes if p.name in ("factor-low-rank", "quantize-to-budget")]
    sites = [site for entry in lossy for site in entry.sites]
    row = {
        "name": name,
        "weights": report.memory["weights"],
        "arena": report.memory["arena"],
        "factored": sum(site.applied and site.reason.startswith("rank ") for site in sites),
    }
    if report.frontier:
        row["layers"] = {site.where: site.reason for site in sites}
    return row


def _quality(expected: Tensor, found: Tensor) -> dict[str, float]:
    cosine = torch.cosine_similarity(found, expected)
    return {
        "error": relative_error(expected, found),
        "least_cosine": cosine.min().item(),
        "neighbours": (nearest(found) == nearest(expected)).double().mean().item(),
    }


def table(title: str, rows: list[dict[str, Any]]) -> Table:
    drawn = Table(title=title)
    drawn.add_column("way")
    headings = ("layers factored", "weights MiB", "activations MiB", "ms", "median", "error")
    for heading in (*headings, "least cosine", "neighbours"):
        drawn.add_column(heading, justify="right")
    for row in rows:
        if "refused" in row:
            drawn.add_row(
                row["name"], "refused", *[""] * 4, row["refused"].split("rms_rel is ")[1][:5]
            )
            continue
        drawn.add_row(
            row["name"],
            str(row["factored"]),
            f"{row['weights'] / 2**20:.1f}",
            f"{row['arena'] / 2**20:.1f}",
            f"{row['seconds'] * 1e3:.1f}",
            f"{row['median'] * 1e3:.1f}",
            f"{row['error']:.2e}",
            f"{row['least_cosine']:.5f}" if "least_cosine" in row else "",
            f"{row['neighbours']:.1%}" if "neighbours" in row else "",
        )
    return drawn
