"""Adapters of a compiled model: rows of a batch that use different ones, loading, artifacts."""

from __future__ import annotations

import copy
import threading

import pytest
import torch

import infopt
from infopt.models.encoder import Encoder, EncoderConfig
from infopt.runtime.errors import InputMismatch
from infopt.runtime.lifetime import arena_bytes
from tests.adapters import merged, peft_folder, random_adapter

LAYERS = [
    f"layers.{i}.{name}"
    for i in range(2)
    for name in ("attention.query", "attention.value", "up", "down")
]
ROOM = infopt.Adapters(rank=6, slots=3, layers="*query,*value,*up,*down")
torch.manual_seed(0)
MODEL = Encoder(EncoderConfig(100, 32, 2, 4, 80, 16)).eval()
IDS = torch.randint(0, 100, (4, 9))
ONE = random_adapter(MODEL, LAYERS, 4, 1)
TWO = random_adapter(MODEL, LAYERS[:3], 6, 2)
MIXED = ["one", None, "two", "one"]


@pytest.fixture(scope="module")
def batch():
    return torch.export.Dim("batch", min=1, max=16)


@pytest.fixture(scope="module")
def plain(batch):
    return infopt.compile(MODEL, (IDS,), dynamic_shapes=({0: batch},))


@pytest.fixture(scope="module")
def roomy(batch):
    return infopt.compile(MODEL, (IDS,), dynamic_shapes=({0: batch},), adapters=ROOM)


@pytest.fixture
def compiled(roomy):
    for name in roomy.adapters.names:
        roomy.adapters.unload(name)
    roomy.adapters.load("one", ONE, scale=0.5)
    roomy.adapters.load("two", TWO)
    return roomy


def expected(names, ids=IDS, mask=None):
    """Each row by the model whose weights have its adapter."""
    models = {None: MODEL, "one": merged(MODEL, ONE, 0.5), "two": merged(MODEL, TWO)}
    with torch.no_grad():
        rows = [
            models[name](ids[[row]], None if mask is None else mask[[row]])
            for row, name in enumerate(names)
        ]
    return torch.cat(rows)


def test_every_row_has_its_own(compiled, plain) -> None:
    found = compiled(IDS, adapters=MIXED)
    torch.testing.assert_close(found, expected(MIXED), rtol=1e-4, atol=1e-5)
    assert torch.equal(found[1], plain(IDS)[1])
    assert not torch.allclose(found[0], plain(IDS)[0], atol=1e-2)
    for row, name in enumerate(MIXED):  # the rows of one adapter in a batch of their own
        alone = compiled(IDS[[row] * 4], adapters=name)
        assert torch.equal(alone[0], found[row])


def test_no_adapter_is_the_model_to_the_bit(compiled, plain) -> None:
    for rows in (1, 4, 11):
        ids = torch.randint(0, 100, (rows, 9))
        assert torch.equal(compiled(ids), plain(ids))
        assert torch.equal(compiled(ids, adapters=[None] * rows), plain(ids))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_bits_in_short_formats(dtype) -> None:
    """Those of the model too, but what follows a layer is no part of it then: an activation reads
    the layer's result rounded."""
    model = copy.deepcopy(MODEL).to(dtype)
    room = infopt.Adapters(6, 1, "*query,*key,*value")  # which nothing is fused with
    made, plain = infopt.compile(model, (IDS,), adapters=room), infopt.compile(model, (IDS,))
    own = {name: t for name, t in ONE.items() if "attention" in name}
    made.adapters.load("own", own)
    assert torch.equal(made(IDS), plain(IDS))
    found = made(IDS, adapters=["own", None, "own", None])
    assert torch.equal(found[1::2], plain(IDS)[1::2])
    assert not torch.equal(found[::2], plain(IDS)[::2])

    net = torch.nn.Sequential(torch.nn.Linear(48, 80), torch.nn.GELU()).to(dtype).eval()
    x = torch.randn(5, 48, dtype=dtype)
    layer = infopt.compile(net[0], (x,))
    activation, fused = infopt.compile(net[1], (layer(x),)), infopt.compile(net, (x,))
    found = infopt.compile(net, (x,), adapters=infopt.Adapters())(x)
    assert torch.equal(found, activation(layer(x)))
    assert not torch.equal(found, fused(x))


