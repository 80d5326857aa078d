"""Every built-in pass keeps its contract over generated graphs, also in exact arithmetic."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from infopt.compiler.certification.certify import Certificate, check_case
from infopt.compiler.certification.programs import FLOATS, Case
from infopt.compiler.certification.property_test import LAYOUTS, VALUES
from infopt.compiler.pipeline import Pass
from infopt.compiler.rewrite import Rule
from infopt.compiler.testing import certify
from infopt.passes.attach_adapters import AttachAdapters
from infopt.passes.compress_to_budget import CompressToBudget
from infopt.passes.factor_low_rank import FactorLowRank
from infopt.passes.fuse_attention import FuseAttention
from infopt.passes.fuse_gated_mlp import FuseGatedMlp
from infopt.passes.fuse_low_rank import FuseLowRank
from infopt.passes.keep_quantized import KeepQuantized
from infopt.passes.merge_factors import MergeFactors
from infopt.passes.merge_tokens import MergeTokens
from infopt.passes.named import BUILT_IN
from infopt.passes.narrow_compute import NarrowCompute
from infopt.passes.pack_activations import PackActivations
from infopt.passes.prune_structures import PruneStructures
from infopt.passes.quantize_to_budget import QuantizeToBudget
from infopt.passes.quantize_weights import QuantizeWeights
from infopt.passes.recognize_groups import RecognizeGroups
from infopt.passes.recognize_quantized import RecognizeQuantized
from infopt.passes.slice_runs import SliceRuns
from infopt.passes.sparse_activations import SparseActivations
from infopt.passes.sparsify_groups import SparsifyGroups
from infopt.passes.split_transposed import SplitTransposed
from infopt.passes.unfold_patches import UnfoldPatches
from tests.passes.certified_programs import ATTRS, EXAMPLES, programs

# held to their bounds; there is no exact arithmetic for these
LOSSY = (FactorLowRank, NarrowCompute, QuantizeWeights)
# Three choose by inputs of the whole program, which generated graphs have not; what the others do
# to random data has no bound, or is compared to the bit. Their own tests hold them to it.
# And torch's product of groups takes only bf16, whole pieces of memory and ends that rise; layers
# get room for adapters where a graph has an input of a certain name.
MEASURED = (
    *(CompressToBudget, QuantizeToBudget, MergeTokens, PackActivations, PruneStructures),
    *(AttachAdapters, RecognizeGroups, SparseActivations, SparsifyGroups),
)
PATTERNS = [c for c in ATTRS if issubclass(c, Rule)] + [FuseGatedMlp]
# What they do depends on sizes that few draws meet; test_examples_in_every_dtype draws theirs.
OF_SIZES = (
    *(FactorLowRank, FuseLowRank, KeepQuantized, MergeFactors, RecognizeQuantized, SliceRuns),
    SplitTransposed,
)
EVERY = [(cls, p) for cls in EXAMPLES if cls not in OF_SIZES for p in programs(cls)]


def test_every_pass_is_here() -> None:
    assert {*EXAMPLES, *MEASURED} >= set(BUILT_IN.values())


# More than a few seconds: theirs are checked where slow tests run.
LONG = (
    *("drop-padding", "factor-low-rank", "fold-batch-norm", "fuse-attention", "fuse-norm"),
    *("fuse-conv-epilogue", "fuse-gated-mlp", "fuse-linear-epilogue", "fuse-low-rank"),
    "fuse-low-rank-attention",
)


@pytest.mark.parametrize(
    "cls",
    [pytest.param(cls, marks=pytest.mark.slow) if cls.name in LONG else cls for cls in EXAMPLES],
    ids=lambda cls: cls.name,
)
def test_examples_of_all_sizes(cls: type[Pass]) -> None:
    for program in programs(cls, (torch.float32,)):
        told = certify(cls(), [program], draws=0, strict=False, patterns=False)
        assert told.applied, f"{cls.name} does not apply to {program.name}: {told}"
        assert not told.failed, told.failed
        assert told.exact == (0 if cls in LOSSY else told.applied), told


@settings(
    max_examples=60, database=None,
    phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(data=st.data())
def test_drawn_sizes_strides_and_values(data: st.DataObject) -> None:
    _check_drawn(data)


@pytest.mark.slow
@settings(
    max_examples=3000, database=None,
    phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(data=st.data())
def test_many_drawn_sizes_strides_and_values(data: st.DataObject) -> None:
    _check_drawn(data)


def _check_drawn(data: st.DataObject) -> None:
    cls, program = data.draw(st.sampled_from(EVERY), "program")
    # sizes near the example's, 1 and sizes that coincide; open or not
    size = st.sampled_from([1, 2, 3, 4, 5, 8, 16, 17, *program.example.values()])
    case = Case(
        data.draw(st.fixed_dictionaries(dict.fromkeys(program.names, size)), "sizes"),
        data.draw(st.sampled_from(program.drawn), "dtype"),
        tuple(data.draw(st.sampled_from(LAYOUTS), "layout") for _ in program.shapes),
        data.draw(st.sampled_from(VALUES), "values"),
        data.draw(st.integers(0, 1000), "seed"),
        tuple(n for n in program.names if data.draw(st.booleans(), f"{n} open")),
    )
    told = Certificate(cls.name, cls().content.digest)
    check_case(cls(), program, case, told)
    assume(told.graphs)  # the program has no such sizes


def test_a_result_nearer_to_float64_is_no_error() -> None:
    # the program rounds scores of thousands to bf16, and casts on its way; the fused op does not
    (program,) = (p for p in programs(FuseAttention) if "softmax in float32" in p.name)
    sizes = {"n2": 16, "n4": 8, "n5": 1, "n16": 8, "n7": 17}
    layouts = ("every second", "every second", "dense")
    told = Certificate(FuseAttention.name, FuseAttention().content.digest)
    check_case(
        FuseAttention(), program, Case(sizes, torch.bfloat16, layouts, "large", 72, ()), told
    )
    assert told.applied == 1


@pytest.mark.slow
@pytest.mark.parametrize("cls", PATTERNS, ids=lambda cls: cls.name)
def test_patterns_of_rules(cls: type[Pass]) -> None:
    # sizes that a patch divides are drawn seldom
    told = certify(cls(), attrs=ATTRS.get(cls, {}), draws=24 if cls is UnfoldPatches else 4)
    assert told.exact == told.applied > 0, told


@pytest.mark.slow
@pytest.mark.parametrize("cls", EXAMPLES, ids=lambda cls: cls.name)
def test_examples_in_every_dtype(cls: type[Pass]) -> None:
    told = certify(cls(), programs(cls, FLOATS), draws=12, patterns=False)
    assert told.applied and not told.inexact, told
