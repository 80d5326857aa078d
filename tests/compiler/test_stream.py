"""infopt.compile_stream: native steps against the offline model, states, artifacts, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import infopt
from infopt.compiler.stream import _check, _traced
from infopt.passes import streaming
from infopt.runtime.stream import StreamSpec


class Dilated(nn.Module):
    """A stack of dilated convolutions with residuals, causal or with the padding on both sides."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.first = nn.Conv1d(3, 16, 1)
        self.convs = nn.ModuleList(
            nn.Conv1d(16, 16, 3, dilation=d, padding=0 if causal else d) for d in (1, 2, 4)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(16) for _ in self.convs)
        for norm in self.norms:
            norm.running_mean.normal_()
        self.last = nn.Conv1d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for conv, norm in zip(self.convs, self.norms):
            given = F.pad(x, (2 * conv.dilation[0], 0)) if self.causal else x
            x = x + F.relu(norm(conv(given)))
        return self.last(x)


class Autoencoder(nn.Module):
    """Strided convolutions down, transposed ones up, a branch beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv1d(2, 8, 4, stride=2, padding=1)
        self.lower = nn.Conv1d(8, 16, 4, stride=2, padding=1)
        self.between = nn.Conv1d(16, 16, 3, padding=1)
        self.upper = nn.ConvTranspose1d(16, 8, 4, stride=2, padding=1)
        self.up = nn.ConvTranspose1d(16, 2, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        high = F.gelu(self.down(x))
        low = F.gelu(self.lower(high))
        low = low + self.between(low)
        return self.up(torch.cat((F.gelu(self.upper(low)), high), 1))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(5)


@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_a_thousand_steps_are_the_offline_result(causal: bool) -> None:
    """Bit for bit that of the compiled model: batch_invariant keeps the order of sums, for which
    the fastest kernel depends on the size."""
    model = Dilated(causal).eval()
    stream = infopt.compile_stream(model, torch.randn(1, 3, 64), hop=4, batch_invariant=True)
    assert stream.delay == (0 if causal else 7)
    assert not stream.report.fallbacks
    x = torch.randn(1, 3, 4000)
    found = stream.run(x)
    offline = infopt.compile(model, (x,), batch_invariant=True)(x)
    assert torch.equal(found, offline)
    torch.testing.assert_close(found, model(x), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_down_and_up_again() -> None:
    model = Autoencoder().eval()
    stream = infopt.compile_stream(model, torch.randn(2, 2, 64), hop=8)
    x = torch.randn(2, 2, 8 * 100)
    assert stream.delay == stream.spec.rest == 11
    torch.testing.assert_close(stream.run(x), model(x), rtol=1e-5, atol=1e-6)


class Frames(nn.Module):
    """[B, T, C]: time in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(8), nn.Linear(8, 8)
        self.conv = nn.Conv1d(8, 8, 5, padding=2, groups=8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + F.silu(self.mlp(self.norm(x)))
        return x + self.conv(x.transpose(1, 2)).transpose(1, 2)


@torch.no_grad()
def test_another_axis() -> None:
    model = Frames().eval()
    stream = infopt.compile_stream(model, torch.randn(1, 30, 8), hop=3, axis=1)
    x = torch.randn(1, 60, 8)
    torch.testing.assert_close(stream.run(x), model(x), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_states_are_values_until_they_are_stepped(tmp_path: Path) -> None:
    stream = infopt.compile_stream(Dilated(False).eval(), torch.randn(1, 3, 64), hop=4)
    x, y = torch.randn(2, 1, 3, 4)
    _, state = stream.step(x, stream.start())
    kept = state.copy()
    first, after = stream.step(y, state)
    assert (after.steps, kept.steps) == (2, 1)
    with pytest.raises(infopt.StaleState, match="this state was stepped"):
        stream.step(y, state)
    with pytest.raises(infopt.InputMismatch, match=r"expected a hop of \[1, 3, 4\]"):
        stream.step(torch.randn(1, 3, 5), kept)
    again, _ = stream.step(y, kept)  # a refused step left it as it was
    assert torch.equal(first, again)
    with pytest.raises(infopt.InputMismatch, match="expected whole hops"):
        stream.run(torch.randn(1, 3, 6))


@torch.no_grad()
def test_an_artifact_streams(tmp_path: Path) -> None:
    stream = infopt.compile_stream(Dilated(False).eval(), torch.randn(1, 3, 64), hop=4)
    loaded = infopt.load(stream.save(tmp_path / "net.infopt", golden=True), check=True)
    assert isinstance(loaded, infopt.Stream)
    assert loaded.spec == stream.spec and StreamSpec.from_json(stream.spec.to_json()) == stream.spec
    x = torch.randn(1, 3, 80)
    assert torch.equal(loaded.run(x), stream.run(x))
    with pytest.raises(ValueError, match="this model was loaded"):
        loaded.save(tmp_path / "again.infopt")


class Attending(nn.Module):
    """A causal convolution in front of a transformer's layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(4, 16, 3), nn.LayerNorm(16)
        self.qkv, self.out, self.mlp = nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.pad(x, (2, 0))).transpose(1, 2)
        q, k, v = (
            t.unflatten(2, (2, 8)).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, 2)
        )
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + F.silu(self.mlp(x))


@torch.no_grad()
def test_a_causal_conv_transformer_over_a_thousand_steps(tmp_path: Path) -> None:
    model = Attending().eval()
    stream = infopt.compile_stream(model, torch.randn(1, 4, 32), hop=2, max_length=2000)
    assert stream.delay == 0 and not stream.report.fallbacks
    x = torch.randn(1, 4, 2000)
    torch.testing.assert_close(stream.run(x), model(x), rtol=1e-5, atol=1e-5)
    loaded = infopt.load(stream.save(tmp_path / "net.infopt"))
    with pytest.raises(infopt.ContextFull, match="compiled for 1000 hops"):
        loaded.run(torch.randn(1, 4, 2002))  # type: ignore[union-attr]


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return x * self.calls


class Listed(nn.Module):
    def forward(self, x: Tensor) -> list[Tensor]:
        return [x + 1]


class Even(nn.Module):
    """In pairs of samples."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(1, 2, x.shape[2] // 2, 2).sum(3)


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + 1, x


def test_what_cannot_stream_says_why() -> None:
    x = torch.randn(1, 2, 32)
    with pytest.raises(infopt.CannotStream, match=r"%1 aten\.mean\.dim.*mixes all of time"):
        infopt.compile_stream(Mean(), x, hop=4)
    for several in (Pair(), Listed()):
        with pytest.raises(infopt.CannotStream, match="expected one tensor as result"):
            infopt.compile_stream(several, x, hop=4)
    with pytest.raises(infopt.CannotStream, match="the model writes to its buffers or to the sig"):
        infopt.compile_stream(Counting().eval(), x, hop=4)
    with pytest.raises(infopt.CannotStream, match=r"runs on 32 samples and not on 33, a hop of 1"):
        infopt.compile_stream(Even(), x, hop=1)
    with pytest.raises(infopt.CannotStream, match="its stride of 2 does not divide"):
        infopt.compile_stream(nn.Conv1d(2, 2, 2, stride=2).eval(), x, hop=3)
    with pytest.raises(infopt.BadOption, match="hop: expected a positive int"):
        infopt.compile_stream(nn.ReLU(), x, hop=0)
    with pytest.raises(infopt.BadOption, match="example: expected a hop of 64 samples or more"):
        infopt.compile_stream(nn.ReLU(), x, hop=64)
    for axis in (3, -4):
        with pytest.raises(infopt.BadOption, match="axis: expected an axis of the example"):
            infopt.compile_stream(nn.ReLU(), x, hop=4, axis=axis)
    for length in (3, 4.0):
        with pytest.raises(infopt.BadOption, match="max_length: expected a hop of 4 or more"):
            infopt.compile_stream(nn.ReLU(), x, hop=4, max_length=length)  # type: ignore[arg-type]


def test_the_first_axis_may_be_named_from_the_end() -> None:
    stream = infopt.compile_stream(nn.ReLU(), torch.randn(8, 3), hop=2, axis=-2)
    assert stream.spec.axis == 0


@torch.no_grad()
def test_the_end_is_given_once_and_the_stream_may_go_on() -> None:
    """Every prefix is a signal: its steps and finish() of a copy are its offline result."""
    model = Dilated(False).eval()
    stream = infopt.compile_stream(model, torch.randn(1, 3, 64), hop=4)
    x = torch.randn(1, 3, 40)
    state, given = stream.start(), []
    with pytest.raises(infopt.InputMismatch, match="after one hop or more"):
        stream.finish(state)
    for hops, part in enumerate(x.split(4, 2), 1):
        y, state = stream.step(part.contiguous(), state)
        given.append(y)
        ended = state.copy()
        found = torch.cat((torch.cat(given, 2)[:, :, stream.delay :], stream.finish(ended)), 2)
        torch.testing.assert_close(found, model(x[:, :, : 4 * hops]), rtol=1e-5, atol=1e-5)
        with pytest.raises(infopt.StaleState, match="this state was stepped"):
            stream.finish(ended)
        with pytest.raises(infopt.StaleState, match="this state was stepped"):
            stream.step(part.contiguous(), ended)


@torch.no_grad()
def test_what_is_cut_off_at_the_end() -> None:
    """A result may be shorter than what the steps give, or as long."""
    x = torch.randn(1, 2, 32)
    stream = infopt.compile_stream(Cropped(), x, hop=4)
    assert (stream.delay, stream.spec.rest, stream.ending) == (0, -3, None)
    assert torch.equal(stream.run(x), Cropped()(x))
    _, state = stream.step(x[:, :, :4].contiguous(), stream.start())
    assert stream.finish(state).shape == (1, 2, 0)


class Cropped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x)[:, :, : x.shape[2] - 3]


def test_what_of_the_example_is_compared() -> None:
    """All of it, also where no step gives a place of the result; a long one without its end."""
    late = nn.Conv1d(2, 2, 9, padding=4).eval()
    assert not infopt.compile_stream(late, torch.randn(1, 2, 4), hop=4).report.notes
    stream = infopt.compile_stream(late, torch.randn(1, 2, 257), hop=1)
    assert any("the first 256 were compared, not the end" in n for n in stream.report.notes)
    stream = infopt.compile_stream(late, torch.randn(1, 2, 30), hop=4)  # no whole hops
    x = torch.randn(1, 2, 12)
    torch.testing.assert_close(stream.run(x), late(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("broken", ["started", "ended"])
def test_a_wrong_rule_is_found_on_the_example(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {"started": lambda s, flow, fill: flow.node, "ended": lambda s, flow, fill: flow}
    monkeypatch.setattr(streaming.Streaming, broken, wrong[broken])
    with pytest.raises(infopt.CannotStream, match=r"on the example, .* expected the offline f32"):
        infopt.compile_stream(Dilated(False).eval(), torch.randn(1, 3, 64), hop=4)


class Delayed:
    """A step that gives the offline result `delay` places late, but for one wrong place."""

    def __init__(self, whole: Tensor, hop: int, delay: int, wrong: int | None) -> None:
        self.whole, self.hop, self.delay = whole.clone(), hop, delay
        self.steps, self.rest = 0, delay
        if wrong is not None:
            self.whole[..., wrong] += 1

    def run(self, hop: Tensor, stores: object) -> Tensor:
        late = F.pad(self.whole, (self.delay, self.delay + self.hop))
        self.steps += 1
        return late.narrow(2, (self.steps - 1) * self.hop, self.hop)

    def finish(self, stores: object) -> list[Tensor]:
        return [self.run(self.whole, stores) for _ in range(-(-self.rest // self.hop))]


def compared(length: int, delay: int, wrong: int | None, limit: int | None = None):
    """What is said of a stream in hops of 4 of a model that looks one place ahead."""
    model, x = nn.Conv1d(1, 1, 3, padding=1, bias=False).eval(), torch.randn(1, 1, length)
    with torch.no_grad():
        step, kind = Delayed(model(x), 4, delay, wrong), "torch.float32"
        spec = StreamSpec((1, 1, 4), kind, 2, 4, (1, 1, 4), kind, 2, delay, (), limit, delay)
        note = _check(_traced(model, x).graph, step, spec, x)  # type: ignore[arg-type]
        return note, step.steps


@pytest.mark.parametrize(
    ("wrong", "part", "places"),
    [(0, "step 0", 3), (2, "step 0", 3), (3, "step 1", 4), (22, "step 5", 4), (23, "the end", 1)],
)
def test_every_place_of_the_example_is_compared(wrong: int, part: str, places: int) -> None:
    first = {"step 0": 0, "step 1": 3, "step 5": 19, "the end": 23}[part]
    message = rf"{part} on the example, {places} places from {first}: expected the offline f32"
    with pytest.raises(infopt.CannotStream, match=message):
        compared(24, 1, wrong)


def test_how_many_steps_are_compared() -> None:
    assert compared(24, 1, None) == (None, 7)  # six and the end
    assert compared(24, 0, None) == (None, 6)
    assert compared(8, 9, None) == (None, 5)
    for length, limit, count in ((1200, None, 256), (400, 7, 7)):
        note, steps = compared(length, 0, None, limit)
        hops = length // 4
        told = f"the example is {hops} hops long: the first {count} were compared, not the end"
        assert (note, steps) == (told, count)


class CodecDecoder(nn.Module):
    """As the decoders of audio codecs are (SEANet): frames, transposed convolutions with residuals
    between them, samples. Causal, or with what a transposed convolution gives too much cut off on
    both sides."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.causal, widths, strides = causal, (24, 12, 8), (4, 2)
        self.first, self.last = nn.Conv1d(16, 24, 7), nn.Conv1d(8, 1, 7)
        self.up = nn.ModuleList(
            nn.ConvTranspose1d(a, b, 2 * s, s) for a, b, s in zip(widths, widths[1:], strides)
        )
        self.inner = nn.ModuleList(nn.Conv1d(w, w, 3) for w in widths[1:])

    def padded(self, conv: nn.Conv1d, x: Tensor) -> Tensor:
        reach = conv.kernel_size[0] - 1
        before = reach if self.causal else reach // 2
        return conv(F.pad(x, (before, reach - before)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.padded(self.first, x)
        for up, inner in zip(self.up, self.inner):
            x, stride = up(F.elu(x)), up.stride[0]
            before = 0 if self.causal else stride // 2
            x = x[:, :, before : x.shape[2] - (stride - before)]
            x = x + self.padded(inner, F.elu(x))
        return torch.tanh(self.padded(self.last, F.elu(x)))


@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_a_codec_decodes_frame_by_frame(causal: bool) -> None:
    """A thousand frames, all of it native: offline to the bit, its last samples too."""
    model = CodecDecoder(causal).eval()
    stream = infopt.compile_stream(model, torch.randn(1, 16, 32), hop=1, batch_invariant=True)
    assert stream.spec.out_hop == 8 and (stream.delay > 0) == (not causal)
    assert not stream.report.fallbacks and not stream.report.aten_nodes
    x = torch.randn(1, 16, 1000)
    found = stream.run(x)
    offline = infopt.compile(model, (x,), batch_invariant=True)(x)
    assert found.shape == (1, 1, 8000) and torch.equal(found, offline)
    torch.testing.assert_close(found, model(x), rtol=1e-5, atol=1e-5)
