"""A torch.export archive (.pt2) as the model to compile."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.export import ExportedProgram

from infopt.compiler.errors import BadOption, first_line

SUFFIX = ".pt2"


def load_archive(path: str | Path) -> ExportedProgram:
    """The program of an archive. Raises BadOption where it cannot be read.

    torch reads it, and unpickles parts of it: compile only archives whose writer you trust. What is
    saved from it is an infopt artifact, whose loader unpickles nothing.
    """
    if not Path(path).is_file():
        raise BadOption(f"{path}: expected a torch.export archive ({SUFFIX}), found no such file")
    try:
        return torch.export.load(str(path))
    except Exception as error:
        what = f"{path}: torch.export.load cannot read it: {first_line(error)}"
        raise BadOption(what) from error
