"""Where the tokens of real architectures are, and why some have none that could be made fewer."""

import pytest
import torch

from infopt.compiler.graph import Graph
from infopt.compiler.pipeline import PassContext, Pipeline
from infopt.compiler.target import Target
from infopt.compiler.tracing.export import export
from infopt.models import zoo
from infopt.models.decoder import SMALL, Decoder
from infopt.models.encoder import Encoder, EncoderConfig
from infopt.models.vision import VisionConfig, VisionTransformer
from infopt.passes.pipelines import default_passes
from infopt.passes.token_stream import Axes, TokenStream
from infopt.runtime.structure import Leaf

IDS = torch.randint(0, 50, (2, 12))
LATER = ("keep-needed-rows", "drop-padding", "fuse-rotary", "fuse-linear-epilogue", "fuse-add-norm")


def stream_of(model, args=(), kwargs=None) -> TokenStream:
    exported = export(model, args, kwargs or {}, None, Leaf)
    return TokenStream(prepared(exported.graph))


def prepared(graph: Graph) -> Graph:
    """As merge-tokens meets it: up to the pass that it follows."""
    passes = default_passes(remove=LATER)
    last = [p.name for p in passes].index("fuse-activation")
    return Pipeline(passes[: last + 1]).run(graph, PassContext(Target.detect()))


def encoder() -> Encoder:
    config = EncoderConfig(vocabulary=50, width=64, layers=3, heads=4, hidden=128)
    return Encoder(config).eval()


def test_an_encoder_with_norms_behind_its_sums() -> None:
    stream = stream_of(encoder(), (IDS, torch.ones_like(IDS)))
    assert stream.reason == "" and stream.lead == (2, 12) and len(stream.layers) == 3
    assert {layer.cut.op.name for layer in stream.layers} == {"aten.layer_norm.default"}
    assert stream.end.op.name == "aten.add.Tensor" and stream.needed is None
    assert stream.mask.shape == (2, 1, 1, 12) and stream.mask.dtype is torch.bool


def test_a_vision_transformer_that_reads_one_token() -> None:
    config = VisionConfig(image=32, patch=8, width=64, layers=3, heads=4, hidden=128, classes=10)
    stream = stream_of(VisionTransformer(config).eval(), (torch.randn(2, 3, 32, 32),))
    assert stream.reason == "" and stream.lead == (2, 17) and len(stream.layers) == 3
    assert {layer.cut.op.name for layer in stream.layers} == {"aten.add.Tensor"}
    assert stream.needed == 1 and stream.mask is None
    # q, k and v come from one product: batch and tokens are its second and fourth dimension
    assert Axes(1, 3) in stream.axes.values()


def test_a_decoder() -> None:
    stream = stream_of(Decoder(SMALL).eval(), (IDS,))
    assert stream.reason == "" and len(stream.layers) == SMALL.layers and stream.needed is None


@pytest.mark.parametrize(
    ("name", "layers", "reason"),
    [
        ("bert", 2, ""),
        ("vit", 2, ""),
        ("gpt_neox", 2, ""),  # attention and feed-forward side by side
        ("t5", 0, "does not mix all tokens of"),
        ("mpnet", 0, "is not over the keys alone"),
        ("convnext", 0, "it has no attention"),
    ],
)
def test_architectures(name, layers, reason) -> None:
    pytest.importorskip("transformers")
    stream = stream_of(zoo.build(name), (), zoo.inputs(name, 0))
    assert (reason in stream.reason) if reason else not stream.reason
    assert len(stream.layers) == layers


def test_every_value_between_layers_is_a_cut_and_a_branch_is_none() -> None:
    stream = stream_of(encoder(), (IDS,))
    first = stream.layers[0]
    assert stream.is_cut(first.cut) and stream.is_cut(stream.end)
    (up, *_) = (n for n in stream.graph.users(first.cut) if n.op.name == "aten.linear.default")
    assert not stream.is_cut(up) and not stream.is_cut(first.attention)
