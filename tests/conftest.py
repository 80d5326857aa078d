"""What all tests share: two marks, and fixed seeds.

A run says the same every time; `--hypothesis-profile=explore` draws other examples.
"""

import sys
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("fixed", derandomize=True)
settings.register_profile("explore", derandomize=False)
settings.load_profile("fixed")

ROOT = Path(__file__).resolve().parents[1]
MARKS = (
    "slow: takes more than about ten seconds; the quick run leaves it out with -m 'not slow'",
    "checkout: reads files of the source checkout; skipped where the tests are a copy without it",
)


def pytest_configure(config: pytest.Config) -> None:
    for mark in MARKS:
        config.addinivalue_line("markers", mark)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if (ROOT / "pyproject.toml").exists():
        return
    skip = pytest.mark.skip(reason="reads the source checkout; these tests run from a copy")
    for item in items:
        if item.get_closest_marker("checkout"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)