def test_the_report_says_which_layers(compiled) -> None:
    entry = compiled.report.find("attach-adapters")
    assert len(entry.applied) == len(LAYERS) == len(compiled.adapters.room.layers)
    assert {s.reason for s in entry.sites if not s.applied} == {"not chosen"}
    assert compiled.report.fallbacks == {}
    assert compiled.report.kernels["adapter_linear"] == len(LAYERS)


def test_padding_is_dropped_with_adapters_too() -> None:
    class Masked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = MODEL

        def forward(self, ids, mask):
            return self.model(ids, mask) * mask[:, :, None]

    ids, mask = torch.randint(0, 100, (64, 16)), torch.arange(16).expand(64, -1) < 2
    made = infopt.compile(Masked().eval(), (ids, mask), adapters=ROOM)
    assert made.report.find("drop-padding").applied
    adapter = {f"model.{name}": t for name, t in TWO.items()}
    made.adapters.load("two", adapter)
    names = [None, "two", "two", None] * 16
    right = expected(names, ids, mask=mask) * mask[:, :, None]
    found = made(ids, mask, adapters=names)
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)


def test_weights_in_bytes(batch) -> None:
    given = {"dynamic_shapes": ({0: batch},), "weights": "int8"}
    without = infopt.compile(MODEL, (IDS,), **given)
    made = infopt.compile(MODEL, (IDS,), adapters=ROOM, **given)
    assert torch.equal(made(IDS), without(IDS))
    made.adapters.load("one", ONE, scale=0.5)
    found = made(IDS, adapters=["one", None, "one", None])
    assert torch.equal(found[1], without(IDS)[1])
    right = expected(["one", None, "one", None])
    assert (found - right).norm() < 0.03 * right.norm()


def test_loading_and_unloading(compiled) -> None:
    adapters = compiled.adapters
    assert adapters.names == ("one", "two")
    before = compiled(IDS, adapters="one")
    adapters.load("three", TWO)
    with pytest.raises(infopt.AdaptersFull, match=r"no slot for 'four': 3 are taken by \['one', "):
        adapters.load("four", ONE)
    adapters.unload("three")
    with pytest.raises(infopt.UnknownAdapter, match=r"no adapter 'three' is loaded, only \['one'"):
        compiled(IDS, adapters="three")
    with pytest.raises(infopt.UnknownAdapter):
        adapters.unload("three")
    adapters.load("two", ONE, scale=0.5)  # exchanged
    assert adapters.names == ("one", "two")
    assert torch.equal(compiled(IDS, adapters="two"), before)
    assert torch.equal(compiled(IDS, adapters="one"), before)


def test_a_folder_of_peft(compiled, tmp_path) -> None:
    before = compiled(IDS, adapters="one")
    compiled.adapters.load("same", peft_folder(tmp_path, ONE, lora_alpha=2))
    assert torch.equal(compiled(IDS, adapters="same"), before)


def changed(name, tensor):
    return {**ONE, name: tensor}


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (random_adapter(MODEL, ["layers.0.attention.key"], 2, 0),
         r"layers\.0\.attention\.key: no such layer has room for adapters, only layers\.0\.attent"),
        (random_adapter(MODEL, LAYERS, 7, 0), "rank 7, and there is room for 6"),
        (changed("layers.1.down.lora_A.weight", torch.randn(4, 81)),
         r"layers\.1\.down: expected lora_A \[r, 80\] and lora_B \[32, r\], found \[4, 81\]"),
        (changed("layers.1.down.lora_B.weight", torch.full((32, 4), torch.nan)),
         "layers.1.down: numbers that are not finite in torch.float32"),
    ],
    ids=["unknown layer", "rank", "shape", "not finite"],
)  # fmt: skip
def test_what_does_not_fit_changes_nothing(compiled, adapter, message) -> None:
    before, names = compiled(IDS, adapters=MIXED), compiled.adapters.names
    for name in ("one", "new"):
        with pytest.raises(infopt.AdapterMismatch, match=message):
            compiled.adapters.load(name, adapter)
    assert compiled.adapters.names == names
    assert torch.equal(compiled(IDS, adapters=MIXED), before)


