"""infopt.compile_stream: native steps against the offline model, states, artifacts, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import infopt
from infopt.compiler.stream import _check, _longer, _traced
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
    assert found.shape[2] == 4000 - stream.delay
    offline = infopt.compile(model, (x,), batch_invariant=True)(x)
    assert torch.equal(found, offline[:, :, : found.shape[2]])
    torch.testing.assert_close(found, model(x)[:, :, : found.shape[2]], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_down_and_up_again() -> None:
    model = Autoencoder().eval()
    stream = infopt.compile_stream(model, torch.randn(2, 2, 64), hop=8)
    x = torch.randn(2, 2, 8 * 100)
    found = stream.run(x)
    assert stream.delay == 11 and found.shape[2] == 800 - 11
    torch.testing.assert_close(found, model(x)[:, :, : found.shape[2]], rtol=1e-5, atol=1e-6)


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
    torch.testing.assert_close(stream.run(x), model(x)[:, :58], rtol=1e-5, atol=1e-5)


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


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + 1, x


def test_what_cannot_stream_says_why() -> None:
    x = torch.randn(1, 2, 32)
    with pytest.raises(infopt.CannotStream, match=r"%1 aten\.mean\.dim.*mixes all of time"):
        infopt.compile_stream(Mean(), x, hop=4)
    with pytest.raises(infopt.CannotStream, match="expected one tensor as result"):
        infopt.compile_stream(Pair(), x, hop=4)
    with pytest.raises(infopt.CannotStream, match="its stride of 2 does not divide"):
        infopt.compile_stream(nn.Conv1d(2, 2, 2, stride=2).eval(), x, hop=3)
    with pytest.raises(infopt.BadOption, match="hop: expected a positive int"):
        infopt.compile_stream(nn.ReLU(), x, hop=0)
    with pytest.raises(infopt.BadOption, match="example: expected a hop of 64 samples or more"):
        infopt.compile_stream(nn.ReLU(), x, hop=64)
    with pytest.raises(infopt.BadOption, match="axis: expected an axis of the example"):
        infopt.compile_stream(nn.ReLU(), x, hop=4, axis=3)


def test_an_example_that_is_too_short_is_noted() -> None:
    stream = infopt.compile_stream(
        nn.Conv1d(2, 2, 9, padding=8).eval(), torch.randn(1, 2, 8), hop=8
    )
    assert not stream.report.notes
    late = nn.Conv1d(2, 2, 9, padding=4).eval()
    stream = infopt.compile_stream(late, torch.randn(1, 2, 4), hop=4)
    assert any("too short to compare" in note for note in stream.report.notes)


def test_a_wrong_rule_is_found_on_the_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming.Streaming, "started", lambda self, flow, fill: flow.node)
    with pytest.raises(infopt.CannotStream, match=r"on the example, .* expected the offline f32"):
        infopt.compile_stream(Dilated(False).eval(), torch.randn(1, 3, 64), hop=4)


class Delayed:
    """A step that gives the offline result `delay` places late, but for one wrong place."""

    def __init__(self, whole: Tensor, hop: int, delay: int, wrong: int | None) -> None:
        self.whole, self.hop, self.delay = whole.clone(), hop, delay
        self.steps = 0
        if wrong is not None:
            self.whole[..., wrong] += 1

    def run(self, hop: Tensor, stores: object) -> Tensor:
        late = F.pad(self.whole, (self.delay, self.hop))
        self.steps += 1
        return late.narrow(2, (self.steps - 1) * self.hop, self.hop)


def compared(length: int, delay: int, wrong: int | None, limit: int | None = None):
    """What is said of a stream in hops of 4 of a model that looks one place ahead."""
    model, x = nn.Conv1d(1, 1, 3, padding=1, bias=False).eval(), torch.randn(1, 1, length)
    with torch.no_grad():
        step = Delayed(model(x), 4, delay, wrong)
        spec = StreamSpec((1, 1, 4), "torch.float32", 2, 4, 2, 4, delay, (), limit)
        graph, longer = _traced(model, x).graph, _longer(model, x, 4, 2).graph
        return _check(graph, longer, step, spec, x), step.steps  # type: ignore[arg-type]


@pytest.mark.parametrize(("wrong", "step", "places"), [(0, 0, 3), (2, 0, 3), (3, 1, 4), (15, 4, 4)])
def test_every_place_of_the_example_is_compared(wrong: int, step: int, places: int) -> None:
    first = max(step * 4 - 1, 0)
    message = rf"step {step} on the example, {places} places from {first}: expected the offline f32"
    with pytest.raises(infopt.CannotStream, match=message):
        compared(24, 1, wrong)


def test_places_that_the_end_of_the_example_reaches_are_not_compared() -> None:
    assert compared(24, 1, None) == (None, 6)
    assert compared(24, 1, 20) == (None, 6)  # the first of the last hop, whose end is padded
    with pytest.raises(infopt.CannotStream, match="step 5 on the example, 1 places from 19"):
        compared(24, 1, 19)
    # a hop that is not whole is no step
    assert compared(22, 0, None) == (None, 5)


def test_how_many_steps_are_compared() -> None:
    assert compared(400, 0, None) == (None, 64)
    assert compared(400, 0, None, limit=7) == (None, 7)
    assert compared(8, 4, None) == (None, 2)  # one hop of the two is late enough to compare
    note, _ = compared(4, 0, None)
    assert (
        note == "the example is too short to compare the stream with the offline result: 0 places"
    )
