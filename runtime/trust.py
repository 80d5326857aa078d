"""Whose native code may run: an artifact's own bytes are code only where this says so."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

POLICIES = ("same-owner", "signed", "any", "never")


class NativeCodeRefused(UserWarning):
    """An artifact's native code was not loaded: it runs by torch calls, slower, same results."""


def refusal(policy: str, signed: bool, files: Iterable[tuple[str, os.stat_result]]) -> str | None:
    """Why the native code among `files` (name, status) may not run, or None where it may.

    "never": nobody's. "signed": if a key the caller named verified the artifact. "same-owner":
    also if every file and folder of it, the plan and manifest that drive the code included, is
    this user's or root's, others cannot write to it, and it has no name elsewhere (a hard link
    to a system library has the right owner too). "any": everybody's.
    Raises ValueError for another policy.
    """
    if policy not in POLICIES:
        raise ValueError(f"native: expected one of {POLICIES}, found {policy!r}")
    if policy == "any":
        return None
    if policy == "never":
        return "native='never' was asked for"
    if signed:
        return None
    if policy == "signed":
        return "native='signed' was asked for and no key was given; pass verify_with="
    for name, found in files:
        if found.st_uid not in (0, os.geteuid()):
            return (
                f"{name} belongs to another user: expected user id 0 or {os.geteuid()}, found "
                f"{found.st_uid}; pass verify_with= the writer's key, or native='any'"
            )
        is_folder = stat.S_ISDIR(found.st_mode)
        sticky = is_folder and found.st_mode & stat.S_ISVTX
        if found.st_mode & stat.S_IWOTH and not sticky:
            return f"{name} can be written by every user: expected mode o-w"
        if found.st_nlink > 1 and not is_folder:
            return f"{name} has {found.st_nlink} names (hard links): expected 1"
    return None
