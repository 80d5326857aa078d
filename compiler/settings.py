"""Every environment variable infopt reads, in one frozen value.

INFOPT_DEBUG   0..4      1 report, 2 + why not, 3 + graph differences, 4 + generated code
INFOPT_DUMP    folder    write there, per program: graphs after every pass, differences, generated
                         code, the plan, the report (dump_folder.py)
INFOPT_CHECK   0, 1, 2   verify only (default), + accuracy of exact passes, + of the built program
INFOPT_CERTIFY 0, 1      0: a user's pass is not certified when it is first used (first_use.py)
INFOPT_SKIP    a,b       names of passes left out
INFOPT_CACHE   folder    compiled code, default ~/.cache/infopt
INFOPT_CACHE_SIZE  size  of it at most, such as 500M or 2G, default 1G; the code that was used
                         longest ago goes first
INFOPT_TUNE    0, 1, 2   no tuning (default), quick, thorough; a tune= option given wins
CXX            command   the C++ compiler, default g++, c++ or clang++
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


class BadSetting(ValueError):
    """An environment variable holds a value infopt does not know."""


@dataclass(frozen=True)
class Settings:
    """What the environment asks for. `cache` is None where the user has no home folder."""

    debug: int = 0
    dump: Path | None = None
    check: int = 0
    certify: bool = True
    skip: frozenset[str] = frozenset()
    cache: Path | None = None
    cache_size: int = 1 << 30  # bytes
    tune: int = 0
    cxx: str | None = None

    @staticmethod
    def from_environment(environment: Mapping[str, str] | None = None) -> "Settings":
        """Read `environment` (default os.environ). Raises BadSetting naming the variable."""
        env = os.environ if environment is None else environment
        dump = env.get("INFOPT_DUMP")
        names = (name.strip() for name in env.get("INFOPT_SKIP", "").split(","))
        return Settings(
            debug=_number(env, "INFOPT_DEBUG", 0, 4),
            dump=Path(dump).expanduser() if dump else None,
            check=_number(env, "INFOPT_CHECK", 0, 2),
            certify=bool(_number(env, "INFOPT_CERTIFY", 1, 1)),
            skip=frozenset(name for name in names if name),
            cache=_cache_folder(env),
            cache_size=bytes_of(env.get("INFOPT_CACHE_SIZE") or "1G", "INFOPT_CACHE_SIZE"),
            tune=_number(env, "INFOPT_TUNE", 0, 2),
            cxx=env.get("CXX") or None,
        )


def _number(env: Mapping[str, str], name: str, default: int, highest: int) -> int:
    text = env.get(name, "").strip()
    if not text:
        return default
    known = [str(value) for value in range(highest + 1)]
    if text not in known:
        raise BadSetting(f"{name}={text!r}: expected one of {', '.join(known)}")
    return int(text)


def bytes_of(text: str, name: str) -> int:
    """A size such as 500M in bytes. Raises BadSetting naming `name`."""
    if not (match := re.fullmatch(r"(\d{1,15})([KMGT]?)", text)):
        raise BadSetting(f"{name}={text!r}: expected bytes, or a number with K, M, G or T: 500M")
    return int(match[1]) << 10 * " KMGT".index(match[2] or " ")


def _cache_folder(env: Mapping[str, str]) -> Path | None:
    if folder := env.get("INFOPT_CACHE"):
        return Path(folder).expanduser().absolute()
    try:
        return Path.home() / ".cache" / "infopt"
    except RuntimeError:  # no HOME and no entry in the password file
        return None
