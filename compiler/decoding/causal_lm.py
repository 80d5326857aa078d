"""infopt.compile_causal_lm: a decoder as one program over functional state.

The program takes ids [B, T] with B and T open, how many tokens of each sequence the cache has, how
many of ids are new, which of them logits are wanted for, and the cache; it gives those logits and
updates the cache in place. Prefill and decoding are calls of the same program, so that they share
weights, and nothing is compiled again while sequences grow.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from functools import partial
from typing import Any

import torch

import infopt.compiler.decoding.transformers_cache as transformers_cache
from infopt.compiler.adapter_room import room_of
from infopt.compiler.compiled import Built, build
from infopt.compiler.decoding.contiguous import Contiguous
from infopt.compiler.decoding.kv_budget import TOKENS, CacheSearch
from infopt.compiler.decoding.paged import Paged
from infopt.compiler.decoding.policy import LayerShape, Policy
from infopt.compiler.decoding.prompt_filter import (
    build_filter,
    does_not_pay,
    with_layer,
)
from infopt.compiler.decoding.prompt_parts import in_parts
from infopt.compiler.decoding.step_program import (
    Forward,
    Step,
    StepProgram,
    checked_ids,
    inverse_frequencies,
    random_ids,
)
from infopt.compiler.decoding.tracing_cache import ShapeCache
from infopt.compiler.dynamo import refuse_fallbacks
from infopt.compiler.errors import BadOption, TraceDeclined
from infopt.compiler.flat_program import FlatProgram, save_with
from infopt.compiler.one_device import CPU, device_of
from infopt.compiler.options import Options
from infopt.compiler.pipeline import Reference
from infopt.compiler.report import Report
from infopt.compiler.target import Target
from infopt.compiler.tracing.export import check_module
from infopt.passes.slice_runs import SliceRuns
from infopt.runtime.decoding.causal_lm import CausalLM
from infopt.runtime.decoding.compaction import FILTER, Compaction
from infopt.runtime.decoding.layout import KV
from infopt.runtime.decoding.spec import CausalSpec
from infopt.runtime.device import Device
from infopt.runtime.forked import torch_threads

_PREFIX = "model."  # of the names of a model's weights within Step
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
                exactly as the model computes it, or as a budget with the technique "kv" chooses.
                Policies are for CPUs
    compact     an infopt.Compaction: long prompts are cut to the tokens that matter, which keep
                their positions; max_length is the room for what is left of them. For CPUs
    target      "native", or a machine such as "cpu:avx2" or "cuda:sm90" (Target.parse). The model
                is on the CPU; its weights and the cache go to the GPU
    device      the GPU to run on (runtime/device.py); None: the first of that architecture. Without
                one the result can be saved, not called
    options     see infopt.compiler.options.Options; calibration is a list of tuples (ids,) of
                texts int64 [sequences, tokens] of one length, and so are the samples of a budget,
                on whose logits errors are measured in place of those of a few random ids; its times
                are those of a step of one token behind as many as the longest sample has, or a full
                cache without samples; max_activations is kept by reading prompts in parts

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
        positions = 0 if compact is None else _positions(model) or _ENDLESS

        def spec_of(policy: Policy) -> CausalSpec:
            stores = tuple(
                (store.shape, str(store.dtype), store.fill)
                for layer in layers
                for store in policy.stores(layer, max_length).values()
            )
            kept = policy.group, policy.chunk, policy.pooled
            return CausalSpec(vocabulary, max_length, batch, stores, *kept, positions, compact)

        spec, budget = spec_of(policy), parsed.budget
        seen = checked_ids("calibration", parsed.calibration or (), spec)
        judged = checked_ids("samples", budget.samples if budget else (), spec)
        longest = max((ids.shape[1] for ids in judged), default=max_length)
        begun = min(longest, max_length - 1)  # tokens in the cache of the step whose time counts
        filter = None
        if compact is not None:
            plain = replace(parsed.beside_budget(), adapters=None)
            sizes = vocabulary, batch, positions
            filter = build_filter(forward, model, compact, sizes, seen, plain, machine)

        def trace(policy: Policy) -> StepProgram:
            spec = spec_of(policy)
            return StepProgram.of(Step(forward, model, policy, layers, spec), spec, parsed.adapters)

        def made(
            program: StepProgram,
            options: Options,
            report: Report,
            reference: Reference | None = None,
        ) -> Built:
            samples = [program.flat(ids) for ids in judged] or [program.flat_sample()]
            step = None
            if options.budget is not None:
                step = program.flat(random_ids(1, 1, program.spec), begun)
            return build(
                *(program.exported.graph, options, machine, report, samples),
                *([program.flat(ids) for ids in seen], device, step),
                own_state=True,
                reference=reference,
            )

        if budget is not None and "kv" in budget.techniques:
            judged = judged or [random_ids(min(2, batch), min(TOKENS, spec.most), spec)]
            search = CacheSearch(
                *(parsed, budget, machine, judged, begun),
                *(policy, kv is not None, trace, made, report),
            )
            program, built = search.best()
        else:
            program = trace(policy)
            built = made(program, parsed, report)
    spec, report = program.spec, built.report
    if limit is not None:
        spec = in_parts(spec, limit, built.lowered.plan, report)
    refuse_fallbacks(parsed, report)
    room = None
    if parsed.adapters is not None:
        room = room_of(program.exported, built.graph, parsed.adapters, report, _PREFIX)
    compiled = FlatProgram(program.exported, built, (program.sample, program.chosen), room=room)
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
    rotary = inverse_frequencies(model) is not None
    layers = [
        replace(cache.layers[i], layer=i, layers=len(cache.layers), rotary=rotary)
        for i in sorted(cache.layers)
    ]
    return layers, logits.shape[-1], cache.windows
