"""A command's standard output is its result alone, whatever native libraries print."""

import contextlib
import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infopt.compiler.commands.native_output import native_output_to_stderr

CODE = """
import ctypes, sys
from types import SimpleNamespace
from infopt.compiler import cli

def run(args):
    ctypes.CDLL(None).puts(b"from C++")
    print('{"own": 1}')
    return 0

cli.import_module = lambda name: SimpleNamespace(run=run)
status = cli.main(["doctor", "--json"])
ctypes.CDLL(None).puts(b"afterwards")
print("more")
sys.exit(status)
"""


def test_what_c_prints_goes_to_standard_error() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "from C++\n"
    assert sorted(done.stdout.splitlines()) == ["afterwards", "more", '{"own": 1}']


def test_a_failing_command_gives_standard_output_back() -> None:
    code = CODE.replace("return 0", "raise ValueError('wrong')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert set(done.stderr.splitlines()) == {"from C++", "infopt: ValueError: wrong"}
    assert sorted(done.stdout.splitlines()) == ["afterwards", "more", '{"own": 1}']


def test_output_that_is_captured_is_left_alone(capsys) -> None:
    before = sys.stdout
    with native_output_to_stderr():
        assert sys.stdout is before
        print("here")
    assert capsys.readouterr().out == "here\n"


@contextlib.contextmanager
def own_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Standard output and error of this process in two files, as a shell would put them."""
    kept = [os.dup(1), os.dup(2)]
    ctypes.CDLL(None).fflush(None)
    try:
        for number, name in ((1, "out"), (2, "err")):
            with open(tmp_path / name, "w") as file:
                os.dup2(file.fileno(), number)
        with open(1, "w", closefd=False) as stdout, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stdout)
            yield
    finally:
        ctypes.CDLL(None).fflush(None)
        for number, old in enumerate(kept, 1):
            os.dup2(old, number)
            os.close(old)


def test_descriptor_one_is_standard_error_while_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was printed before goes out before, of Python and of C, and all is given back."""
    puts = ctypes.CDLL(None).puts
    descriptors = len(os.listdir("/proc/self/fd"))
    with own_descriptors(tmp_path, monkeypatch):
        before = sys.stdout
        print("python, before")
        puts(b"C, before")
        with pytest.raises(ZeroDivisionError), native_output_to_stderr():
            print("python")
            assert sys.stdout is not before and sys.stdout.encoding == before.encoding
            puts(b"C")
            raise ZeroDivisionError
        assert sys.stdout is before
        print("python, after")
        puts(b"C, after")
    assert (tmp_path / "err").read_text() == "C\n"
    lines = (tmp_path / "out").read_text().splitlines()
    assert sorted(lines[:2]) == ["C, before", "python, before"] and lines[2] == "python"
    assert sorted(lines[3:]) == ["C, after", "python, after"]
    assert len(os.listdir("/proc/self/fd")) == descriptors
