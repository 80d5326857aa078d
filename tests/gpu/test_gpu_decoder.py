"""A decoder on a GPU that the interpreter stands for: its tokens are those of the processor."""

import pytest
import torch

pytest.importorskip("triton")
import infopt
from infopt.codegen.interpreted_device import InterpretedDevice
from infopt.compiler.errors import BadOption
from infopt.models.decoder import SMALL, Decoder
from infopt.runtime.errors import DeviceMissing
from tests.codegen.gpu.launched import most
from tests.compiler.decoding.causal_families import build

PROMPTS = [[3, 1, 4, 1, 5, 9, 2], [6, 5]]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Decoder(SMALL).eval()


def compiled(model, **options):
    return infopt.compile_causal_lm(model, max_length=40, batch=2, **options)


def test_its_tokens(model):
    device = InterpretedDevice()
    lm, on_cpu = compiled(model, target="cuda:sm90", device=device), compiled(model)
    state, expected = lm.prefill(PROMPTS), on_cpu.prefill(PROMPTS)
    torch.testing.assert_close(state.logits, expected.logits, rtol=1e-4, atol=1e-4)
    chances = {"temperature": 1.0, "seed": 0}
    for options in ({}, chances):
        assert list(lm.generate(PROMPTS, 2, **options)) == list(
            on_cpu.generate(PROMPTS, 2, **options)
        )
    assert lm.report.native_share > 0.9, lm.report
    # every layer and step: keys and values to their places, attention where they lie
    assert device.launched["append_rows"] and device.launched["flash_few"]


@pytest.mark.slow
def test_saved_without_a_gpu(model, tmp_path):
    lm = compiled(model, target="cuda:sm90")
    with pytest.raises(DeviceMissing):
        lm.prefill(PROMPTS)
    path = lm.save(tmp_path / "decoder", targets=("cuda:sm90", "native"))
    assert list(infopt.load(path, device="cpu").generate([1, 2], 3)) == list(
        compiled(model).generate([1, 2], 3)
    )


@pytest.fixture(scope="module")
def llama():
    pytest.importorskip("transformers")
    return build("llama")


KINDS = [
    infopt.KV("int8"),
    infopt.KV("int8", page=4),
    infopt.KV("int4"),
    *most(infopt.KV(page=4)),
]


@pytest.mark.slow
@pytest.mark.parametrize("kv", KINDS, ids=str)
def test_other_caches_give_the_processors_tokens(llama, kv):
    device = InterpretedDevice()
    on_gpu = compiled(llama, kv=kv, target="cuda:sm90", device=device, cuda_graphs=True)
    on_cpu = compiled(llama, kv=kv)
    prompts = [[5, 8, 2, 9] * 7 + PROMPTS[0], PROMPTS[1]] if kv.format == "int4" else PROMPTS
    expected, _ = on_cpu.decode(on_cpu.prefill(prompts), 5)
    found, state = on_gpu.decode(on_gpu.prefill(prompts), 5)
    assert torch.equal(found, expected) and state.lengths[1] == 7
    kernels = {"append_rows", "attend_cached"} | {"append_pages", "append_ring", "attend_int4"}
    assert len(kernels & set(device.launched)) == (3 if kv.format == "int4" else 2)
    if kv.page:  # the second goes on alone, on pages of the same pool
        one = on_gpu.step(on_gpu.keep(on_gpu.prefill(PROMPTS), [1]), [int(found[1, 0])])
        assert torch.equal(one.logits.argmax(-1), found[1:, 1])


@pytest.mark.parametrize(
    "options",
    [{"kv": infopt.kv.Ring()}, {"kv": infopt.kv.Quest()}, {"compact": infopt.Compaction()}],
    ids=str,
)
def test_caches_without_kernels(model, options):
    with pytest.raises(BadOption, match="a GPU keeps"):
        compiled(model, target="cuda:sm90", **options)
