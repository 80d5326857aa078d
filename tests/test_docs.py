"""The Python in the documentation runs, page by page, from top to bottom."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def snippets(page: Path) -> str:
    """All python blocks of a page as one program, each line at its own line number."""
    lines = page.read_text().splitlines()
    kept, inside = [], False
    for line in lines:
        fence = re.match(r"\s*```(\w*)", line)
        if fence:
            inside = not inside and fence.group(1) == "python"
            kept.append("")
        else:
            kept.append(line if inside else "")
    return "\n".join(kept)


@pytest.mark.parametrize(
    "page", [p for p in PAGES if "```python" in p.read_text()], ids=lambda p: p.name
)
def test_snippets_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes in snippets need their source (a pass's key), so the program is a real file."""
    program = tmp_path / f"{page.stem.replace('-', '_')}_snippets.py"
    program.write_text(snippets(page))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # a page may install a package and import it
    before = set(sys.modules)
    namespace = {"__name__": program.stem, "__file__": str(program)}
    exec(compile(program.read_text(), str(program), "exec"), namespace)
    for name in set(sys.modules) - before:
        if "installed" in str(getattr(sys.modules[name], "__file__", "")).split("/"):
            del sys.modules[name]
