"""What INFOPT_DUMP asks for: a folder per program, with everything that was made on the way.

    program_000/traced.txt                the graph as it was traced
                00_canonicalize.txt       the graph after every pass, and .diff: its changes
                plan.json, *.cpp          the plan, and the C++ text generated for it
                report.json, report.html  the decisions, for machines and for people

A folder that cannot be written never stops a compilation: a warning says why.
"""

from __future__ import annotations

import logging
from pathlib import Path

log = logging.getLogger(__name__)


def program_folder(root: Path) -> Path | None:
    """A new folder in `root`, of its own also where several processes write there."""
    number = 0
    try:
        root.mkdir(parents=True, exist_ok=True)
        while True:
            folder = root / f"program_{number:03}"
            try:
                folder.mkdir()
            except FileExistsError:
                number += 1
            else:
                return folder
    except OSError as reason:
        log.warning("INFOPT_DUMP=%s: nothing is written there: %s", root, reason)
        return None


def write(folder: Path | None, name: str, text: str) -> None:
    """Write one file, where dumping is asked for."""
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    except OSError as reason:
        log.warning("INFOPT_DUMP: %s is not written: %s", folder / name, reason)
