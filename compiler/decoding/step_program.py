"""The program of a decoder's step over a cache of some policy, and its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from infopt.codegen.traced_ops import adopt_kernel_ops
from infopt.compiler.adapter_room import no_adapters, with_slots
from infopt.compiler.adapters import Adapters
from infopt.compiler.decoding.policy import LayerShape, Policy
from infopt.compiler.decoding.tracing_cache import TracingCache
from infopt.compiler.errors import BadOption, TraceDeclined
from infopt.compiler.graph import Node
from infopt.compiler.tracing.export import Exported, export
from infopt.runtime.decoding.adapted import SLOTS_AT
from infopt.runtime.decoding.pages import PagedMemory
from infopt.runtime.decoding.spec import CausalSpec
from infopt.runtime.structure import Leaf

_TOKENS, _ROWS = 5, 3  # of the example that is traced

Forward = Callable[[Tensor, Tensor, Any, Callable[[Tensor], Tensor]], Tensor]


@dataclass(frozen=True)
class StepProgram:
    """A traced step over one kind of cache.

    sample: the inputs that it was traced with; adapted: rows name their adapters
    """

    policy: Policy
    spec: CausalSpec
    exported: Exported
    sample: tuple
    adapted: bool

    @classmethod
    def of(cls, step: Step, spec: CausalSpec, adapters: Adapters | None) -> StepProgram:
        exported, sample = _trace(step, spec)
        if adapters is not None:
            exported = with_slots(exported, len(tree_leaves(sample)), SLOTS_AT)
        return cls(step.policy, spec, exported, sample, adapters is not None)

    @property
    def chosen(self) -> Mapping[str, Any]:
        """What the sample says of adapters."""
        return self._chosen(len(self.sample[0]))

    def _chosen(self, rows: int) -> Mapping[str, Any]:
        return no_adapters(rows) if self.adapted else {}

    def flat(self, ids: Tensor, begun: int = 0) -> tuple:
        """The graph's inputs for a text of which the cache has so many tokens, and every token's
        logits."""
        given = inputs_of(ids, ids.shape[1], self.spec, begun)
        return self.exported.sample(given, self._chosen(len(ids)))

    def flat_sample(self) -> tuple:
        return self.exported.sample(self.sample, self.chosen)


class Step(torch.nn.Module):
    """The program to trace: (ids, starts, counts, picks, more, stores) -> (logits, the stores' next
    values). picks int64 [B, R]: the rows of ids whose logits [B, R, V] are wanted.

    more, each where the spec asks for it: "positions" int64 [B, T], where ids stand in their texts;
    "table" int64 [B, P], the pages of each sequence.
    """

    inverse_frequencies: Tensor | None

    def __init__(
        self,
        forward: Forward,
        model: torch.nn.Module,
        policy: Policy,
        layers: list[LayerShape],
        spec: CausalSpec,
    ) -> None:
        super().__init__()
        self.model = model
        self.through, self.policy, self.layers, self.room = forward, policy, layers, spec.max_length
        self.register_buffer("inverse_frequencies", inverse_frequencies(model), persistent=False)

    def forward(
        self,
        ids: Tensor,
        starts: Tensor,
        counts: Tensor,
        picks: Tensor,
        more: dict[str, Tensor],
        stores: list[Tensor],
    ) -> tuple[Tensor, list[Tensor]]:
        known = self.policy, self.room, self.inverse_frequencies, more.get("table")
        cache = TracingCache(self.layers, stores, starts, counts, *known)
        positions = more.get("positions")
        if positions is None:
            last = (counts - 1).clamp(min=0)
            # padding has the position of the last token: one that the model surely knows
            inside = torch.minimum(torch.arange(ids.shape[1], device=ids.device), last[:, None])
            positions = starts[:, None] + inside

        def pick(x: Tensor) -> Tensor:
            return x.gather(1, picks[:, :, None].expand(-1, -1, x.shape[-1]))

        logits = self.through(ids, positions, cache, pick)
        if cache.read != set(range(len(self.layers))):
            unread = sorted(set(range(len(self.layers))) - cache.read)
            raise TraceDeclined(f"the attention of layers {unread} does not read their caches")
        return logits, cache.stores


def checked_ids(of: str, given: Sequence[tuple], spec: CausalSpec) -> list[Tensor]:
    """Texts that fit into one call of a program, or BadOption."""
    found = []
    for index, args in enumerate(given):
        ids: Any = args[0] if len(args) == 1 else None
        fits = isinstance(ids, Tensor) and ids.dtype == torch.int64 and ids.dim() == 2
        if not fits or not (1 <= ids.shape[0] <= spec.batch and 1 <= ids.shape[1] <= spec.most):
            said = "other arguments" if ids is None else f"{ids.dtype} {list(ids.shape)}"
            raise BadOption(
                f"{of}[{index}]: expected ids int64 [sequences, tokens] of at most "
                f"[{spec.batch}, {spec.most}], found {said}"
            )
        found.append(ids)
    return found


def random_ids(rows: int, tokens: int, spec: CausalSpec) -> Tensor:
    """The same ones for the same sizes."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(spec.vocabulary, (rows, tokens), generator=generator)


