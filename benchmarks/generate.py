"""`python -m benchmarks generate`: transformers' generate() with compiled decoders, by tokens.

Every decoder of the zoo writes greedily, in eager and compiled, with the growing cache
(model.compile) and with the static one (CompileConfig). The tokens must be identical, and the
number of graphs must not grow with the tokens.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
import warnings
from multiprocessing.connection import Connection
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.report import wide_console, write_json
from infopt.models import zoo

TOKENS = 24
BATCH, PROMPT = 2, 9
CACHES = ("dynamic", "static")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks generate", description=__doc__)
    parser.add_argument("--json", help="also write the rows to this file")
    parser.add_argument("--only", action="append", help="this architecture only; may be repeated")
    parser.add_argument("--timeout", type=float, default=240, help="seconds per architecture")
    options = parser.parse_args(arguments)
    names = options.only or [n for n, e in zoo.ZOO.items() if e.head == "ForCausalLM"]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "transformers", "benchmarks.generate"])
    rows = []
    for name in track(names, description="decoders", console=Console(stderr=True)):
        rows.append({"name": name} | apart(context, name, options.timeout))
        if options.json:
            write_json(options.json, {"tokens": TOKENS, "rows": rows})
    show(rows)
    wrong = [r for r in rows if "error" in r or not all(r[c]["equal"] for c in CACHES if c in r)]
    return 1 if wrong else 0


def apart(context: Any, name: str, timeout: float) -> dict[str, Any]:
    """`examine` in a process of its own; a crash or time-out is an error row."""
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(theirs, name))
    child.start()
    theirs.close()
    try:
        row = ours.recv() if ours.poll(timeout) else {"error": f"no answer in {timeout:.0f} s"}
    except EOFError:
        child.join()
        row = {"error": f"the process died with exit status {child.exitcode}"}
    child.kill()
    child.join()
    return row


def _child(answer: Connection, name: str) -> None:
    warnings.filterwarnings("ignore")
    try:
        row = examine(name)
    except Exception as error:
        row = {"error": f"{type(error).__name__}: {error}"[:400]}
    answer.send(row)
    answer.close()


def examine(name: str) -> dict[str, Any]:
    """Tokens of eager and of both ways to compile."""
    torch.manual_seed(0)
    prompt = torch.randint(3, zoo.build(name).config.vocab_size, (BATCH, PROMPT))
    row: dict[str, Any] = {}
    for cache in CACHES:
        try:
            expected = written(name, prompt, cache, compiled=False)
        except Exception as error:  # a model without this kind of cache
            row[cache] = {"equal": True, "skipped": f"eager: {type(error).__name__}"}
            continue
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        began = time.perf_counter()
        found = written(name, prompt, cache, compiled=True)
        counters = torch._dynamo.utils.counters
        ours = counters["infopt"]
        native, aten = ours["native_nodes"], ours["aten_nodes"]
        row[cache] = {
            "equal": torch.equal(expected, found),
            "seconds": time.perf_counter() - began,
            "graphs": counters["stats"]["unique_graphs"],
            "eager_graphs": ours["eager_graphs"],
            "native_share": native / (native + aten) if native + aten else 0.0,
        }
    return row


def written(name: str, prompt: torch.Tensor, cache: str, compiled: bool) -> torch.Tensor:
    """What generate() makes of the prompt."""
    from transformers import CompileConfig

    model: Any = zoo.build(name)
    model.config.use_cache = True
    model.generation_config.eos_token_id = None  # every run writes all its tokens
    settings: dict[str, Any] = {"max_new_tokens": TOKENS, "do_sample": False, "pad_token_id": 0}
    if cache == "static":
        settings["cache_implementation"] = "static"
        if compiled:
            settings["compile_config"] = CompileConfig(backend="infopt", fullgraph=False)
            settings["compile_config"]._compile_all_devices = True
        else:
            settings["disable_compile"] = True
    elif compiled:
        model.compile(backend="infopt", dynamic=True)
    with torch.no_grad():
        tokens: torch.Tensor = model.generate(prompt, use_cache=True, **settings)
    return tokens


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(title=f"{TOKENS} greedy tokens of transformers' generate() against eager")
    for column in ("architecture", "cache", "tokens", "graphs", "native", "s"):
        table.add_column(column, justify="left" if column in ("architecture", "cache") else "right")
    for row in rows:
        for cache in CACHES:
            cell = row.get(cache, {"equal": False})
            if "error" in row or "skipped" in cell:
                said = row.get("error") or cell["skipped"]
                table.add_row(row["name"], cache, said[:50], "", "", "")
                continue
            table.add_row(
                row["name"],
                cache,
                "identical" if cell["equal"] else "[red]differ[/]",
                str(cell["graphs"]),
                f"{cell['native_share']:.0%}",
                f"{cell['seconds']:.1f}",
            )
    console = wide_console()
    console.print(table)
    ran = [r[c] for r in rows for c in CACHES if "error" not in r and "skipped" not in r[c]]
    console.print(
        f"{len(rows)} decoders: {sum(c['equal'] for c in ran)} of {len(ran)} runs identical, "
        f"{sum('error' in r for r in rows)} failed"
    )
