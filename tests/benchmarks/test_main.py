"""Every benchmark that `python -m benchmarks` lists can be asked for its options."""

from __future__ import annotations

import pytest

from benchmarks.__main__ import COMMANDS, main


@pytest.mark.parametrize("name", COMMANDS)
def test_help_lists_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert f"usage: python -m benchmarks {name}" in printed and "--help" in printed


def test_an_unknown_name_lists_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nothing"]) == 2
    printed = capsys.readouterr().out
    assert all(name in printed for name in COMMANDS)