def inputs_of(ids: Tensor, first: int, spec: CausalSpec, begun: int = 0) -> tuple:
    """The program's inputs for new tokens of texts that have `begun` ones in the cache (zeros), all
    at once, and the logits of the first of them."""
    rows, tokens = ids.shape
    starts, counts = torch.full((rows,), begun), torch.full((rows,), tokens)
    given: tuple = (ids, starts, counts, torch.arange(first).repeat(rows, 1))
    more = {}
    if spec.positions:
        more["positions"] = torch.arange(begun, begun + tokens).repeat(rows, 1)
    if not spec.page:
        return (*given, more, spec.empty(rows))
    memory = PagedMemory.empty(spec.pool(), rows, spec.max_length)
    memory.make_room(torch.zeros_like(starts), starts + counts)
    return (*given, more | {"table": memory.table}, memory.stores)


def inverse_frequencies(model: Any) -> Tensor | None:
    """f32 [D / 2], of rotary positions whose pairs are halves apart, where the model names them: a
    buffer inv_freq, as transformers' models have one, or config.rope_base."""
    found = {
        tuple(value.tolist()): value.float()
        for module in model.modules()
        if isinstance(value := getattr(module, "inv_freq", None), Tensor) and value.dim() == 1
    }
    config = getattr(model, "config", None)
    base, width = getattr(config, "rope_base", 0), getattr(config, "head_width", 0)
    if not found and base and width:
        return base ** (-torch.arange(0, width, 2) / width)
    return found.popitem()[1] if len(found) == 1 else None


def _trace(step: Step, spec: CausalSpec) -> tuple[Exported, tuple]:
    rows = min(2, spec.batch)
    tokens = min(_TOKENS, spec.most)
    sample = inputs_of(random_ids(rows, tokens, spec), min(_ROWS, tokens), spec)
    # torch traces as if an open size were 2 or more, and takes one of 2 at most for a fixed one
    batch: Any = torch.export.Dim("batch", min=1, max=max(3, spec.batch))
    open_rows = {0: batch} if spec.batch > 1 else {}
    length = torch.export.Dim("tokens", min=1, max=max(3, spec.most))
    shapes: dict[str, Any] = {
        "ids": {**open_rows, 1: length},
        "starts": open_rows,
        "counts": open_rows,
        "picks": {**open_rows, 1: torch.export.Dim("rows", min=1, max=max(3, spec.most))},
        "more": {"positions": {**open_rows, 1: length}} if spec.positions else {},
        "stores": [open_rows for _ in spec.stores],
    }
    if spec.page:
        room = torch.export.Dim("room", min=2)
        shapes["more"]["table"] = open_rows
        shapes["stores"] = [{2: room} for _ in spec.stores]
    exported = export(step.eval(), sample, {}, shapes, Leaf)
    return _with_updates(exported, len(spec.stores)), sample


def _with_updates(exported: Exported, stores: int) -> Exported:
    """The program whose last results are the values that its last inputs hold after the call."""
    graph = adopt_kernel_ops(exported.graph)
    first = len(graph.inputs) - stores
    updates = []
    for index, node in enumerate(graph.outputs[1:]):
        assert isinstance(node, Node)
        updates.append((first + index, node))
    graph = replace(
        graph,
        outputs=graph.outputs[:1],
        results=graph.results[:1],
        memory=graph.memory[:1],
        offsets=graph.offsets[:1],
        updates=tuple(updates),
    )
    return replace(exported, graph=graph, outputs=Leaf(0), rebuild=lambda flat: flat[0])
