"""`infopt cache`: what compiled code is kept, and removing it."""

import argparse
import time
from typing import Any

from infopt.codegen.build import build_cache
from infopt.compiler.commands.output import bytes_text, print_json, print_table, print_text
from infopt.compiler.settings import Settings, bytes_of


def run(args: argparse.Namespace) -> int:
    """Show the entries, or remove all (clear) or the longest unused beyond a size (prune)."""
    cache = build_cache()
    if args.what != "show":
        limit = 0 if args.what == "clear" else _limit(args.size)
        removed = cache.prune(limit)
    entries = cache.entries()
    total = sum(entry.bytes for entry in entries)
    if args.json:
        report: dict[str, Any] = {"folder": cache.root, "bytes": total, "limit": cache.limit}
        if args.what == "show":
            report["entries"] = [vars(entry) for entry in entries]
        else:
            report["removed"] = [entry.key for entry in removed]
        print_json(report)
        return 0
    if args.what == "show":
        now = time.time()
        rows = [
            [entry.key[:12], _library(entry.files), bytes_text(entry.bytes), _age(now - entry.used)]
            for entry in reversed(entries)
        ]
        print_table(["key", "library", "size", "last used"], rows)
    else:
        freed = sum(entry.bytes for entry in removed)
        print_text(f"removed {len(removed)} entries, {bytes_text(freed)}")
    limit_text = "none" if cache.limit is None else bytes_text(cache.limit)
    print_text(f"{cache.root}: {len(entries)} entries, {bytes_text(total)}, limit {limit_text}")
    return 0


def _limit(size: str | None) -> int:
    return bytes_of(size, "size") if size else Settings.from_environment().cache_size


def _library(files: tuple[str, ...]) -> str:
    return next((name for name in files if name.endswith(".so")), "damaged")


def _age(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return "just now"
