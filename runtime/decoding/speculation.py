"""Several tokens from one step: what follows is guessed, and kept where it is what is chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infopt.runtime.decoding.prompt_lookup import PromptLookup
from infopt.runtime.decoding.state import State

# what CausalLM computes: logits for ids, memory, starts, counts, rows, positions
Run = Callable[..., Tensor]


@dataclass(frozen=True)
class Speculation:
    """Guesses for every sequence of a batch.

    run      logits [B, R, V] of the rows [B, R] of ids [B, T], from memory, starts and counts [B]
    lookups  what guesses, of each sequence
    most     so many guesses of a sequence at most
    sampler  chooses tokens from logits
    group    guesses end before a number of tokens that it divides; 0: they need not
    """

    run: Run
    lookups: Sequence[PromptLookup]
    most: int
    sampler: Callable[[Tensor], Tensor]
    group: int = 0

    def tokens(self, state: State, count: int, stops: set[int], single: bool) -> Iterator[Any]:
        """`count` tokens of each sequence, as CausalLM.generate gives them. Sequences whose guesses
        are right run ahead of the others."""
        chosen: list[list[int]] = [[] for _ in self.lookups]
        done = [False] * len(self.lookups)

        def choose(row: int, tokens: list[int]) -> None:
            for token in tokens:
                chosen[row].append(token)
                self.lookups[row].add(token)
                if token in stops or len(chosen[row]) == count:
                    done[row] = True
                    return

        if count:
            for row, token in enumerate(self.sampler(state.logits).flatten().tolist()):
                choose(row, [token])
        for number in range(count):
            while any(not end and len(own) == number for end, own in zip(done, chosen)):
                texts = []
                for own, lookup, end, length in zip(chosen, self.lookups, done, state.lengths):
                    room = min(self.most, count - len(own) - 1, self._guessable(length))
                    texts.append([] if end else [own[-1], *lookup.draft(room)])
                found, state = self.verify(state, texts)
                for row, tokens in enumerate(found):
                    choose(row, tokens)
            next_ones = [own[number] if number < len(own) else None for own in chosen]
            if all(token is None for token in next_ones):
                return
            yield next_ones[0] if single else next_ones

    def _guessable(self, length: int) -> int:
        """How many guesses may follow the next token in one step."""
        return max(0, self.group - length % self.group - 2) if self.group else self.most

    def verify(self, state: State, texts: list[list[int]]) -> tuple[list[list[int]], State]:
        """One step over a token of each sequence and guesses of what follows (or nothing of it):
        (the guesses that are right and the token after them, the state after the right ones).

        Every token is chosen from the logits behind those before it, and a guess is right where it
        is what was chosen: so whatever was guessed, chances are those of single steps. (Rejection
        sampling, Leviathan et al., 2023, of guesses that are certain of themselves.)
        """
        counts = torch.tensor([len(text) for text in texts])
        ids = torch.zeros(len(texts), int(counts.max()), dtype=torch.int64)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text)
        places = torch.minimum(torch.arange(ids.shape[1]), (counts[:, None] - 1).clamp(min=0))
        # one that takes no part stands at the beginning: there is a position there
        starts, begin = (torch.where(counts > 0, x, 0) for x in (state.starts, state.positions))
        memory = state.take()
        made = self.run(ids, memory, starts, counts, places, begin[:, None] + places)
        found: list[list[int]] = []
        logits, lengths = state.logits.clone(), list(state.lengths)
        for row, text in enumerate(texts):
            tokens: list[int] = []
            for place in range(len(text)):
                tokens.append(int(self.sampler(made[row, place : place + 1])))
                if text[place + 1 : place + 2] != tokens[-1:]:
                    break
            found.append(tokens)
            if tokens:
                logits[row] = made[row, len(tokens) - 1]
                lengths[row] += len(tokens)  # what was wrong lies behind, and is written over
        ends = torch.tensor(lengths)
        positions = state.positions + (ends - state.starts)
        return found, State(memory, tuple(lengths), ends, logits, positions)
