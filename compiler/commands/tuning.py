"""`infopt tuning`: measured schedules: show them, write them to a file, take those of a file."""

import argparse
from pathlib import Path

from infopt.codegen.schedules import TUNING, Database
from infopt.compiler.commands.output import print_json, print_table, print_text
from infopt.compiler.errors import BadOption
from infopt.compiler.settings import Settings


def run(args: argparse.Namespace) -> int:
    """show: what was measured. export FILE, merge FILE: a database to and from other machines."""
    folder = Settings.from_environment().cache
    if folder is None:
        raise BadOption("there is no cache folder: set INFOPT_CACHE to one")
    database = Database.load(folder / TUNING)
    if args.what == "show":
        return _show(database, args.json)
    if args.file is None:
        raise BadOption(f"infopt tuning {args.what}: expected a file, found none")
    file, changed = Path(args.file), len(database.entries)
    if args.what == "export":
        Database(database.entries, file).save()
    else:
        if not file.exists():
            raise BadOption(f"{file}: there is no such file")
        changed = database.merge(Database.load(file))
        database.save()
    if args.json:
        print_json({"file": str(file), "entries": changed})
    else:
        print_text(f"{changed} entries {'written to' if args.what == 'export' else 'from'} {file}")
    return 0


def _show(database: Database, as_json: bool) -> int:
    if as_json:
        print_json({"entries": {key: vars(found) for key, found in database.entries.items()}})
        return 0
    rows = [
        [
            key,
            ", ".join(f"{name}={value}" for name, value in found.schedule.items()),
            f"{found.usual * 1e6:.1f}",
            f"{found.seconds * 1e6:.1f}",
        ]
        for key, found in database.entries.items()
    ]
    print_table(["kernel", "schedule", "usual us", "with it us"], rows)
    print_text(f"{database.file}: {len(rows)} kernels")
    return 0
