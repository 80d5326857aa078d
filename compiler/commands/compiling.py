"""The step that `compile`, `bench` and `explain` share: the named model, compiled as asked."""

import argparse
from typing import Any

import infopt
from infopt.compiler.commands.output import progress
from infopt.compiler.commands.pass_argument import pipeline
from infopt.compiler.commands.source import Source, load_source
from infopt.compiler.model import AsTorch, Compiled


def compile_source(args: argparse.Namespace) -> tuple[Source, Compiled | AsTorch]:
    """Load and compile `args.source` with the options of the command line."""
    options: dict[str, Any] = {"strict": args.strict}
    given = ("compute", "activations", "max_error", "objective", "tune", "threads")
    for name in given:
        if getattr(args, name) is not None:
            options[name] = getattr(args, name)
    if args.weights:
        options["weights"] = _weights(args.weights)
    if args.add:
        options["passes"] = pipeline(args, args.add)
    with progress() as bar:
        task = bar.add_task(f"loading {args.source}", total=2)
        source = load_source(args.source)
        bar.update(task, advance=1, description=f"compiling {source.name}")
        compiled = infopt.compile(
            source.program or source.model,
            source.args,
            source.kwargs,
            target=args.target,
            dynamic_shapes=source.dynamic_shapes,
            **options,
        )
    return source, compiled


def _weights(given: list[str]) -> dict[str, str]:
    """ "FORMAT" or "PATTERN=FORMAT", each; the first pattern that matches counts."""
    return {
        pattern or "*": format for pattern, _, format in (text.rpartition("=") for text in given)
    }
