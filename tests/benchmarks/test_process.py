"""Children of the benchmarks: answers, failures and time-outs."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from benchmarks.process import Child, ChildFailed, busy_process

SCRIPT = """
import os, time
from benchmarks.process import serve

def answer(question):
    print("noise on stdout")
    if question["do"] == "fail":
        raise ValueError("no such thing")
    if question["do"] == "die":
        os._exit(7)
    if question["do"] == "sleep":
        time.sleep(30)
    return {"twice": 2 * question["value"], "seen": os.environ["SEEN"]}

serve(answer)
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "doubling_child.py").write_text(SCRIPT)
    path = f"{tmp_path}:{Path(__file__).parents[2]}"
    with Child("doubling_child", {"PYTHONPATH": path, "SEEN": "yes"}) as made:
        yield made


def test_answers_in_order_despite_noise(child: Child) -> None:
    for value in (3, 4):
        assert child.ask(do="double", value=value) == {"twice": 2 * value, "seen": "yes"}


def test_a_failure_carries_the_reason_and_the_child_lives_on(child: Child) -> None:
    with pytest.raises(ChildFailed, match="Traceback") as caught:
        child.ask(do="fail")
    assert caught.value.reason == "ValueError: no such thing"
    assert child.ask(do="double", value=1)["twice"] == 2


def test_death_is_reported(child: Child) -> None:
    with pytest.raises(ChildFailed, match="exit status 7"):
        child.ask(do="die")


def test_silence_ends_the_child(child: Child) -> None:
    with pytest.raises(ChildFailed, match=r"no answer in 0 s"):
        child.ask(timeout=0.2, do="sleep")


def test_a_busy_process_works_and_ends() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime  # of children that have ended
    with busy_process():
        pass
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime > before
