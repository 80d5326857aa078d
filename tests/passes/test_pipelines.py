"""The default list: its order, additions and removals, and what it makes of whole models."""

import pytest
import torch
import transformers

import infopt
from infopt.compiler.accuracy import Exact
from infopt.compiler.errors import BadOption
from infopt.compiler.graph import Graph, Stage
from infopt.compiler.pipeline import Pass, PassContext, Pipeline
from infopt.compiler.target import Target
from infopt.passes.pipelines import default_passes
from tests.compiler.tracing.traced import check, names

SMALL = {
    "vocab_size": 100,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}
IDS = torch.randint(0, 100, (2, 9))
MASK = torch.ones_like(IDS).index_fill(1, torch.tensor([7, 8]), 0)


class Marker(Pass):
    name, stage = "marker", Stage.NORMALIZE

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        return graph


def test_stages_never_go_back() -> None:
    for compute in (None, "bf16"):
        stages = [p.stage for p in default_passes(compute=compute)]
        assert stages == sorted(stages)
        Pipeline(default_passes(compute=compute))


def test_each_pass_has_its_own_tests() -> None:
    import pathlib

    folder = pathlib.Path(__file__).parent
    for p in default_passes(compute="bf16"):
        assert (folder / f"test_{p.name.replace('-', '_')}.py").exists(), p.name


def test_nothing_is_approximated_unasked() -> None:
    assert [p.name for p in default_passes() if p.accuracy != Exact()] == []


def test_a_pass_is_added_at_the_end_of_its_stage() -> None:
    found = default_passes(add=[Marker()])
    position = [p.name for p in found].index("marker")
    assert (
        found[position - 1].stage is Stage.NORMALIZE and found[position + 1].stage > Stage.NORMALIZE
    )
    assert infopt.default_passes(add=[Marker()]) == found


def test_removal() -> None:
    assert "fuse-rotary" not in {p.name for p in default_passes(remove=["fuse-rotary"])}
    with pytest.raises(BadOption, match=r"\['no-such-pass'\].*fuse-rotary"):
        default_passes(remove=["no-such-pass"])


def optimized(graph: Graph) -> Graph:
    return Pipeline(default_passes()).run(graph, PassContext(Target.parse("cpu:avx512,cores=2")))


def model(kind: str, attention: str) -> torch.nn.Module:
    settings = {**SMALL, "attn_implementation": attention, "use_cache": False}
    if kind == "bert":
        return transformers.BertModel(transformers.BertConfig(**settings))
    grouped = {**settings, "num_key_value_heads": 2}
    if kind == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**grouped))
    if kind == "qwen3":
        return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**grouped, head_dim=16))
    names_of_gpt = {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 100}
    rest = {
        "attn_implementation": attention,
        "use_cache": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return transformers.GPT2Model(transformers.GPT2Config(**names_of_gpt, **rest))


EXPECTED = {
    "bert": {
        "attention": 2,
        "linear_act": 4 + 2,
        "aten.layer_norm.default": 4,
        "embedding_norm": 1,
    },
    "llama": {"attention": 2, "rms_norm": 5, "gated_linear": 2, "rotary": 2, "linear_act": 4},
    "qwen3": {"attention": 2, "rms_norm": 9, "gated_linear": 2, "rotary": 2, "linear_act": 4},
    "gpt2": {"attention": 2, "add_layer_norm": 4, "aten.gelu.default": 2},
}


@pytest.mark.parametrize(
    ("attention", "dynamic"),
    [
        ("sdpa", True),
        ("eager", False),
        pytest.param("sdpa", False, marks=pytest.mark.slow),
        pytest.param("eager", True, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("kind", EXPECTED)
def test_whole_models(kind: str, attention: str, dynamic: bool) -> None:
    made = model(kind, attention).eval()
    graph = check(
        lambda ids, mask: made(input_ids=ids, attention_mask=mask)[0],
        IDS, MASK, change=optimized, dynamic=dynamic,
    )  # fmt: skip
    found = names(graph)
    assert {op: found.count(op) for op in EXPECTED[kind]} == EXPECTED[kind]
    assert "aten.softmax.int" not in found and "aten.rsqrt.default" not in found


DEFAULT = [
    *("canonicalize", "unfold-patches", "split-transposed", "fold-batch-norm", "simplify-masks"),
    *("recognize-groups", "recognize-quantized", "fold-constants", "canonicalize"),
    *("fuse-attention", "fuse-norm", "fuse-activation"),
    *("keep-needed-rows", "drop-padding", "fuse-rotary"),
    *("fuse-gated-mlp", "fuse-linear-epilogue", "fuse-conv-padding", "fuse-conv-epilogue"),
    *("keep-quantized", "fuse-low-rank-attention", "fuse-low-rank", "fuse-embedding-norm"),
    "fuse-add-norm",
]
ADDED = {
    "nothing": ({}, []),
    "compute": ({"compute": "bf16"}, ["narrow-compute"]),
    "weights": ({"weights": "int8"}, ["quantize-weights"]),
    "weights, activations as they are": (
        {"weights": "int8", "activations": "none"},
        ["quantize-weights"],
    ),
    "weights and activations": (
        {"weights": "int8", "activations": "int8"},
        ["quantize-weights", "pack-activations"],
    ),
    "budget": ({"budget": infopt.Budget(0.01)}, ["quantize-to-budget", "pack-activations"]),
    "low_rank": ({"low_rank": 0.5}, ["factor-low-rank"]),
    "tokens": ({"tokens": infopt.Tokens(0.5)}, ["merge-tokens"]),
    "sparse_activations": ({"sparse_activations": 0.5}, ["sparse-activations"]),
    "prune": ({"prune": 0.5}, ["prune-structures"]),
    "group_sparsity": ({"group_sparsity": 0.5}, ["sparsify-groups"]),
    "adapters": ({"adapters": infopt.Adapters()}, ["attach-adapters"]),
    "max_activations": ({"max_activations": 1 << 20}, ["slice-runs"]),
}


@pytest.mark.parametrize("case", ADDED)
def test_what_an_option_adds(case: str) -> None:
    """An option adds its passes, and moves none of the others."""
    options, added = ADDED[case]
    found = [p.name for p in default_passes(**options)]
    assert [n for n in found if n not in added] == DEFAULT
    assert [n for n in found if n in added] == added
