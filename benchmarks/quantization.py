"""`python -m benchmarks quantization`: what formats and budgets do to the real MiniLM's embeddings.

48 sentences choose (the sample of a budget), 48 others calibrate, the rest judge. For each way:
bytes of the linear layers' weights, size of the artifact, relative RMS error, least and mean cosine
to fp32 eager, the share of sentences that keep their nearest neighbour, and Spearman's rank
correlation of all pairwise similarities. --plot writes the trade between error and bytes as SVG;
--ways measures only some.
"""

from __future__ import annotations

import argparse
import tempfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

import infopt
from benchmarks.report import wide_console, write_json
from benchmarks.scatter import Series, scatter
from infopt.compiler.model import Compiled
from infopt.models.agreement import relative_error
from infopt.models.minilm import load_minilm, tokenize
from infopt.models.sentences import SENTENCES

FORMATS = ("int8", "int8-g64", "int4-g32", "int4-g64", "int4-g128")
CALIBRATION = SENTENCES[1::4][:48]
BUDGETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
FAST_BUDGETS = (0.01, 0.015, 0.02)


@torch.no_grad()
def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks quantization", description=__doc__)
    parser.add_argument("--json", help="also write the rows to this file")
    parser.add_argument("--plot", help="write the trade between error and bytes to this SVG file")
    patterns = "such as 'int8, *activations*;budget 1.0%%', with ; between: only these ways"
    parser.add_argument("--ways", default="*", help=patterns)
    options = parser.parse_args(arguments)
    wanted = options.ways.split(";")
    chosen_ways = {n: w for n, w in ways().items() if any(fnmatch(n, p) for p in wanted)}
    if not chosen_ways:
        parser.error(f"--ways: none is called so; there are {'; '.join(ways())}")
    model = load_minilm()
    chosen = SENTENCES[::4][:48]
    samples = tokenize(chosen)
    held_out = tokenize([s for s in SENTENCES if s not in {*chosen, *CALIBRATION}])
    expected = model(held_out.ids, held_out.mask)
    console, rows = wide_console(), []
    for name, given in chosen_ways.items():
        with console.status(name):
            rows.append({"name": name} | measure(model, samples, held_out, expected, given))
    console.print(table(rows))
    if options.json:
        write_json(options.json, {"rows": rows})
    if options.plot:
        Path(options.plot).write_text(plot(rows), encoding="utf-8")
    return 0


def ways() -> dict[str, dict[str, Any]]:
    """Options by what they are called."""
    found: dict[str, dict[str, Any]] = {"fp32": {}, "compute bf16": {"compute": "bf16"}}
    for name in FORMATS:
        found[name] = {"weights": name}
        found[f"{name}, int8 activations"] = {"weights": name, "activations": "int8"}
    for name in FORMATS:
        found[f"{name}, calibrated"] = {"weights": name, "calibration": CALIBRATION}
    calibrated = {"weights": "int8", "calibration": CALIBRATION}
    found["int8, int8 activations, calibrated"] = calibrated | {"activations": "int8"}
    found["int8, static activations, calibrated"] = calibrated | {"activations": "int8-static"}
    for limit in BUDGETS:
        budget = {"max_error": limit, "objective": "size"}
        found[f"budget {limit:.1%}"] = budget
        found[f"budget {limit:.1%}, calibrated"] = budget | {"calibration": CALIBRATION}
    for limit in FAST_BUDGETS:
        fast = infopt.Budget(limit, "latency", formats=("int8",), ranks=())
        name = f"fast within {limit:.1%}, int8 activations, calibrated"
        found[name] = {"compute": "bf16", "budget": fast, "calibration": CALIBRATION}
    return found


def measure(model: Any, samples: Any, held_out: Any, expected: Tensor, given: dict) -> dict:
    """One way: compiled with the samples, judged on the rest."""
    ids, mask = (torch.export.Dim(n, min=1, max=512) for n in ("sentences", "tokens"))
    shapes = {0: ids, 1: mask}
    if "calibration" in given:
        calibration = tokenize(given["calibration"])
        given = given | {"calibration": [(calibration.ids, calibration.mask)]}
    compiled = infopt.compile(
        model, (samples.ids, samples.mask), dynamic_shapes=(shapes, shapes), **given
    )
    assert isinstance(compiled, Compiled)
    with tempfile.TemporaryDirectory() as folder:
        compiled.save(f"{folder}/model")
        size = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())
    found = compiled(held_out.ids, held_out.mask)
    cosine = torch.cosine_similarity(found, expected)
    row = {
        "weights": compiled.report.memory["weights"],
        "artifact": size,
        "error": relative_error(expected, found),
        "least_cosine": cosine.min().item(),
        "mean_cosine": cosine.mean().item(),
        "neighbours": (nearest(found) == nearest(expected)).double().mean().item(),
        "rank_correlation": rank_correlation(similarities(expected), similarities(found)),
    }
    for point in compiled.report.frontier:
        if point.measured_error is not None:
            row |= {"predicted": point.predicted_error, "measured": point.measured_error}
            row["formats"] = point.formats
    return row


def similarities(embeddings: Tensor) -> Tensor:
    """Cosines of all pairs."""
    unit = torch.nn.functional.normalize(embeddings)
    rows, columns = torch.triu_indices(len(unit), len(unit), 1)
    return (unit @ unit.T)[rows, columns]


def nearest(embeddings: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize(embeddings)
    return (unit @ unit.T).fill_diagonal_(-2).argmax(1)


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's."""
    ranks = torch.stack([v.argsort().argsort().double() for v in (a, b)])
    return torch.corrcoef(ranks)[0, 1].item()


def table(rows: list[dict[str, Any]]) -> Table:
    drawn = Table(title="MiniLM, judged on sentences that chose nothing")
    drawn.add_column("way")
    headings = ("weights MiB", "artifact MiB", "error", "predicted", "measured on samples")
    for heading in (*headings, "least cosine", "mean", "neighbours", "rank corr."):
        drawn.add_column(heading, justify="right")
    for row in rows:
        drawn.add_row(
            row["name"],
            f"{row['weights'] / 2**20:.1f}",
            f"{row['artifact'] / 2**20:.1f}",
            f"{row['error']:.2e}",
            f"{row['predicted']:.2e}" if "predicted" in row else "",
            f"{row['measured']:.2e}" if "measured" in row else "",
            f"{row['least_cosine']:.5f}",
            f"{row['mean_cosine']:.5f}",
            f"{row['neighbours']:.1%}",
            f"{row['rank_correlation']:.5f}",
        )
    return drawn


def plot(rows: list[dict[str, Any]]) -> str:
    """Error against bytes: formats for all layers alike, and budgets."""

    def points(chosen: list[dict[str, Any]]) -> list[tuple[float, float, str]]:
        return [(r["weights"] / 2**20, r["error"], r["name"]) for r in chosen]

    calibrated = [r for r in rows if "calibrated" in r["name"]]
    nearest_integers = [r for r in rows if r not in calibrated]

    def of(kind: str, chosen: list[dict[str, Any]]) -> list[tuple[float, float, str]]:
        return points([r for r in chosen if r["name"].startswith(kind)])

    series = [
        Series("one format for all layers", of("int", nearest_integers), joined=False),
        Series("the same, calibrated", of("int", calibrated), joined=False),
        Series("layer by layer under a budget", of("budget", nearest_integers), joined=True),
        Series("the same, calibrated", of("budget", calibrated), joined=True),
    ]
    return scatter(series, "MiB of weights", "relative error of embeddings")
