"""`infopt inspect`: what an artifact says of itself, without loading it."""

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from infopt.compiler.commands.kernel_table import HEADER, kernel_table
from infopt.compiler.commands.output import bytes_text, print_json, print_table, print_text
from infopt.runtime.gpu_levels import GPU_LEVELS
from infopt.runtime.loading import read_manifest
from infopt.runtime.manifest import Manifest
from infopt.runtime.verdict import verdicts


def run(args: argparse.Namespace) -> int:
    manifest = read_manifest(args.artifact)
    if args.json:
        here = [(v.program, v.answer, v.reason) for v in verdicts(manifest)]
        names = ("program", "answer", "reason")
        shown = [dict(zip(names, verdict)) for verdict in here]
        kernels = [asdict(row) for row in kernel_table(Path(args.artifact), manifest)]
        print_json({**json.loads(manifest.to_text()), "here": shown, "kernels": kernels})
        return 0
    print_text(describe(manifest))
    if table := kernel_table(Path(args.artifact), manifest):
        print_table(HEADER, [row.cells() for row in table])
    rows = [[name, bytes_text(f.size), f.sha256[:16]] for name, f in sorted(manifest.files.items())]
    print_table(("file", "size", "sha256"), rows)
    return 0


def describe(manifest: Manifest) -> str:
    """The manifest without its files, one fact per line."""
    versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    lines = [f"written by {versions}", f"takes {_parameters(manifest)}"]
    for dim in manifest.dims:
        limit = "any" if dim.hi is None else dim.hi
        lines.append(f"  {dim.name}: {dim.lo} to {limit}")
    for verdict in verdicts(manifest):
        entry = verdict.entry
        where = f"{entry.system} on {entry.arch}" if entry.libraries else "any machine"
        if entry.level in GPU_LEVELS:
            where = "a GPU"
        text = f"{verdict.program} for {where}: {verdict.answer} here"
        lines.append(text + (f", {verdict.reason}" if verdict.reason else ""))
    if manifest.golden:
        lines.append(f"{len(manifest.golden)} golden calls")
    lines += [f"pass {_text(entry)}" for entry in manifest.passes or ()]
    return "\n".join(lines)


def _parameters(manifest: Manifest) -> str:
    names = [
        p.name if p.kind == "positional" else f"{p.name}=" for p in manifest.signature.parameters
    ]
    return ", ".join(names) or "nothing"


def _text(entry: object) -> str:
    """One pass as the compiler reported it, see infopt.compiler.report.PassReport."""
    if not isinstance(entry, Mapping) or "name" not in entry:
        return str(entry)
    sites = [site for site in entry.get("sites", ()) if isinstance(site, Mapping)]
    applied = sum(bool(site.get("applied")) for site in sites)
    text = f"{entry['name']} ({entry.get('contract', '?')}): {applied} of {len(sites)} sites"
    return text + (f", error {entry['error']}" if entry.get("error") else "")
