"""A command's standard output is its result alone, whatever native libraries print."""

import subprocess
import sys

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
    from infopt.compiler.commands.native_output import native_output_to_stderr

    before = sys.stdout
    with native_output_to_stderr():
        assert sys.stdout is before
        print("here")
    assert capsys.readouterr().out == "here\n"
