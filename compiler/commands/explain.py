"""`infopt explain`: where passes applied in a model, and where not and why."""

import argparse

import infopt
from infopt.compiler.commands.compiling import compile_source
from infopt.compiler.commands.output import print_json, print_text
from infopt.compiler.model import Compiled


def run(args: argparse.Namespace) -> int:
    source, compiled = compile_source(args)
    report = compiled.report
    if args.html:
        if isinstance(compiled, Compiled):
            source.call(compiled.profile)
        report.html(args.html, title=args.source)
    if args.json:
        entries = [report.find(args.pass_name)] if args.pass_name else report.passes
        print_json({"declined": report.declined, "passes": [e.to_json() for e in entries]})
    elif args.pass_name:
        print_text(infopt.explain(compiled, args.pass_name))
    else:
        print_text("\n".join(infopt.explain(compiled, entry.name) for entry in report.passes))
        if report.declined:
            print_text(f"runs as torch runs it: {report.declined}")
    return 0
