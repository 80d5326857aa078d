"""infopt.compile_causal_lm: a decoder as one program over functional state.

The program takes ids [B, T] with B and T open, how many tokens of each sequence the cache has, how
many of ids are new, which of them logits are wanted for, and the cache; it gives those logits and
updates the cache in place. Prefill and decoding are calls of the same program, so that they share
weights, and nothing is compiled again while sequences grow.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import infopt.compiler.decoding.transformers_cache as transformers_cache
from infopt.codegen.traced_ops import adopt_kernel_ops
from infopt.compiler.adapter_room import no_adapters, room_of, with_slots
from infopt.compiler.compiled import build
from infopt.compiler.decoding.contiguous import Contiguous
from infopt.compiler.decoding.paged import Paged
from infopt.compiler.decoding.policy import LayerShape, Policy
from infopt.compiler.decoding.prompt_filter import (
    build_filter,
    does_not_pay,
    with_layer,
)
from infopt.compiler.decoding.prompt_parts import in_parts
from infopt.compiler.decoding.tracing_cache import ShapeCache, TracingCache
from infopt.compiler.dynamo import refuse_fallbacks
from infopt.compiler.errors import BadOption, TraceDeclined
from infopt.compiler.flat_program import FlatProgram, save_with
from infopt.compiler.graph import Node
from infopt.compiler.one_device import CPU, device_of
from infopt.compiler.options import Options
from infopt.compiler.report import Report
from infopt.compiler.target import Target
from infopt.compiler.tracing.export import Exported, check_module, export
from infopt.passes.slice_runs import SliceRuns
from infopt.runtime.decoding.adapted import SLOTS_AT
from infopt.runtime.decoding.causal_lm import CausalLM
from infopt.runtime.decoding.compaction import FILTER, Compaction
from infopt.runtime.decoding.layout import KV
from infopt.runtime.decoding.pages import PagedMemory
from infopt.runtime.decoding.spec import CausalSpec
from infopt.runtime.device import Device
from infopt.runtime.forked import torch_threads
from infopt.runtime.structure import Leaf

_TOKENS, _ROWS = 5, 3  # of the example that is traced
_PREFIX = "model."  # of the names of a model's weights within _Step
_ENDLESS = 2**30  # positions of a model that names no last one


def compile_causal_lm(
    model: torch.nn.Module,
    *,
    max_length: int,
    batch: int = 1,
    kv: KV | Policy | None = None,
    compact: Compaction | None = None,
    target: str | Target = "native",
    device: Device | None = None,
    **options: Any,
) -> CausalLM:
    """Compile a causal language model for generation.

    model       one of transformers' causal models, or a module `forward(ids, positions, cache)`
                that calls `cache.append(layer, k, v)` and `cache.attend(q, k, v, scale=...)`
                (models/decoder.py shows how)
    max_length  the room of the cache: tokens of a prompt and of what follows
    batch       the most sequences at once
    kv          how the cache is kept: infopt.KV, or a policy such as infopt.kv.Quest; without it
                exactly as the model computes it. Policies are for CPUs
    compact     an infopt.Compaction: long prompts are cut to the tokens that matter, which keep
                their positions; max_length is the room for what is left of them. For CPUs
    target      "native", or a machine such as "cpu:avx2" or "cuda:sm90" (Target.parse). The model
                is on the CPU; its weights and the cache go to the GPU
    device      the GPU to run on (runtime/device.py); None: the first of that architecture. Without
                one the result can be saved, not called
    options     see infopt.compiler.options.Options; calibration is a list of tuples (ids,) of
                texts int64 [sequences, tokens] of one length, and so are the samples of a budget,
                which errors are measured on in place of a few random ids; its times are those of
                a step of one token; max_activations is kept by reading prompts in parts

    Raises TraceDeclined with the reason where the model has no such form, BadOption,
    UnreachableBudget.
    """
    limit = options.pop("max_activations", None)
    SliceRuns(limit)  # raises BadOption
    parsed = Options.parse(options)
    for name, value in (("max_length", max_length), ("batch", batch)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise BadOption(f"{name}: expected a positive int, found {value!r}")
    if kv is not None and not isinstance(kv, KV | Policy):
        raise BadOption(f"kv: expected an infopt.KV or an infopt.Policy, found {kv!r}")
    if compact is not None and not isinstance(compact, Compaction):
        raise BadOption(f"compact: expected an infopt.Compaction, found {compact!r}")
    if compact is not None and limit is not None:
        raise BadOption("max_activations: what cuts a prompt reads it at once: not beside compact")
    if max_length < 2:
        raise BadOption(f"max_length: expected 2 or more, found {max_length}")
    check_module(model)
    where = device_of(model.parameters())
    if where != CPU:
        raise TraceDeclined(f"the model is on {where}: expected it on the CPU, and target=...")
    machine = target if isinstance(target, Target) else Target.parse(target)
    report = Report(target=machine.name)
    policy = kv if isinstance(kv, Policy) else _policy_of(kv or KV())
    if machine.kind == "gpu" and (reason := _no_form_on_gpu(policy, compact)):
        raise BadOption(f"{reason}: found kv={kv!r} and compact={compact!r}")
    with torch_threads(), torch.no_grad():
        forward = _forward_of(model)
        layers, vocabulary, windows = _shapes(forward, model)
        reason = policy.declined(layers[-1], max_length, machine)
        if reason is not None:
            report.notes.append(f"kv: {reason}; the cache is kept whole and read whole")
            policy = Contiguous()
        if compact is not None:
            compact = with_layer(compact, layers, policy, windows, max_length)
            if reason := does_not_pay(compact, len(layers)):
                report.notes.append(reason)
                compact = None
        if not policy.endless(layers[0]):
            _check_positions(model, max_length)
        stores = tuple(
            (store.shape, str(store.dtype), store.fill)
            for layer in layers
            for store in policy.stores(layer, max_length).values()
        )
        kept = policy.group, policy.chunk, policy.pooled
        positions = 0 if compact is None else _positions(model) or _ENDLESS
        spec = CausalSpec(vocabulary, max_length, batch, stores, *kept, positions, compact)
        texts = list(_texts("calibration", parsed.calibration or (), spec))
        judging = list(_texts("samples", parsed.budget.samples if parsed.budget else (), spec))
        filter = None
        if compact is not None:
            sizes, calibrating = (vocabulary, batch, positions), [text[0] for text in texts]
            plain = replace(parsed, adapters=None)
            filter = build_filter(forward, model, compact, sizes, calibrating, plain, machine)
        exported, sample = _trace(_Step(forward, model, policy, layers, spec), spec)
        if parsed.adapters is not None:
            exported = with_slots(exported, len(tree_leaves(sample)), SLOTS_AT)

        def chosen(text: tuple) -> Mapping[str, Any]:
            return {} if parsed.adapters is None else no_adapters(len(text[0]))

        def given(text: tuple) -> tuple:
            return exported.sample(text, chosen(text))

        samples, seen = map(given, judging or [sample]), map(given, texts)
        step = given(_whole(sample[0][:1, :1], 1, spec)) if parsed.budget else None
        built = build(*(exported.graph, parsed, machine, report, [*samples], [*seen], device, step))
    if limit is not None:
        spec = in_parts(spec, limit, built.lowered.plan, report)
    refuse_fallbacks(parsed, report)
    room = None
    if parsed.adapters is not None:
        room = room_of(exported, built.graph, parsed.adapters, report, _PREFIX)
    compiled = FlatProgram(exported, built, (sample, chosen(sample)), room=room)
    compiled.about["causal_lm"] = spec.to_json()
    if filter is None:
        return CausalLM(spec, compiled, compiled.save)
    save = partial(save_with, compiled, filter, FILTER, ("causal_lm", "filter"))
    return CausalLM(spec, compiled, save, filter)


def _no_form_on_gpu(policy: Policy, compact: Compaction | None) -> str | None:
    """Why a GPU has no kernels for such a cache."""
    if type(policy) not in (Contiguous, Paged) or compact is not None:
        return "a GPU keeps the whole cache, of whole prompts"
    return None


def _policy_of(kv: KV) -> Policy:
    return Paged(kv) if kv.page else Contiguous(kv)


Forward = Callable[[Tensor, Tensor, Any, Callable[[Tensor], Tensor]], Tensor]


def _forward_of(model: torch.nn.Module) -> Forward:
    """(ids, positions, cache, last) -> logits of the rows that `last` picks of [B, T, ...]."""
    if transformers_cache.is_transformers(model):
        return lambda ids, positions, cache, last: transformers_cache.call(
            model, ids, positions, cache, last
        )
    if {"positions", "cache"} <= set(inspect.signature(model.forward).parameters):
        return lambda ids, positions, cache, last: last(
            model(ids, positions=positions, cache=cache)
        )
    raise TraceDeclined(
        f"{type(model).__name__} is none of transformers' causal models, and its forward has no "
        "arguments positions and cache (docs/decoders.md)"
    )


def _check_positions(model: Any, max_length: int) -> None:
    """Raises BadOption where positions beyond those of a model would be asked for."""
    limit = _positions(model)
    if limit is not None and limit < max_length:
        raise BadOption(f"max_length: the model has {limit} positions, found {max_length}")


def _positions(model: Any) -> int | None:
    """How many positions the model says that it knows."""
    limit = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    return limit if isinstance(limit, int) else None


def _shapes(forward: Forward, model: torch.nn.Module) -> tuple[list[LayerShape], int, set[int]]:
    """What every layer caches, the vocabulary, windows: from a run on two tokens."""
    cache = ShapeCache()
    ids = torch.zeros(1, 2, dtype=torch.int64)
    try:
        logits = forward(ids, torch.arange(2)[None], cache, lambda x: x[:, -1:])
    except Exception as error:
        raise TraceDeclined(
            f"a run with a cache failed: {type(error).__name__}: {error}"
        ) from error
    if not cache.layers or sorted(cache.layers) != list(range(len(cache.layers))):
        raise TraceDeclined(f"expected a cache for layers 0, 1, ..., found {sorted(cache.layers)}")
    rotary = _inverse_frequencies(model) is not None
    layers = [
        replace(cache.layers[i], layer=i, layers=len(cache.layers), rotary=rotary)
        for i in sorted(cache.layers)
    ]
    return layers, logits.shape[-1], cache.windows


def _inverse_frequencies(model: Any) -> Tensor | None:
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


class _Step(torch.nn.Module):
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
        self.register_buffer("inverse_frequencies", _inverse_frequencies(model), persistent=False)

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


def _texts(of: str, given: Sequence[tuple], spec: CausalSpec) -> Iterator[tuple]:
    """Texts as the program takes them: all tokens at once, into an empty cache, or BadOption."""
    most = min(spec.max_length, spec.chunk or spec.max_length)
    for index, args in enumerate(given):
        ids: Any = args[0] if len(args) == 1 else None
        fits = isinstance(ids, Tensor) and ids.dtype == torch.int64 and ids.dim() == 2
        if not fits or not (1 <= ids.shape[0] <= spec.batch and 1 <= ids.shape[1] <= most):
            found = "other arguments" if ids is None else f"{ids.dtype} {list(ids.shape)}"
            raise BadOption(
                f"{of}[{index}]: expected ids int64 [sequences, tokens] of at most "
                f"[{spec.batch}, {most}], found {found}"
            )
        yield _whole(ids, ids.shape[1], spec)


def _whole(ids: Tensor, first: int, spec: CausalSpec) -> tuple:
    """The program's inputs for texts that an empty cache takes at once, and the logits of their
    first tokens."""
    rows, tokens = ids.shape
    counts = torch.full((rows,), tokens)
    picks = torch.arange(first).repeat(rows, 1)
    given: tuple = (ids, torch.zeros_like(counts), counts, picks)
    more = {"positions": torch.arange(tokens).repeat(rows, 1)} if spec.positions else {}
    if not spec.page:
        return (*given, more, spec.empty(rows))
    memory = PagedMemory.empty(spec.pool(), rows, spec.max_length)
    memory.make_room(given[1], counts)  # from empty ones: the ends are the counts
    return (*given, more | {"table": memory.table}, memory.stores)


def _trace(step: _Step, spec: CausalSpec) -> tuple[Exported, tuple]:
    rows = min(2, spec.batch)
    tokens = min(_TOKENS, spec.max_length, spec.chunk or _TOKENS)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(spec.vocabulary, (rows, tokens), generator=generator)
    sample = _whole(ids, min(_ROWS, tokens), spec)
    # torch traces as if an open size were 2 or more, and takes one of 2 at most for a fixed one
    batch: Any = torch.export.Dim("batch", min=1, max=max(3, spec.batch))
    open_rows = {0: batch} if spec.batch > 1 else {}
    most = min(spec.max_length, spec.chunk or spec.max_length)
    length = torch.export.Dim("tokens", min=1, max=max(3, most))
    shapes: dict[str, Any] = {
        "ids": {**open_rows, 1: length},
        "starts": open_rows,
        "counts": open_rows,
        "picks": {**open_rows, 1: torch.export.Dim("rows", min=1, max=max(3, most))},
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