def test_calls_that_name_too_many_or_too_few(compiled) -> None:
    with pytest.raises(InputMismatch, match="adapters: expected a name, or a list of 4 of them"):
        compiled(IDS, adapters=["one"])
    with pytest.raises(InputMismatch, match="unknown argument 'adapter'"):
        compiled(IDS, adapter="one")


def test_a_slot_is_free_when_the_last_call_has_ended(compiled) -> None:
    """The rule for calls under way: whoever was given an adapter keeps it, and its slot."""
    adapters = compiled.adapters
    held = adapters.choose("one", 1)
    adapters.load("three", TWO)
    adapters.unload("one")
    with pytest.raises(infopt.AdaptersFull):
        adapters.load("four", TWO)
    del held
    adapters.load("four", TWO)


def test_threads_call_while_adapters_come_and_go(compiled) -> None:
    right, wrong, stop = compiled(IDS, adapters=MIXED), [], threading.Event()

    def call() -> None:
        while not stop.is_set():
            if not torch.equal(compiled(IDS, adapters=MIXED), right):
                wrong.append("another result")

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        compiled.adapters.load("three", TWO)
        compiled.adapters.unload("three")
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_weights_can_be_exchanged_and_adapters_stay(compiled) -> None:
    compiled.load_weights({"layers.0.up.bias": MODEL.layers[0].up.bias.data + 1})
    found = compiled(IDS, adapters=MIXED)
    assert not torch.allclose(found, expected(MIXED), atol=1e-3)
    compiled.load_weights({"layers.0.up.bias": MODEL.layers[0].up.bias.data})
    torch.testing.assert_close(compiled(IDS, adapters=MIXED), expected(MIXED), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("native", ["any", "never"])
def test_an_artifact_keeps_the_room_and_what_was_loaded(compiled, tmp_path, native) -> None:
    right = compiled(IDS, adapters=MIXED)
    path = compiled.save(tmp_path / "m.infopt", golden=True)
    loaded = infopt.load(path, native=native, check=True)
    assert loaded.adapters.names == ("one", "two") and loaded.is_native == (native == "any")
    found = loaded(IDS, adapters=MIXED)
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)
    assert native == "never" or torch.equal(found, right)
    loaded.adapters.load("three", TWO)
    assert torch.equal(loaded(IDS, adapters="three"), loaded(IDS, adapters="two"))
    with pytest.raises(infopt.AdaptersFull):
        loaded.adapters.load("four", TWO)
    again = infopt.load(path, native=native)  # the file was not written to
    assert again.adapters.names == ("one", "two")


def test_parts_of_a_batch_keep_their_adapters(batch, compiled) -> None:
    own = {name: t for name, t in ONE.items() if "attention" in name}
    limit = arena_bytes(compiled._built.lowered.plan, [4]) // 2
    lean = infopt.compile(
        MODEL,
        (IDS,),
        dynamic_shapes=({0: batch},),
        adapters=infopt.Adapters(4, 2, "*query,*value"),
        max_activations=limit,
    )
    assert any("calls are cut along batch" in note for note in lean.report.notes)
    lean.adapters.load("own", own)
    found = lean(IDS, adapters=[None, "own", None, "own"])
    with torch.no_grad():
        right = torch.stack([m(IDS) for m in (MODEL, merged(MODEL, own))])
    torch.testing.assert_close(found[::2], right[0, ::2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1::2], right[1, 1::2], rtol=1e-4, atol=1e-5)


def test_what_cannot_be_asked_for() -> None:
    with pytest.raises(infopt.BadOption, match=r"no layer of '\*nothing' has room; .*: not chosen"):
        infopt.compile(MODEL, (IDS,), adapters=infopt.Adapters(layers="*nothing"))
    with pytest.raises(Exception, match="adapters: who calls says which of them"):
        torch.compile(MODEL, backend="infopt", options={"adapters": ROOM})(IDS)
    with pytest.raises(infopt.BadOption, match="adapters chooses passes, and passes lists them"):
        infopt.compile(MODEL, (IDS,), adapters=ROOM, passes=infopt.default_passes())

    class Own(torch.nn.Module):
        def forward(self, x, adapters):
            return x + adapters

    with pytest.raises(infopt.BadOption, match="the model has an argument 'adapters' of its own"):
        infopt.compile(Own(), (IDS, IDS), adapters=ROOM)
