"""`infopt bench`: one model, compiled and eager, called in turn in this process."""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from infopt.compiler.accuracy import compare
from infopt.compiler.commands.compiling import compile_source
from infopt.compiler.commands.output import (
    milliseconds,
    print_json,
    print_table,
    print_text,
    progress,
)
from infopt.compiler.commands.timing import interleaved


def run(args: argparse.Namespace) -> int:
    source, compiled = compile_source(args)

    def eager() -> Any:
        with torch.no_grad():
            return source.call(source.model)

    arms: dict[str, Callable[[], Any]] = {"eager": eager, "infopt": lambda: source.call(compiled)}
    expected, found = (_tensors(call()) for call in arms.values())
    differences = [str(compare(a, b)) for a, b in zip(expected, found, strict=True)]
    with progress() as bar:
        task = bar.add_task("timing", total=1.0)
        timings = interleaved(arms, args.seconds, lambda share: bar.update(task, completed=share))
    speedup = timings["eager"].median / timings["infopt"].median
    if args.json:
        print_json(
            {
                "source": source.name,
                "threads": torch.get_num_threads(),
                "timings": {name: timing.to_json() for name, timing in timings.items()},
                "speedup": speedup,
                "differences": differences,
                "report": compiled.report.to_json(),
            }
        )
        return 0
    rows = [
        [name, milliseconds(t.median), milliseconds(t.fastest), f"{t.spread:.0%}", str(t.calls)]
        for name, t in timings.items()
    ]
    print_table(("", "median", "fastest", "spread", "calls"), rows)
    print_text(f"{speedup:.2f} times as fast as eager; results: {'; '.join(differences)}")
    if compiled.report.declined:
        print_text(f"runs as torch runs it: {compiled.report.declined}")
    return 0


def _tensors(result: Any) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
