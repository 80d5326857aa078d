"""`infopt verify`: is an artifact whole, by whom, and does it give here what it gave there?"""

import argparse

import infopt
from infopt.compiler.commands.output import print_json, print_text
from infopt.runtime.loading import load_program


def run(args: argparse.Namespace) -> int:
    manifest = infopt.verify(args.artifact, verify_with=args.key)
    size = sum(file.size for file in manifest.files.values())
    found: dict[str, object] = {
        "files": len(manifest.files) + 1,
        "bytes": size,
        "signed": args.key is not None,
    }
    lines = [f"{found['files']} files, {size} bytes: every byte is as it was written"]
    if args.key:
        lines.append(f"signed by {args.key}")
    if args.golden:
        program = load_program(args.artifact, verify_with=args.key)
        found["golden"], found["level"] = program.check_golden(), program.level
        lines.append(f"{found['golden']} golden calls give the stored results ({program.level})")
    if args.json:
        print_json(found)
    else:
        print_text("\n".join(lines))
    return 0
