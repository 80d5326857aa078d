"""Recorded runs: when they are made, what they are replayed for, whose memory they use."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("triton")
from infopt.codegen.interpreted_device import InterpretedDevice
from infopt.codegen.load_gpu import gpu_program
from infopt.runtime.errors import InputMismatch
from tests.gpu.interpreted import lowered_of, program_of


class Streams(InterpretedDevice):
    """A device with several streams and pools, which remembers what it was asked for."""

    def __init__(self):
        super().__init__()
        self.on, self.asked, self.pools = 0, [], 0

    def stream(self):
        return self.on

    def pool(self):
        self.pools += 1
        return f"pool {self.pools}"

    def record(self, run, pool):
        self.asked.append(("record", pool))
        return super().record(run, pool)

    def mark(self, old=None):
        return self.on

    def wait(self, mark):
        self.asked.append(("wait", self.on, mark))

    def lend(self, tensors):
        self.asked.append(("lend", self.on, len(list(tensors))))


def twice(x, y):
    return (x + y).exp() * 2, torch.cumsum(x - y, 0) + 1


def args(*shape):
    return torch.randn(*shape), torch.randn(*shape)


def recorded(f, given, dynamic=False):
    device = Streams()
    return gpu_program(lowered_of(f, given, dynamic), device, record=True), device


def test_the_second_call_of_a_size_is_recorded():
    made, device = recorded(twice, args(5, 7), dynamic=True)
    results = []
    for shape in ((5, 7), (5, 7), (3, 4), (5, 7), (3, 4)):
        x, y = args(*shape)
        results.append((made([x, y]), twice(x, y)))
    for found, expected in results:  # later calls left them alone
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)
    assert not made._recordings.declined
    assert device.asked == [("record", "pool 1")] * 2  # one pool for both


def step(x, cache):
    cache.add_(x)
    return cache * 2


def test_a_recording_reads_what_it_writes_where_it_lies():
    made, device = recorded(step, args(4, 4))
    mine, theirs = torch.zeros(4, 4), torch.zeros(4, 4)
    for _ in range(4):
        x = torch.randn(4, 4)
        torch.testing.assert_close(made([x, mine])[0], step(x, theirs))
        torch.testing.assert_close(mine, theirs)
    other = torch.ones(4, 4)
    for value in (2.0, 3.0, 4.0):  # other memory: a recording of its own, made at the second call
        made([torch.ones(4, 4), other])
        assert torch.equal(other, torch.full((4, 4), value))
    torch.testing.assert_close(mine, theirs)
    assert len(device.asked) == 2


def test_what_a_recording_writes_is_not_kept_by_it():
    class Forgetting(InterpretedDevice):
        def record(self, run, pool):  # as a graph does, which knows addresses alone
            rerun, outputs = super().record(run, pool)
            rerun.run = None
            return rerun, outputs

    made = gpu_program(lowered_of(step, args(4, 4)), Forgetting(), record=True)
    cache = torch.zeros(4, 4)
    for _ in range(2):
        made([torch.ones(4, 4), cache])
    assert len(made._recordings._kept) == 1
    memory = weakref.ref(cache)
    del cache
    gc.collect()
    assert memory() is None


def test_the_same_address_with_other_strides_is_another_recording():
    made, device = recorded(lambda x, cache: cache.add_(x) * 2, args(4, 5), dynamic=True)
    memory = torch.zeros(64)
    for shape in ((4, 5), (4, 5), (2, 10), (2, 10), (4, 5)):
        cache, x = memory[: shape[0] * shape[1]].view(shape), torch.randn(shape)
        expected = (cache + x) * 2
        assert torch.equal(made([x, cache])[0], expected)
    assert len(device.asked) == 2
    with pytest.raises(InputMismatch):
        made([torch.zeros(4, 5, dtype=torch.float64), memory[:20].view(4, 5)])


def test_streams_take_turns():
    made, device = recorded(twice, args(5, 7))
    for stream in (1, 1, 1, 2, 2, 1):
        device.on = stream
        x, y = args(5, 7)
        for a, b in zip(made([x, y]), twice(x, y), strict=True):
            torch.testing.assert_close(a, b)
    assert device.asked == [
        ("record", "pool 1"),  # at the second call
        ("wait", 2, 1),
        ("lend", 2, 2),
        ("lend", 2, 2),
        ("wait", 1, 2),
    ]


def test_what_cannot_be_recorded_says_why():
    made = program_of(lambda x: (x * 2, x[1:]), (torch.randn(8),), record=True)
    assert "not the call's own" in made._recordings.declined
    for _ in range(3):
        x = torch.randn(8)
        assert torch.equal(made([x])[0], x * 2)


def test_recordings_are_bounded(monkeypatch):
    monkeypatch.setattr("infopt.runtime.recording.MOST", 2)
    monkeypatch.setattr("infopt.runtime.recording.REMEMBERED", 3)
    made, device = recorded(lambda x: F.relu(x) + 1, (torch.randn(4, 5),), dynamic=True)
    for n in (2, 2, 3, 3, 2, 4, 4, 2, 3, 5, 6, 7, 8, 2):
        x = torch.randn(n, 5)
        assert torch.equal(made([x])[0], F.relu(x) + 1)
    kept = made._recordings
    assert len(kept._kept) == 2 and len(kept._seen) == 3
    assert len(device.asked) == 3  # 2, 3 and 4; of them 3 was used longest ago, and is gone
