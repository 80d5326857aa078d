"""Passes by name: infopt's own, and those that installed packages offer.

A package offers a pass as an entry point:

    [project.entry-points."infopt.passes"]
    my-pass = "my_package.my_module:MyPass"

Its code is imported only when somebody names the pass; nothing that is installed runs by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points

from infopt.compiler.errors import BadOption
from infopt.compiler.pipeline import Pass
from infopt.passes.attach_adapters import AttachAdapters
from infopt.passes.canonicalize import Canonicalize
from infopt.passes.compress_to_budget import CompressToBudget
from infopt.passes.drop_padding import DropPadding
from infopt.passes.factor_low_rank import FactorLowRank
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
from infopt.passes.merge_factors import MergeFactors
from infopt.passes.merge_linears import MergeLinears
from infopt.passes.merge_tokens import MergeTokens
from infopt.passes.narrow_compute import NarrowCompute
from infopt.passes.pack_activations import PackActivations
from infopt.passes.prune_structures import PruneStructures
from infopt.passes.quantize_to_budget import QuantizeToBudget
from infopt.passes.quantize_weights import QuantizeWeights
from infopt.passes.recognize_groups import RecognizeGroups
from infopt.passes.recognize_quantized import RecognizeQuantized
from infopt.passes.simplify_masks import SimplifyMasks
from infopt.passes.slice_runs import SliceRuns
from infopt.passes.sparse_activations import SparseActivations
from infopt.passes.sparsify_groups import SparsifyGroups
from infopt.passes.split_transposed import SplitTransposed
from infopt.passes.unfold_patches import UnfoldPatches

GROUP = "infopt.passes"
_CLASSES: tuple[type[Pass], ...] = (
    *(Canonicalize, DropPadding, FoldBatchNorm, FoldConstants, SimplifyMasks, UnfoldPatches),
    *(FactorLowRank, FuseActivation, FuseAddNorm, FuseAttention, FuseEmbeddingNorm),
    *(AttachAdapters, CompressToBudget, FuseGatedMlp, FuseLowRank, FuseLowRankAttention),
    *(FuseConvEpilogue, FuseConvPadding, FuseLinearEpilogue, FuseNorm),
    *(FuseRotary, KeepNeededRows, KeepQuantized, MergeFactors, MergeLinears, MergeTokens),
    *(NarrowCompute, PackActivations, PruneStructures, QuantizeToBudget, QuantizeWeights),
    *(RecognizeGroups, RecognizeQuantized, SliceRuns, SparseActivations, SparsifyGroups),
    SplitTransposed,
)
BUILT_IN: Mapping[str, type[Pass]] = {cls.name: cls for cls in _CLASSES}


def named_pass(name: str) -> Pass:
    """The pass of that name with its default options, infopt's own first.

    Raises BadOption where there is none, where two packages offer one of that name, or where the
    entry point does not give a Pass of that name.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]()
    offers = [e for e in offered() if e.name == name]
    if not offers:
        others = ", ".join(sorted({e.name for e in offered()})) or "none"
        raise BadOption(
            f"pass {name!r}: there is none of that name; infopt has {', '.join(BUILT_IN)}; "
            f"installed packages offer {others}"
        )
    if len(offers) > 1:
        sources = " and ".join(describe(e) for e in offers)
        raise BadOption(f"pass {name!r} is offered twice, by {sources}; uninstall one")
    return _loaded(offers[0])


def offered() -> tuple[EntryPoint, ...]:
    """What installed packages offer, read from their metadata: none of their code is imported."""
    found = {(e.name, e.value): e for e in entry_points(group=GROUP)}
    return tuple(found[key] for key in sorted(found))


def describe(entry: EntryPoint) -> str:
    """Where an offer comes from."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value


def _loaded(entry: EntryPoint) -> Pass:
    place = f"pass {entry.name!r} of {describe(entry)} ({entry.value})"
    try:
        found = entry.load()
    except (ImportError, AttributeError) as error:
        raise BadOption(f"{place} cannot be loaded: {error}") from error
    made = found() if isinstance(found, type) and issubclass(found, Pass) else found
    if not isinstance(made, Pass):
        raise BadOption(f"{place}: expected a Pass or a class of passes, found {found!r}")
    if made.name != entry.name:
        raise BadOption(f"{place} calls itself {made.name!r}; the two names must be the same")
    return made
