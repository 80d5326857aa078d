"""A compiled causal language model: prefill, step, decode and generate over a cache in place."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infopt.runtime.errors import BadTokens, ContextFull, StaleState, TooManySequences
from infopt.runtime.kv_memory import Memory, OwnMemory
from infopt.runtime.kv_pages import PagedMemory, PagePool
from infopt.runtime.plan_check import dtype_of
from infopt.runtime.prompt_lookup import PromptLookup
from infopt.runtime.sampling import Sampler

Prompts = Tensor | Sequence[int] | Sequence[Sequence[int]] | Sequence[Tensor]


@dataclass(frozen=True)
class CausalSpec:
    """What a compiled causal model is made for.

    stores: of every store of the cache, its sizes behind the batch, its dtype's name, and what it
        starts with
    group: with every so many tokens the cache changes how it keeps them, and guesses end before;
        0: never
    chunk: the most tokens of one call; longer prompts are cut. None: any number
    page: the stores' sizes are those of a page of so many tokens, and all sequences have theirs in
        one pool; 0: each sequence has stores of its own
    """

    vocabulary: int
    max_length: int
    batch: int
    stores: tuple[tuple[tuple[int, ...], str, float], ...]
    group: int = 0
    chunk: int | None = None
    page: int = 0

    def to_json(self) -> dict[str, Any]:
        stores = [
            {"shape": list(s), "dtype": dtype, "fill": fill} for s, dtype, fill in self.stores
        ]
        return {
            "vocabulary": self.vocabulary,
            "max_length": self.max_length,
            "batch": self.batch,
            "stores": stores,
            "group": self.group,
            "chunk": self.chunk,
            "page": self.page,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> CausalSpec:
        stores = tuple((tuple(s["shape"]), str(s["dtype"]), s["fill"]) for s in record["stores"])
        sizes = (record["vocabulary"], record["max_length"], record["batch"])
        return cls(*sizes, stores, record["group"], record["chunk"], record.get("page", 0))

    def empty(self, sequences: int) -> list[Tensor]:
        """The stores of so many sequences without a token."""
        return [
            torch.full((sequences, *shape), fill, dtype=dtype_of(name, "stores"))
            if fill  # memory of zeros is touched as tokens come
            else torch.zeros(sequences, *shape, dtype=dtype_of(name, "stores"))
            for shape, name, fill in self.stores
        ]

    def pool(self) -> PagePool:
        """Pages for a batch of full sequences; more are made where more texts are kept."""
        kinds = [
            (heads, width, dtype_of(name, "stores")) for (heads, _, width), name, _ in self.stores
        ]
        return PagePool(kinds, self.page, self.batch * -(-self.max_length // self.page))


class State:
    """Where a batch of sequences stands.

    logits   of each sequence's last token, [B, V]
    lengths  how many tokens of each sequence are in the cache

    Stepping hands the cache's memory on to the new state; the old one can only be read.
    """

    __slots__ = ("_memory", "_starts", "lengths", "logits")

    def __init__(
        self, memory: Memory, lengths: tuple[int, ...], starts: Tensor, logits: Tensor
    ) -> None:
        self._memory: Memory | None = memory
        self._starts = starts
        self.lengths, self.logits = lengths, logits

    def copy(self) -> State:
        """The same state with memory of its own: both may be stepped."""
        return self._pick(range(len(self.lengths)))

    @property
    def memory(self) -> Memory:
        """The cache. Raises StaleState."""
        if self._memory is None:
            raise StaleState("this state was stepped: use the state that the step gave, or copy()")
        return self._memory

    @property
    def stores(self) -> list[Tensor]:
        """The tensors that hold the cache. Raises StaleState."""
        return self.memory.stores

    @property
    def bytes(self) -> int:
        """Memory of the cache: what is reserved, of pages those that its texts have (what they
        have in common once). Raises StaleState."""
        return self.memory.bytes

    def take(self) -> Memory:
        """The cache, which is no longer this state's. Raises StaleState."""
        memory, self._memory = self.memory, None
        return memory

    def _pick(self, rows: Sequence[int]) -> State:
        """These sequences, with memory of their own; this state stays as it is."""
        lengths = tuple([self.lengths[row] for row in rows])
        memory = self.memory.pick(rows)
        return State(memory, lengths, torch.tensor(lengths), self.logits[torch.tensor(rows)])

    def __repr__(self) -> str:
        stale = ", stale" if self._memory is None else ""
        return (
            f"<infopt.State of {len(self.lengths)} sequences, {list(self.lengths)} tokens{stale}>"
        )


