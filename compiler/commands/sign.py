"""`infopt sign`: vouch for an artifact with a key."""

import argparse

import infopt
from infopt.compiler.commands.output import print_json, print_text


def run(args: argparse.Namespace) -> int:
    path = infopt.sign(args.artifact, args.key)
    if args.json:
        print_json({"signature": str(path)})
    else:
        print_text(f"wrote {path}")
    return 0
