"""What `infopt cache` says of the age of what is kept."""

from __future__ import annotations

import pytest

from infopt.compiler.commands.cache import _age

HOUR, DAY = 3600, 86400


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0, "just now"),
        (119, "just now"),
        (120, "2 minutes ago"),
        (2 * HOUR - 1, "120 minutes ago"),
        (2 * HOUR, "2 hours ago"),
        (2 * DAY - 1, "48 hours ago"),
        (9.6 * DAY, "10 days ago"),
    ],
)
def test_ages(seconds: float, told: str) -> None:
    assert _age(seconds) == told
