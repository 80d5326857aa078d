"""`infopt doctor`: the findings of `infopt.compiler.doctor`, for people or as JSON."""

import argparse

from infopt.compiler.commands.output import print_json, print_text
from infopt.compiler.doctor import examine


def run(args: argparse.Namespace) -> int:
    """1 if something is broken; what is merely absent, such as a compiler, is no failure."""
    health = examine()
    if args.json:
        print_json(health.to_json())
    else:
        print_text(str(health))
    return 1 if health.broken else 0
