"""Small counts of `python -m benchmarks robustness`, and that it can report a failure."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from benchmarks import robustness
from benchmarks.forking import kill_after, outcome, start

pytestmark = [
    pytest.mark.checkout,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]


def test_outcomes_of_children() -> None:
    assert outcome(start(lambda: True)) == "right"
    assert outcome(start(lambda: False)) == "wrong"
    assert outcome(start(lambda: bool(1 // 0))) == "failed"
    assert outcome(start(lambda: time.sleep(60) is None), timeout=0.1) == "hung"
    assert outcome(start(lambda: os.kill(os.getpid(), signal.SIGTERM) is None)) == "signal 15"
    assert kill_after(start(lambda: time.sleep(60) is None), 0.05) == "killed"


def test_what_counts_as_wrong() -> None:
    fine = Counter({"reader right": 9, "writer killed": 3, "writer failed": 1, "new path empty": 2})
    assert robustness._bad(fine) == 0
    assert robustness._bad(fine + Counter({"reader hung": 2})) == 2
    assert robustness._bad({"outcomes": Counter({"orphans": 1, "interrupted": 4})}) == 1


@pytest.mark.slow
def test_small_counts_of_everything() -> None:
    """In a process of its own: this one has threads that forks would lose."""
    counts = ["--kills=5", "--model-kills=2", "--save-kills=5", "--interrupts=3", "--forks=2"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "robustness", *counts],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0 and "wrong outcomes: 0" in done.stdout, done.stdout + done.stderr
