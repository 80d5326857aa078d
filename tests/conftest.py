"""What all tests share: two marks, and fixed seeds.

A run says the same every time; `--hypothesis-profile=explore` draws other examples.
"""

import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# on a busy machine everything may take long: no test fails for it
for profile, derandomize in (("fixed", True), ("explore", False)):
    settings.register_profile(
        profile,
        derandomize=derandomize,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
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
