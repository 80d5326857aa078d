"""`infopt compile`: a model in, an artifact out."""

import argparse

from infopt.compiler.commands.compiling import compile_source
from infopt.compiler.commands.output import print_json, print_text


def run(args: argparse.Namespace) -> int:
    _, compiled = compile_source(args)
    path = compiled.save(args.output, targets=args.also, golden=args.golden)
    if args.json:
        print_json({"artifact": str(path), "report": compiled.report.to_json()})
    else:
        print_text(f"{compiled.report}\nwrote {path}")
    return 0
