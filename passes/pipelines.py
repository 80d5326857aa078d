"""The ordered lists of passes, in labelled blocks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from infopt.compiler.adapters import Adapters
from infopt.compiler.budget import TECHNIQUES, Budget
from infopt.compiler.errors import BadOption
from infopt.compiler.pipeline import Pass
from infopt.compiler.tokens import Tokens
from infopt.passes.attach_adapters import AttachAdapters
from infopt.passes.canonicalize import Canonicalize
from infopt.passes.compress_to_budget import CompressToBudget
from infopt.passes.drop_padding import DropPadding
from infopt.passes.factor_low_rank import FactorLowRank, Ranks, layer_ranks
from infopt.passes.fold_batch_norm import FoldBatchNorm
from infopt.passes.fold_constants import FoldConstants
from infopt.passes.fuse_activation import FuseActivation
from infopt.passes.fuse_add_norm import FuseAddNorm
from infopt.passes.fuse_attention import FuseAttention
from infopt.passes.fuse_conv_epilogue import FuseConvEpilogue
from infopt.passes.fuse_conv_padding import FuseConvPadding
from infopt.passes.fuse_embedding_norm import FuseEmbeddingNorm
from infopt.passes.fuse_gated_mlp import FuseGatedMlp
from infopt.passes.fuse_linear_epilogue import FuseLinearEpilogue
from infopt.passes.fuse_low_rank import FuseLowRank
from infopt.passes.fuse_low_rank_attention import FuseLowRankAttention
from infopt.passes.fuse_norm import FuseNorm
from infopt.passes.fuse_rotary import FuseRotary
from infopt.passes.keep_needed_rows import KeepNeededRows
from infopt.passes.keep_quantized import KeepQuantized
from infopt.passes.merge_tokens import MergeTokens
from infopt.passes.named import named_pass
from infopt.passes.narrow_compute import NarrowCompute
from infopt.passes.pack_activations import PackActivations
from infopt.passes.prune_structures import PruneStructures
from infopt.passes.quantize_to_budget import QuantizeToBudget
from infopt.passes.quantize_weights import Formats, QuantizeWeights, weight_formats
from infopt.passes.recognize_groups import RecognizeGroups
from infopt.passes.recognize_quantized import RecognizeQuantized
from infopt.passes.simplify_masks import SimplifyMasks
from infopt.passes.slice_runs import SliceRuns
from infopt.passes.sparse_activations import SparseActivations
from infopt.passes.sparsify_groups import SparsifyGroups
from infopt.passes.split_transposed import SplitTransposed
from infopt.passes.unfold_patches import UnfoldPatches


def default_passes(
    add: Iterable[Pass | str] = (),
    remove: Iterable[str] = (),
    compute: str | None = None,
    weights: Formats | str | Mapping[str, str] | None = None,
    activations: str | None = None,
    low_rank: Ranks | float | str | Mapping[str, float | str] | None = None,
    budget: Budget | None = None,
    max_activations: int | None = None,
    tokens: Tokens | None = None,
    sparse_activations: float | None = None,
    prune: float | None = None,
    group_sparsity: float | str | None = None,
    adapters: Adapters | None = None,
) -> tuple[Pass, ...]:
    """The passes of a compilation, in order.

    add      passes of your own, or names of such that installed packages offer (see named.py):
             each goes to the end of its stage
    remove   names of passes to leave out; BadOption if there is none of that name
    compute, weights, activations, low_rank, budget, max_activations, tokens,
    sparse_activations, prune, group_sparsity, adapters  as in Options (infopt.compiler.options)
    """
    quantize: Pass | None = None
    if budget is not None:
        if "kv" in budget.techniques and budget.techniques != TECHNIQUES:
            raise BadOption(
                "techniques: 'kv' is the format of a decoder's cache, and there is none here; "
                "infopt.compile_causal_lm has one, and 'all' takes what there is"
            )
        quantize = QuantizeToBudget(budget, (NarrowCompute(),) if compute == "bf16" else ())
    elif weights is not None:
        quantize = QuantizeWeights(weight_formats(weights), activations or "none")
    factor = None if low_rank is None else FactorLowRank(layer_ranks(low_rank))
    sparse = None if sparse_activations is None else SparseActivations(sparse_activations)
    cut = None if prune is None else PruneStructures(prune)
    groups = None if group_sparsity is None else SparsifyGroups(group_sparsity)
    room = None
    if adapters is not None:
        room = AttachAdapters(adapters.rank, adapters.slots, adapters.patterns)
    passes = list(_blocks(compute, room, cut, groups, factor, quantize, tokens, sparse))
    if max_activations is not None:
        passes.append(SliceRuns(max_activations))
    unknown = sorted(set(remove) - {p.name for p in passes})
    if unknown:
        known = ", ".join(dict.fromkeys(p.name for p in passes))
        raise BadOption(f"remove={unknown}: there is no such pass; the default ones are {known}")
    passes = _searched([p for p in passes if p.name not in set(remove)])
    for item in add:
        extra = named_pass(item) if isinstance(item, str) else item
        later = [i for i, p in enumerate(passes) if p.stage > extra.stage]
        passes.insert(later[0] if later else len(passes), extra)
    return tuple(passes)


def _in_bytes(quantize: Pass | None) -> bool:
    """Whether rows of activations may become bytes."""
    if isinstance(quantize, QuantizeToBudget):
        return "int8" in quantize.budget.activations
    return isinstance(quantize, QuantizeWeights) and quantize.activations != "none"


def _searched(passes: list[Pass]) -> list[Pass]:
    """The same passes; where a budget chooses for the whole model, those from there to the choice
    of formats are parts of its search."""
    names = [p.name for p in passes]
    if not {CompressToBudget.name, QuantizeToBudget.name} <= set(names):
        return [p for p in passes if not isinstance(p, CompressToBudget)]
    first, last = names.index(CompressToBudget.name), names.index(QuantizeToBudget.name)
    formats = passes[last]
    assert isinstance(formats, QuantizeToBudget)
    behind = passes[last + 1 :]
    # slices compute the same, and what they cost is not the search's business
    then = tuple(p for p in behind if not isinstance(p, SliceRuns))
    search = CompressToBudget(formats, tuple(passes[first + 1 : last]), then)
    return [*passes[:first], search, *behind]


def _blocks(
    compute: str | None,
    room: Pass | None,
    cut: Pass | None,
    groups: Pass | None,
    factor: Pass | None,
    quantize: Pass | None,
    tokens: Tokens | None,
    sparse: Pass | None,
) -> Iterable[Pass]:
    # One form for each thing, and nothing computed twice.
    yield Canonicalize()
    yield UnfoldPatches()
    yield SplitTransposed()
    yield FoldBatchNorm()
    yield SimplifyMasks()
    yield RecognizeGroups()
    yield RecognizeQuantized()
    yield FoldConstants()
    yield Canonicalize()

    # What is one op on paper becomes one op.
    yield FuseAttention()
    yield FuseNorm()
    yield FuseActivation()

    # Layers get room for adapters, where that was asked for.
    if room is not None:
        yield room

    # Layers are narrower and work on fewer tokens, where that was asked for.
    if cut is not None:
        yield cut
    if tokens is not None:
        yield MergeTokens(tokens)
    if isinstance(quantize, QuantizeToBudget) and quantize.budget.techniques:
        yield CompressToBudget(quantize)

    # Nothing is computed that no result needs.
    yield KeepNeededRows()
    yield DropPadding()
    yield FuseRotary()

    # What follows a product is done while it is in cache.
    yield FuseGatedMlp()
    yield FuseLinearEpilogue()
    yield FuseConvPadding()
    yield FuseConvEpilogue()
    yield KeepQuantized()
    if groups is not None:
        yield groups
    if factor is not None:
        yield factor
    if quantize is not None:
        yield quantize
    if sparse is not None:
        yield sparse
    if compute == "bf16":
        yield NarrowCompute(0.1) if _in_bytes(quantize) else NarrowCompute()
    yield FuseLowRankAttention()
    yield FuseLowRank()
    yield FuseEmbeddingNorm()
    yield FuseAddNorm()
    if _in_bytes(quantize):
        static = isinstance(quantize, QuantizeWeights) and quantize.activations == "int8-static"
        yield PackActivations(static)
