"""Guesses of the next tokens from the text itself: what followed the same few tokens before.

Prompt lookup decoding (Saxena, 2023). Source code, summaries and edits repeat much of their
context; where nothing repeats nothing is guessed, and a step costs what it did.
"""

from __future__ import annotations

from collections.abc import Iterable

LONGEST, SHORTEST = 4, 2  # tokens that must agree; the longest that does is asked


class PromptLookup:
    """The tokens of one text, and where every few of them were last followed by something."""

    def __init__(self, tokens: Iterable[int]) -> None:
        self.tokens: list[int] = []
        self._next: dict[tuple[int, ...], int] = {}
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        end = len(self.tokens)
        for size in range(SHORTEST, min(LONGEST, end) + 1):
            self._next[tuple(self.tokens[end - size :])] = end
        self.tokens.append(token)

    def draft(self, most: int) -> list[int]:
        """At most so many tokens that may follow."""
        for size in range(min(LONGEST, len(self.tokens)), SHORTEST - 1, -1):
            at = self._next.get(tuple(self.tokens[-size:]))
            if at is not None:
                return self.tokens[at : at + max(0, most)]
        return []
