"""A compiled causal language model: prefill, step, decode and generate over a cache in place."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infopt.runtime.adapters import AdapterSet, Names
from infopt.runtime.decoding.adapted import AdaptedMemory
from infopt.runtime.decoding.arrival import arrival
from infopt.runtime.decoding.compaction import check_places
from infopt.runtime.decoding.memory import Memory, OwnMemory
from infopt.runtime.decoding.pages import PagedMemory
from infopt.runtime.decoding.places import Places
from infopt.runtime.decoding.prompt_lookup import PromptLookup
from infopt.runtime.decoding.prompts import (
    Prompts,
    check_tokens,
    common_beginning,
    is_flat,
    padded_rows,
    read_prompts,
)
from infopt.runtime.decoding.sampling import Sampler
from infopt.runtime.decoding.spec import CausalSpec
from infopt.runtime.decoding.speculation import Speculation
from infopt.runtime.decoding.state import State
from infopt.runtime.errors import (
    BadTokens,
    ContextFull,
    InputMismatch,
    TooManySequences,
)


class CausalLM:
    """A compiled causal language model.

    spec     the vocabulary, the room for tokens, the largest batch
    program  what was compiled or loaded: its report, its notes
    filter   where prompts are cut (infopt.Compaction), the program that says what tokens are worth
    adapters  what is loaded; None where the model was compiled without adapters=infopt.Adapters

    Ids may be on any device; the cache, logits and chosen tokens are where the program runs.
    """

    def __init__(
        self,
        spec: CausalSpec,
        program: Any,
        save: Callable[..., Path] | None = None,
        filter: Any = None,
    ) -> None:
        self.spec, self.program, self.filter, self._save = spec, program, filter, save
        self.adapters: AdapterSet | None = getattr(program, "adapters", None)
        self._where: torch.device = program.where
        self._pool = spec.pool(self._where) if spec.page else None
        # a GPU computes the next step while a token is read; pages wait for who goes on
        self._ahead = self._where.type != "cpu" and not spec.page

    @property
    def report(self) -> Any:
        """What the compiler did and why; None of a loaded model."""
        return getattr(self.program, "report", None)

    def prefill(
        self,
        ids: Prompts,
        *,
        mask: Tensor | None = None,
        state: State | None = None,
        places: Sequence[Any] | None = None,
        adapters: Names = None,
    ) -> State:
        """The state after these tokens: `state.logits` are those of each sequence's last token.

        ids: one prompt (a list of ints or int64 [T]) or several (lists of different lengths, or
        int64 [B, T]). mask [B, T]: nonzero where a padded batch has tokens, on whatever side.
        state: go on from it; it is stale then.
        places: of each sequence, which of its tokens are read, ascending numbers that end with the
        last; they keep their positions. None: where the model was compiled to cut prompts, and
        these begin a text, `self.places(ids)`, else all.
        adapters: of a new text, a name for all sequences or a list of one for each, None for the
        model alone; a state keeps those that it began with.
        Raises BadTokens, TooManySequences, ContextFull, UnknownAdapter, InputMismatch; the state is
        then as it was.
        """
        prompts = self._prompts(ids, mask)
        starts = (0,) * len(prompts) if state is None else state.lengths
        if len(starts) != len(prompts):
            raise BadTokens(f"ids: expected {len(starts)} sequences, found {len(prompts)}")
        if state is None:
            memory = self._empty(len(prompts), adapters)
        elif adapters is None:
            memory = state.memory
        else:
            raise InputMismatch("adapters: a state keeps those that it began with")
        sizes = torch.tensor([len(p) for p in prompts])
        before = torch.zeros_like(sizes) if state is None else state.positions
        if places is not None:
            if not self.spec.positions:
                raise BadTokens("places: the model was compiled without compact=infopt.Compaction")
            kept = check_places(places, prompts)
        elif state is None and self.spec.compact:
            counts = [self.spec.compact.kept(len(p)) for p in prompts]
            self._check_room(starts, counts, sizes.tolist())
            kept = self.spec.compact.places(prompts, self.filter.run)
        else:
            kept = [torch.arange(len(p)) for p in prompts]
        texts = [p[at] for p, at in zip(prompts, kept)]
        where = [at + first for at, first in zip(kept, before)]
        return self._read(texts, where, before + sizes, state, memory)

    def places(
        self, ids: Prompts, *, mask: Tensor | None = None, keep: float | None = None
    ) -> list[Tensor]:
        """Which tokens of each prompt `prefill` reads, ascending int64: all of them, unless the
        model was compiled to cut prompts. keep: so much of them, instead of what it was compiled
        with.

        Raises BadTokens, TooManySequences; ContextFull for more tokens than there are positions.
        """
        prompts = self._prompts(ids, mask)
        if keep is not None and not 0 < keep <= 1:
            raise ValueError(f"keep: expected a share in (0, 1], found {keep}")
        if self.spec.compact is None:
            return [torch.arange(len(p)) for p in prompts]
        none = [0] * len(prompts)
        self._check_room(none, none, [len(p) for p in prompts])
        return self.spec.compact.places(prompts, self.filter.run, keep)

    def _read(
        self,
        prompts: list[Tensor],
        where: list[Tensor],
        after: Tensor,
        state: State | None,
        memory: Memory,
    ) -> State:
        """Tokens, and of each where it stands in its text; after: where the next ones will.
        memory: that of `state`, or an empty one."""
        counts = [len(p) for p in prompts]
        starts = (0,) * len(prompts) if state is None else state.lengths
        self._check_room(starts, counts, after.tolist())
        if state is None and self._pool and len(prompts) > 1:
            shared = min(common_beginning(prompts), common_beginning(where))
            if isinstance(memory, AdaptedMemory) and len(set(memory.chosen.adapters)) > 1:
                shared = 0  # each has keys and values of its own
            if shared >= self.spec.page:  # computed once, and kept once
                one = prompts[0][:shared], where[0][:shared]
                first_of = memory.pick([0])
                beginning = self._read([one[0]], [one[1]], one[1][-1:] + 1, None, first_of)
                forked = self.fork(beginning, len(prompts))
                prompts, where = ([x[shared:] for x in rows] for rows in (prompts, where))
                return self._read(prompts, where, after, forked, forked.memory)
        padded, positions = padded_rows(prompts), padded_rows(where)
        memory = memory if state is None else state.take()
        ends, begun = torch.tensor(counts), torch.tensor(starts)
        most = self.spec.chunk or padded.shape[1]
        logits = torch.empty(0)
        for first in range(0, padded.shape[1], most):
            part = padded[:, first : first + most]
            new = (ends - first).clamp(0, part.shape[1])
            last, at = (new[:, None] - 1).clamp(min=0), positions[:, first : first + most]
            made = self._run(part, memory, begun + first, new, last, at)
            some = (new[:, None] > 0).to(self._where)
            logits = torch.where(some, made[:, 0], logits) if first else made[:, 0]
        lengths = tuple([a + b for a, b in zip(starts, counts)])
        return State(memory, lengths, torch.tensor(lengths), logits, after)

    def fork(self, state: State, sequences: int) -> State:
        """So many sequences that go on from the one of `state`, which stays as it is: a beginning
        that several texts share is computed once. Each has it in memory of its own, of which pages
        (KV(page=...)) are copied only where they are written to.

        Raises ValueError for a state of several sequences, TooManySequences, StaleState.
        """
        if len(state.lengths) != 1 or sequences < 1:
            found = f"a state of {len(state.lengths)} and sequences={sequences}"
            raise ValueError(
                f"expected a state of one sequence and 1 or more of them, found {found}"
            )
        self._check_batch(sequences)
        return state.pick([0] * sequences)

    def join(self, states: Sequence[State]) -> State:
        """The sequences of all these states as one, which are stale then. Pages stay where they
        are, other memory is copied.

        Raises ValueError for no state or one given twice, TooManySequences, StaleState.
        """
        if not states or len({id(state) for state in states}) < len(states):
            raise ValueError(f"expected different states, 1 or more, found {list(states)}")
        self._check_batch(sum(len(state.lengths) for state in states))
        for state in states:
            _ = state.memory  # before any is taken
        first, *others = [state.take() for state in states]
        lengths = tuple([n for state in states for n in state.lengths])
        logits = torch.cat([state.logits for state in states])
        positions = torch.cat([state.positions for state in states])
        return State(first.join(others), lengths, torch.tensor(lengths), logits, positions)

    def keep(self, state: State, rows: Sequence[int]) -> State:
        """Only these sequences of `state`, by their numbers, in this order; `state` is stale then,
        and what the others had of memory is given back.

        Raises ValueError for none, one twice or one that there is not, StaleState.
        """
        if (
            not rows
            or len(set(rows)) < len(rows)
            or not set(rows) <= set(range(len(state.lengths)))
        ):
            found = f"{list(rows)} of {len(state.lengths)}"
            raise ValueError(f"rows: expected different numbers of sequences, found {found}")
        kept = state.pick(rows)
        state.take()
        return kept

    def logits(self, ids: Prompts, chunk: int | None = None, *, adapters: Names = None) -> Tensor:
        """The logits after every token of one prompt, [T, V], of which none is left out: for
        perplexity.

        chunk: so many tokens of it at a time; 1 for what steps compute, where the cache's policy
        reads less in a step than in a prompt.
        Raises as prefill does.
        """
        (prompt,) = self._prompts(ids, None)
        self._check_room([0], [len(prompt)], [len(prompt)])
        memory, made = self._empty(1, adapters), []
        most = min(chunk or len(prompt), self.spec.chunk or len(prompt))
        for first in range(0, len(prompt), most):
            part = prompt[None, first : first + most]
            size = torch.tensor([part.shape[1]])
            rows = torch.arange(part.shape[1])[None]
            start = torch.tensor([first])
            made.append(self._run(part, memory, start, size, rows, rows + first)[0])
        return torch.cat(made)

    def step(self, state: State, next_ids: Tensor | Sequence[int] | int) -> State:
        """The state after one more token of each sequence: int64 [B] or [B, 1], or a list.

        Raises BadTokens, ContextFull, StaleState; the state is then as it was.
        """
        ids = torch.as_tensor(next_ids)
        sequences = len(state.lengths)
        if ids.dtype is not torch.int64 or ids.numel() != sequences or ids.dim() > 2:
            raise BadTokens(
                f"next_ids: expected int64 [{sequences}], found {ids.dtype} {list(ids.shape)}"
            )
        check_tokens(ids, self.spec.vocabulary)
        return self._step(state, ids.reshape(sequences, 1))

    def decode(self, state: State, n: int) -> tuple[Tensor, State]:
        """The next n tokens, greedily: (int64 [B, n], the state after them). On a GPU the work may
        still be under way: each step reads the token where the one before has chosen it."""
        self._check_room(state.lengths, [n] * len(state.lengths), (state.positions + n).tolist())
        tokens = []
        for _ in range(n):
            tokens.append(state.logits.argmax(-1, keepdim=True))
            state = self._step(state, tokens[-1])
        return torch.cat(tokens, 1) if tokens else torch.zeros(len(state.lengths), 0).long(), state

    def generate(
        self,
        ids: Prompts,
        max_new_tokens: int | None = None,
        *,
        mask: Tensor | None = None,
        stop: int | Collection[int] = (),
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        speculate: int = 0,
        adapters: Names = None,
    ) -> Iterator[Any]:
        """The tokens that follow, as they come: ints for one prompt given as a flat list or
        [T]; lists of one int per sequence for several, None for those that have ended.

        max_new_tokens: None until the context is full. stop: ids that end a sequence; they are
        still given. temperature 0 is greedy; else choices are by chance (decoding/sampling.py).
        speculate: so many tokens at most of each sequence are guessed from its text so far and
        checked in one step. Tokens, or the chances of them, stay those of single steps, as far as
        sums in another order of rounding do; with one prompt one seed also gives the same tokens.
        adapters: as of prefill.
        Raises as prefill does, and ContextFull where max_new_tokens cannot fit: at once, before the
        first token is asked for.
        """
        prompts = self._prompts(ids, mask)
        single = mask is None and is_flat(ids)
        stops = {stop} if isinstance(stop, int) else set(stop)
        sampler = Sampler(temperature, top_k, top_p, seed, self._where)
        sizes, compact = [len(p) for p in prompts], self.spec.compact
        counts = [compact.kept(n) for n in sizes] if compact else sizes
        if speculate < 0:
            raise ValueError(f"speculate: expected 0 or more, found {speculate}")
        if max_new_tokens is not None:
            if max_new_tokens < 0:
                raise ValueError(f"max_new_tokens: expected 0 or more, found {max_new_tokens}")
            after = [n + max_new_tokens for n in sizes]
            self._check_room(counts, [max_new_tokens] * len(counts), after)
        else:
            max_new_tokens = self.spec.max_length - max(counts)
            if self.spec.positions:
                max_new_tokens = max(0, min(max_new_tokens, self.spec.positions - max(sizes)))
        state = self.prefill(prompts, adapters=adapters)
        if speculate:
            lookups = [PromptLookup(prompt.tolist()) for prompt in prompts]
            made = Speculation(self._run, lookups, speculate, sampler, self.spec.group)
            return made.tokens(state, max_new_tokens, stops, single)
        return self._tokens(state, max_new_tokens, stops, sampler, single)

    def _tokens(
        self, state: State, count: int, stops: set[int], sampler: Sampler, single: bool
    ) -> Iterator[Any]:
        ended = [False] * len(state.lengths)
        rows = list(range(len(ended)))  # of `state`: which sequence each is
        for number in range(count):
            ids = sampler(_spread(state.logits, rows, len(ended)))
            arriving, more = arrival(ids), number + 1 < count
            if more and self._ahead:  # where it was the last one, this step is for nothing
                state = self._step(state, ids)
            chosen = arriving()
            yield (
                chosen[0]
                if single
                else [None if done else token for done, token in zip(ended, chosen)]
            )
            if stops:
                ended = [done or token in stops for done, token in zip(ended, chosen)]
                if all(ended):
                    return
                if self._pool and any(ended[row] for row in rows):  # pages are given back
                    going = [n for n, row in enumerate(rows) if not ended[row]]
                    state, rows = self.keep(state, going), [rows[n] for n in going]
            if more and not self._ahead:
                state = self._step(state, ids if len(rows) == len(ended) else ids[rows])

    def save(self, path: str | Path, **options: Any) -> Path:
        """Write the artifact; infopt.load reads it, without transformers. Options as those of
        Compiled.save; `attach`: files that travel along, such as a tokenizer's."""
        if self._save is None:
            raise ValueError("this model was loaded: copy the folder that it was loaded from")
        return self._save(path, **options)

    def _step(self, state: State, ids: Tensor) -> State:
        lengths, starts = state.lengths, state.starts
        positions, ends = state.positions, starts + 1
        after = ends if positions is starts else positions + 1
        if max(lengths) >= self.spec.max_length or self.spec.positions:
            self._check_room(lengths, [1] * len(lengths), after.tolist())
        at = state.places or Places.of(starts, positions, self._where)
        memory = state.take()
        given = ids, memory, at.starts, at.ones, at.zeros, at.positions[:, None]
        logits = self._run(*given, (starts, ends))[:, 0]
        grown = tuple([n + 1 for n in lengths])
        return State(memory, grown, ends, logits, after, at.after(ends, after))

    def _run(
        self,
        ids: Tensor,
        memory: Memory,
        starts: Tensor,
        counts: Tensor,
        picks: Tensor,
        positions: Tensor,
        held: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Logits [B, R, V] of the rows `picks` [B, R] of ids [B, T], which stand at `positions`
        [B, T] of their texts; the cache is written. held: how many tokens it has before and then,
        on the CPU; None where starts and counts are there."""
        given = [ids, starts, counts, picks]
        if self.spec.positions:
            given.append(positions)
        before, after = held or (starts, starts + counts)
        (logits,) = memory.run(self.program, [x.to(self._where) for x in given], before, after)
        return logits

    def _empty(self, sequences: int, adapters: Names = None) -> Memory:
        """Raises UnknownAdapter, InputMismatch."""
        if self.adapters is None and adapters is not None:
            raise InputMismatch("adapters: the model was compiled without adapters=infopt.Adapters")
        chosen = None if self.adapters is None else self.adapters.choose(adapters, sequences)
        memory: Memory
        if self._pool:
            memory = PagedMemory.empty(self._pool, sequences, self.spec.max_length)
        else:
            memory = OwnMemory(self.spec.empty(sequences, self._where))
        return memory if chosen is None else AdaptedMemory(memory, chosen, self._where)

    def _prompts(self, ids: Prompts, mask: Tensor | None) -> list[Tensor]:
        """Each sequence's tokens, int64. Raises BadTokens, TooManySequences."""
        found = read_prompts(ids, mask)
        self._check_batch(len(found))
        for row in found:
            check_tokens(row, self.spec.vocabulary)
        return found

    def _check_batch(self, sequences: int) -> None:
        if sequences > self.spec.batch:
            raise TooManySequences(
                f"{sequences} sequences, but the model was compiled for batch={self.spec.batch}"
            )

    def _check_room(
        self, lengths: Sequence[int], counts: Sequence[int], ends: Sequence[int]
    ) -> None:
        """ends: how long each text is then, with what the cache does not have of it."""
        for index, (length, count) in enumerate(zip(lengths, counts)):
            if length + count > self.spec.max_length:
                raise ContextFull(
                    f"sequence {index}: {length} tokens and {count} more, but the model was "
                    f"compiled for max_length={self.spec.max_length}"
                )
        for index, end in enumerate(ends):
            if end > self.spec.positions > 0:
                raise ContextFull(
                    f"sequence {index}: a text of {end} tokens, but the model has "
                    f"{self.spec.positions} positions"
                )

    def __repr__(self) -> str:
        s = self.spec
        return f"<infopt.CausalLM of {s.batch} sequences of {s.max_length} tokens>"


def _spread(logits: Tensor, rows: list[int], sequences: int) -> Tensor:
    """Logits of all sequences, 0 for those that are not among `rows`: chances stay theirs."""
    if len(rows) == sequences:
        return logits
    made = logits.new_zeros(sequences, logits.shape[1])
    made[rows] = logits
    return made
