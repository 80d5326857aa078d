"""`python -m benchmarks experts`: a layer of a mixture of experts, against eager and Inductor.

transformers' Qwen3-MoE layer (router, choice, experts, weighted sum) with random weights: a prompt,
and one token, where only the weights of the experts chosen need be read. Arms take turns; every
result is compared with eager in f32.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.table import Table

import infopt
from benchmarks.report import wide_console, write_json

HIDDEN, EXPERTS, CHOSEN, WIDTH = 1024, 32, 4, 512
TOKENS = (512, 1)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@torch.no_grad()
def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks experts", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", help="also write the rows to this file")
    options = parser.parse_args(arguments)
    exact = layer()
    rows = [measured(exact, name, tokens, options.rounds) for name in DTYPES for tokens in TOKENS]
    show(rows)
    if options.json:
        write_json(options.json, {"rows": rows})
    return 0


def layer() -> torch.nn.Module:
    """The layer, f32, its weights of the size that trained ones have."""
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        hidden_size=HIDDEN,
        num_experts=EXPERTS,
        num_experts_per_tok=CHOSEN,
        moe_intermediate_size=WIDTH,
        experts_implementation="grouped_mm",
    )
    made = Qwen3MoeSparseMoeBlock(config).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return made


def measured(exact: torch.nn.Module, dtype: str, tokens: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of each arm and its relative error, for x [1, tokens, HIDDEN]."""
    model = copy.deepcopy(exact).to(DTYPES[dtype])
    x = torch.randn(1, tokens, HIDDEN).to(DTYPES[dtype])
    wanted = exact(x.float())
    arms: dict[str, Callable[[torch.Tensor], Any]] = {
        "eager": model,
        "inductor": torch.compile(copy.deepcopy(model)),
        "infopt": infopt.compile(model, (x,)),
    }
    row: dict[str, Any] = {"dtype": dtype, "tokens": tokens, "ms": {}, "error": {}}
    for name, run in arms.items():
        found = first(run(x)).float()
        row["error"][name] = float((found - first(wanted)).norm() / first(wanted).norm())
    times: dict[str, list[float]] = {name: [] for name in arms}
    calls = 3 if tokens > 1 else 30
    for _ in range(rounds):
        for name, run in arms.items():
            run(x)
            started = time.perf_counter()
            for _ in range(calls):
                run(x)
            times[name].append((time.perf_counter() - started) / calls * 1e3)
    row["ms"] = {name: statistics.median(found) for name, found in times.items()}
    return row


def first(result: Any) -> torch.Tensor:
    found: torch.Tensor = result if isinstance(result, torch.Tensor) else result[0]
    return found


def show(rows: list[dict[str, Any]]) -> None:
    """One row for each cell: milliseconds (relative error)."""
    table = Table(title=f"{EXPERTS} experts of {HIDDEN} x {WIDTH}, {CHOSEN} for each token, ms")
    for column in ("tokens", "precision", *rows[0]["ms"]):
        table.add_column(column, justify="right")
    for row in rows:
        cells = [f"{ms:.2f} ({row['error'][name]:.0e})" for name, ms in row["ms"].items()]
        table.add_row(str(row["tokens"]), row["dtype"], *cells)
    wide_console().print(table)
