"""A decoder on a GPU that the interpreter stands for: its tokens are those of the processor."""

import pytest
import torch

pytest.importorskip("triton")
import infopt
from infopt.codegen.interpreted_device import InterpretedDevice
from infopt.compiler.errors import BadOption
from infopt.models.decoder import SMALL, Decoder
from infopt.runtime.errors import DeviceMissing

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


def test_saved_without_a_gpu(model, tmp_path):
    lm = compiled(model, target="cuda:sm90")
    with pytest.raises(DeviceMissing):
        lm.prefill(PROMPTS)
    path = lm.save(tmp_path / "decoder", targets=("cuda:sm90", "native"))
    assert list(infopt.load(path, device="cpu").generate([1, 2], 3)) == list(
        compiled(model).generate([1, 2], 3)
    )


def test_only_the_plain_cache(model):
    for kv in (infopt.KV("int8"), infopt.kv.Quest()):
        with pytest.raises(BadOption, match="whole cache"):
            compiled(model, target="cuda:sm90", kv=kv)
