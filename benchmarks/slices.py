"""`python -m benchmarks slices`: a block of a diffusion model's U-Net whole, and in slices.

Some images of Stable Diffusion's largest size go through a block with random weights, fp32: whole,
and with `max_activations` of --share of that. Memory is what the plan needs beside inputs, weights
and results. Bits are compared.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from rich.table import Table

import infopt
from benchmarks.report import wide_console, write_json
from infopt.models.unet import UNET_BLOCK, UNetBlock
from infopt.runtime.measure import measure


@torch.no_grad()
def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks slices", description=__doc__)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--share", type=float, default=0.4)
    parser.add_argument("--seconds", type=float, default=60.0, help="of timing")
    parser.add_argument("--json", help="also write the rows to this file")
    options = parser.parse_args(arguments)
    rows = measured(options.images, options.share, options.seconds)
    drawn = Table(title=f"a U-Net block, {options.images} images")
    for heading in ("way", "MiB", "of whole", "same bits", "least s", "median s", "spread"):
        drawn.add_column(heading, justify="left" if heading == "way" else "right")
    for row in rows:
        cells = (f"{row['bytes'] / 2**20:.1f}", f"{row['of whole']:.1%}", str(row["same bits"]))
        times = (row["seconds"], row["median"], row["spread"])
        drawn.add_row(row["way"], *cells, *(f"{t:.3f}" for t in times))
    wide_console().print(drawn)
    if options.json:
        write_json(options.json, {"rows": rows, "images": options.images})
    return 0


def measured(images: int, share: float, seconds: float) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    model, c = UNetBlock(UNET_BLOCK).eval(), UNET_BLOCK
    given = (
        torch.randn(images, c.channels, c.image, c.image),
        torch.randn(images, c.time),
        torch.randn(images, c.tokens, c.context),
    )
    whole = infopt.compile(model, given)
    most = whole.report.memory["arena"]
    sliced = infopt.compile(model, given, max_activations=int(share * most))
    ways = {"whole": whole, "in slices": sliced}
    same = torch.equal(whole(*given), sliced(*given))
    times = measure({k: lambda c=c: c(*given) for k, c in ways.items()}, seconds, rounds=15)
    return [
        {
            "way": name,
            "bytes": compiled.report.memory["arena"],
            "of whole": compiled.report.memory["arena"] / most,
            "same bits": same,
            "seconds": times[name].min,
            "median": times[name].median,
            "spread": times[name].spread,
        }
        for name, compiled in ways.items()
    ]