class CausalLM:
    """A compiled causal language model.

    spec     the vocabulary, the room for tokens, the largest batch
    program  what was compiled or loaded: its report, its notes
    """

    def __init__(
        self, spec: CausalSpec, program: Any, save: Callable[..., Path] | None = None
    ) -> None:
        self.spec, self.program, self._save = spec, program, save
        self._pool = spec.pool() if spec.page else None

    @property
    def report(self) -> Any:
        """What the compiler did and why; None of a loaded model."""
        return getattr(self.program, "report", None)

    def prefill(
        self, ids: Prompts, *, mask: Tensor | None = None, state: State | None = None
    ) -> State:
        """The state after these tokens: `state.logits` are those of each sequence's last token.

        ids: one prompt (a list of ints or int64 [T]) or several (lists of different lengths, or
        int64 [B, T]). mask [B, T]: nonzero where a padded batch has tokens, on whatever side.
        state: go on from it; it is stale then.
        Raises BadTokens, TooManySequences, ContextFull; the state is then as it was.
        """
        prompts = self._prompts(ids, mask)
        starts = (0,) * len(prompts) if state is None else state.lengths
        if len(starts) != len(prompts):
            raise BadTokens(f"ids: expected {len(starts)} sequences, found {len(prompts)}")
        counts = [len(p) for p in prompts]
        self._check_room(starts, counts)
        if state is None and self._pool and len(prompts) > 1:
            shared = _common_beginning(prompts)
            if shared >= self.spec.page:  # computed once, and kept once
                beginning = self.prefill(prompts[0][:shared])
                rest = [p[shared:] for p in prompts]
                return self.prefill(rest, state=self.fork(beginning, len(prompts)))
        padded = torch.zeros(len(prompts), max(counts), dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            padded[row, : len(prompt)] = prompt
        memory = self._empty(len(prompts)) if state is None else state.take()
        ends, begun = torch.tensor(counts), torch.tensor(starts)
        most = self.spec.chunk or padded.shape[1]
        logits = torch.empty(0)
        for first in range(0, padded.shape[1], most):
            part = padded[:, first : first + most]
            new = (ends - first).clamp(0, part.shape[1])
            made = self._run(part, memory, begun + first, new, (new[:, None] - 1).clamp(min=0))
            logits = torch.where(new[:, None] > 0, made[:, 0], logits) if first else made[:, 0]
        lengths = tuple([a + b for a, b in zip(starts, counts)])
        return State(memory, lengths, torch.tensor(lengths), logits)

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
        return state._pick([0] * sequences)

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
        return State(first.join(others), lengths, torch.tensor(lengths), logits)

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
        kept = state._pick(rows)
        state.take()
        return kept

    def logits(self, ids: Prompts, chunk: int | None = None) -> Tensor:
        """The logits after every token of one prompt, [T, V]: for perplexity.

        chunk: so many tokens of it at a time; 1 for what steps compute, where the cache's policy
        reads less in a step than in a prompt.
        Raises as prefill does.
        """
        (prompt,) = self._prompts(ids, None)
        self._check_room([0], [len(prompt)])
        memory, made = self._empty(1), []
        most = min(chunk or len(prompt), self.spec.chunk or len(prompt))
        for first in range(0, len(prompt), most):
            part = prompt[None, first : first + most]
            size = torch.tensor([part.shape[1]])
            rows = torch.arange(part.shape[1])[None]
            made.append(self._run(part, memory, torch.tensor([first]), size, rows)[0])
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
        self._check_ids(ids)
        return self._step(state, ids.reshape(sequences, 1))

    def decode(self, state: State, n: int) -> tuple[Tensor, State]:
        """The next n tokens, greedily: (int64 [B, n], the state after them)."""
        self._check_room(state.lengths, [n] * len(state.lengths))
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
    ) -> Iterator[Any]:
        """The tokens that follow, as they come: ints for one prompt given as a flat list or
        [T]; lists of one int per sequence for several, None for those that have ended.

        max_new_tokens: None until the context is full. stop: ids that end a sequence; they are
        still given. temperature 0 is greedy; else choices are by chance (runtime/sampling.py).
        speculate: so many tokens at most of each sequence are guessed from its text so far and
        checked in one step. Tokens, or the chances of them, stay those of single steps, as far as
        sums in another order of rounding do; with one prompt one seed also gives the same tokens.
        Raises as prefill does, and ContextFull where max_new_tokens cannot fit: at once, before the
        first token is asked for.
        """
        prompts = self._prompts(ids, mask)
        single = mask is None and _is_flat(ids)
        stops = {stop} if isinstance(stop, int) else set(stop)
        sampler = Sampler(temperature, top_k, top_p, seed)
        counts = [len(p) for p in prompts]
        if speculate < 0:
            raise ValueError(f"speculate: expected 0 or more, found {speculate}")
        if max_new_tokens is not None:
            if max_new_tokens < 0:
                raise ValueError(f"max_new_tokens: expected 0 or more, found {max_new_tokens}")
            self._check_room(counts, [max_new_tokens] * len(counts))
        else:
            max_new_tokens = self.spec.max_length - max(counts)
        state = self.prefill(prompts)
        if speculate:
            lookups = [PromptLookup(prompt.tolist()) for prompt in prompts]
            given = state, max_new_tokens, stops, lookups, speculate, sampler, single
            return self._guessed_tokens(*given)
        return self._tokens(state, max_new_tokens, stops, sampler, single)

    def _tokens(
        self, state: State, count: int, stops: set[int], sampler: Sampler, single: bool
    ) -> Iterator[Any]:
        ended = [False] * len(state.lengths)
        rows = list(range(len(ended)))  # of `state`: which sequence each is
        for number in range(count):
            ids = sampler(_spread(state.logits, rows, len(ended)))
            chosen = ids.flatten().tolist()
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
            if number + 1 < count:
                state = self._step(state, ids if len(rows) == len(ended) else ids[rows])

    def _guessed_tokens(
        self,
        state: State,
        count: int,
        stops: set[int],
        lookups: list[PromptLookup],
        most: int,
        sampler: Callable[[Tensor], Tensor],
        single: bool,
    ) -> Iterator[Any]:
        """As _tokens. Sequences whose guesses are right run ahead of the others."""
        chosen: list[list[int]] = [[] for _ in lookups]
        done = [False] * len(lookups)

        def choose(row: int, tokens: list[int]) -> None:
            for token in tokens:
                chosen[row].append(token)
                lookups[row].add(token)
                if token in stops or len(chosen[row]) == count:
                    done[row] = True
                    return

        if count:
            for row, token in enumerate(sampler(state.logits).flatten().tolist()):
                choose(row, [token])
        for number in range(count):
            while any(not end and len(own) == number for end, own in zip(done, chosen)):
                texts = []
                for own, lookup, end, length in zip(chosen, lookups, done, state.lengths):
                    room = min(most, count - len(own) - 1, self._guessable(length))
                    texts.append([] if end else [own[-1], *lookup.draft(room)])
                found, state = self._verify(state, texts, sampler)
                for row, tokens in enumerate(found):
                    choose(row, tokens)
            next_ones = [own[number] if number < len(own) else None for own in chosen]
            if all(token is None for token in next_ones):
                return
            yield next_ones[0] if single else next_ones

    def _guessable(self, length: int) -> int:
        """How many guesses may follow the next token in one step."""
        if not self.spec.group:
            return self.spec.max_length
        return max(0, self.spec.group - length % self.spec.group - 2)

    def _verify(
        self, state: State, texts: list[list[int]], sampler: Callable[[Tensor], Tensor]
    ) -> tuple[list[list[int]], State]:
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
        starts = torch.where(counts > 0, state._starts, 0)
        memory = state.take()
        made = self._run(ids, memory, starts, counts, places)
        found: list[list[int]] = []
        logits, lengths = state.logits.clone(), list(state.lengths)
        for row, text in enumerate(texts):
            tokens: list[int] = []
            for place in range(len(text)):
                tokens.append(int(sampler(made[row, place : place + 1])))
                if text[place + 1 : place + 2] != tokens[-1:]:
                    break
            found.append(tokens)
            if tokens:
                logits[row] = made[row, len(tokens) - 1]
                lengths[row] += len(tokens)  # what was wrong lies behind, and is written over
        return found, State(memory, tuple(lengths), torch.tensor(lengths), logits)

    def save(self, path: str | Path, **options: Any) -> Path:
        """Write the artifact; infopt.load reads it, without transformers. Options as those of
        Compiled.save; `attach`: files that travel along, such as a tokenizer's."""
        if self._save is None:
            raise ValueError("this model was loaded: copy the folder that it was loaded from")
        return self._save(path, **options)

    def _step(self, state: State, ids: Tensor) -> State:
        lengths, starts = state.lengths, state._starts
        if max(lengths) >= self.spec.max_length:
            self._check_room(lengths, [1] * len(lengths))
        memory, ones = state.take(), torch.ones_like(starts)
        logits = self._run(ids, memory, starts, ones, torch.zeros_like(ids))
        return State(memory, tuple([n + 1 for n in lengths]), starts + 1, logits[:, 0])

    def _run(
        self, ids: Tensor, memory: Memory, starts: Tensor, counts: Tensor, picks: Tensor
    ) -> Tensor:
        """Logits [B, R, V] of the rows `picks` [B, R] of ids [B, T]; the cache is written."""
        (logits,) = memory.run(self.program, [ids, starts, counts, picks])
        return logits

    def _empty(self, sequences: int) -> Memory:
        if self._pool:
            return PagedMemory.empty(self._pool, sequences, self.spec.max_length)
        return OwnMemory(self.spec.empty(sequences))

    def _prompts(self, ids: Prompts, mask: Tensor | None) -> list[Tensor]:
        """Each sequence's tokens, int64. Raises BadTokens, TooManySequences."""
        if isinstance(ids, Tensor) or _is_flat(ids):
            rows = _tensor(ids)
            if rows.dim() not in (1, 2):
                raise BadTokens(f"ids: expected [T] or [B, T], found {list(rows.shape)}")
            found = list(rows[None] if rows.dim() == 1 else rows)
        else:
            found = [_tensor(row) for row in ids]
        if mask is not None:
            if not isinstance(ids, Tensor) or tuple(mask.shape) != tuple(ids.shape):
                raise BadTokens("mask: expected the shape of ids, which must be a tensor [B, T]")
            found = [row[kept != 0] for row, kept in zip(found, mask.reshape(len(found), -1))]
        if not found:
            raise BadTokens("ids: expected at least one sequence, found none")
        self._check_batch(len(found))
        for index, row in enumerate(found):
            if row.dim() != 1 or not len(row):
                raise BadTokens(f"sequence {index} is empty: expected at least one token")
            self._check_ids(row)
        return found

    def _check_batch(self, sequences: int) -> None:
        if sequences > self.spec.batch:
            raise TooManySequences(
                f"{sequences} sequences, but the model was compiled for batch={self.spec.batch}"
            )

    def _check_ids(self, ids: Tensor) -> None:
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.spec.vocabulary:
            wrong = low if low < 0 else high
            raise BadTokens(f"token {wrong} is outside the vocabulary of {self.spec.vocabulary}")

    def _check_room(self, lengths: Sequence[int], counts: Sequence[int]) -> None:
        for index, (length, count) in enumerate(zip(lengths, counts)):
            if length + count > self.spec.max_length:
                raise ContextFull(
                    f"sequence {index}: {length} tokens and {count} more, but the model was "
                    f"compiled for max_length={self.spec.max_length}"
                )

    def __repr__(self) -> str:
        s = self.spec
        return f"<infopt.CausalLM of {s.batch} sequences of {s.max_length} tokens>"


