"""`infopt passes list`: the default passes in the order they run."""

import argparse
import inspect

from infopt.compiler.commands.output import print_json, print_table
from infopt.passes.pipelines import default_passes


def run(args: argparse.Namespace) -> int:
    rows = [
        {
            "stage": one.stage.name.lower(),
            "name": one.name,
            "contract": str(one.accuracy),
            "what": (inspect.getdoc(type(one)) or "").partition("\n")[0],
        }
        for one in default_passes()
    ]
    if args.json:
        print_json({"passes": rows})
    else:
        columns = list(rows[0]) if rows else []
        print_table(columns, [list(row.values()) for row in rows], numbers=False)
    return 0
