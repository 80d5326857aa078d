"""Steps of a decoder on a GPU: recorded once, and nothing is read between them."""

import gc
import weakref
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton")
import infopt
from infopt.codegen.interpreted_device import InterpretedDevice
from infopt.models.decoder import SMALL, Decoder
from infopt.runtime.decoding.causal_lm import CausalLM
from infopt.runtime.decoding.spec import CausalSpec

PROMPTS = [[3, 1, 4, 1, 5, 9, 2], [6, 5]]


class Counting(InterpretedDevice):
    """How many runs were captured, and launches that stand for replays."""

    def __init__(self):
        super().__init__()
        self.captured = 0

    def record(self, run, pool):
        self.captured += 1
        return super().record(run, pool)


class Replayed(Counting):
    """Launches nothing twice: a replay gives what the last one gave. For counting, not values."""

    def record(self, run, pool):
        rerun, outputs = super().record(run, pool)
        rerun.replay, rerun.run = (lambda: None), None  # a graph knows addresses alone
        return rerun, outputs


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Decoder(SMALL).eval()


def compiled(model, device, max_length=40):
    return infopt.compile_causal_lm(
        model,
        max_length=max_length,
        batch=2,
        target="cuda:sm90",
        device=device,
        cuda_graphs=True,
    )


def test_recorded_steps_give_the_processors_tokens(model):
    device = Counting()
    lm = compiled(model, device)
    on_cpu = infopt.compile_causal_lm(model, max_length=40, batch=2)
    tokens, state = lm.decode(lm.prefill(PROMPTS), 4)
    expected, _ = on_cpu.decode(on_cpu.prefill(PROMPTS), 4)
    assert torch.equal(tokens, expected) and device.captured == 1
    forked = lm.keep(state, [1])  # other memory and another batch: a recording of its own
    more, _ = lm.decode(forked, 2)
    both, _ = on_cpu.decode(on_cpu.prefill(PROMPTS), 6)
    assert torch.equal(more[0], both[1, 4:]) and device.captured == 2


def living_bytes():
    gc.collect()
    kinds = torch.Tensor, torch.nn.Parameter
    tensors = [x for x in gc.get_objects() if type(x) in kinds and x.layout is torch.strided]
    found = [x.untyped_storage() for x in tensors]
    return sum({s._cdata: s.nbytes() for s in found}.values())


@pytest.mark.slow
def test_hundreds_of_steps_are_one_recording_and_no_more_memory(model):
    device = Replayed()
    lm = compiled(model, device, max_length=256)
    state = lm.prefill(PROMPTS)
    sizes = []
    for steps in (20, 60, 120):
        _, state = lm.decode(state, steps)
        sizes.append(living_bytes())
    assert state.lengths == (207, 202) and device.captured == 1
    # tensors of a step come and go; a row of logits is 4 KiB, a layer's keys of a sequence 64
    assert max(sizes) - min(sizes) < 4096
    memory = [weakref.ref(store) for store in state.stores]
    del state
    gc.collect()
    assert not any(ref() for ref in memory), "the recording keeps a text's memory"


class Meta:
    """A program on a device whose values nobody can read: what waited for a token would fail."""

    where = torch.device("meta")

    def run(self, given):
        ids, *_ = given
        assert all(x.device == self.where for x in given)
        return [torch.empty(*ids.shape, 50, device=self.where)]


class Crossings(TorchDispatchMode):
    """Counts tensors that are brought to another device."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if "copy" in func.__name__ and isinstance(made, torch.Tensor):
            self.found[str(made.device)] += 1
        return made


@pytest.mark.parametrize("positions", [0, 64])
def test_no_step_waits_for_a_token(positions):
    spec = CausalSpec(50, 64, 2, (((2, 64, 8), "torch.float32", 0.0),), positions=positions)
    lm = CausalLM(spec, Meta())
    prefilled = lm.prefill(PROMPTS)
    crossings = []
    for steps in (3, 30):
        with Crossings() as seen:
            tokens, state = lm.decode(prefilled.copy(), steps)
        assert tokens.shape == (2, steps) and state.lengths == (7 + steps, 2 + steps)
        assert state.starts.tolist() == [7 + steps, 2 + steps]
        crossings.append(seen.found)
    assert crossings[0] == crossings[1], "something is brought over in every step"


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 3}], ids=["greedy", "chance"])
def test_the_step_ahead_changes_no_token(model, options):
    lm = infopt.compile_causal_lm(model, max_length=40, batch=2)
    usual = list(lm.generate(PROMPTS, 12, **options))
    for stop in ((), usual[3][0], {usual[2][0], usual[5][1]}):
        expected = list(lm.generate(PROMPTS, 12, stop=stop, **options))
        lm._ahead = True  # as where the program runs on a GPU
        assert list(lm.generate(PROMPTS, 12, stop=stop, **options)) == expected
        lm._ahead = False