def _common_beginning(prompts: Sequence[Tensor]) -> int:
    """How many tokens all begin with, so that each has one more."""
    least = min(len(p) for p in prompts) - 1
    first = prompts[0][:least]
    same = torch.stack([p[:least] == first for p in prompts]).all(0)
    return int(same.long().cumprod(0).sum())


def _spread(logits: Tensor, rows: list[int], sequences: int) -> Tensor:
    """Logits of all sequences, 0 for those that are not among `rows`: chances stay theirs."""
    if len(rows) == sequences:
        return logits
    made = logits.new_zeros(sequences, logits.shape[1])
    made[rows] = logits
    return made


def _is_flat(ids: Any) -> bool:
    """One prompt: a tensor [T], or a list of ints (or an empty one)."""
    if isinstance(ids, Tensor):
        return ids.dim() == 1
    return not len(ids) or isinstance(ids[0], int)


def _tensor(ids: Any) -> Tensor:
    try:
        made = torch.as_tensor(ids)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadTokens(f"ids: expected integers, found {ids!r:.60}: {error}") from None
    if made.numel() == 0:
        return made.long()
    if made.is_floating_point() or made.is_complex() or made.dtype is torch.bool:
        raise BadTokens(f"ids: expected integers, found {made.dtype}")
    return made.long()
