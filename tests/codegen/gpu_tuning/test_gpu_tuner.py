"""Choosing schedules for a GPU: measured on a device of stated times, remembered, or estimated."""

import math
from dataclasses import replace

import pytest
import sympy
import torch
from torch import nn

pytest.importorskip("triton", minversion="3.6")
import infopt
from infopt.codegen.gpu_tuning.candidates import candidates
from infopt.codegen.gpu_tuning.clock import CallClock, clock_of
from infopt.codegen.gpu_tuning.known import Known, Place, rounded, what_of
from infopt.codegen.gpu_tuning.measuring import Bench, Timed
from infopt.codegen.gpu_tuning.tuner import GpuTuner
from infopt.codegen.interpreted_device import InterpretedDevice
from infopt.codegen.schedules import Database, Measured
from infopt.compiler import cli
from infopt.compiler.types import Dim
from tests.codegen.gpu_tuning.timed_device import SM90, TimedDevice, linear

H200 = Place("NVIDIA H200", "sm90", "3.6.0")
FAST = {"tile": "64x128x64 w4 s4", "few": "usual", "persistent": "usual", "loads": "pointers"}
USUAL = {"tile": "usual", "few": "usual", "persistent": "usual", "loads": "pointers"}


def fast_if(block_m, block_n, fast=10e-6, slow=20e-6):
    """The timing rule: one shape of tile is fast, in a program for each."""

    def rule(launch):
        found = [launch.constants.get(name) for name in ("BLOCK_M", "BLOCK_N", "PERSISTENT")]
        return fast if found == [block_m, block_n, False] else slow

    return rule


def tuner_on(device, effort=1, database=None):
    bench = Bench(device, device.clock, SM90)
    return GpuTuner(database or Database(), effort, SM90, (), bench)


def test_the_fastest_is_taken_and_remembered():
    device, database = TimedDevice(fast_if(64, 128), noise=0.05), Database()
    tuner, node = tuner_on(device, database=database), linear(512, 4096, 4096)
    assert tuner(*node) == tuner(*node) == FAST and tuner.measured == 1
    (choice,) = tuner.choices.values()
    assert choice.source == "measured" and choice.seconds == pytest.approx(10e-6, rel=0.05)
    assert choice.usual == pytest.approx(20e-6, rel=0.05)
    (entry,) = database.entries.values()
    assert (entry.schedule, entry.effort) == (FAST, 1)
    ran = device.count
    again = tuner_on(device, database=database)
    assert again(*node) == FAST and again.measured == 0 and device.count == ran
    assert next(iter(again.choices.values())).source == "database"
    thorough = tuner_on(device, 2, database)
    assert thorough(*node) == FAST and thorough.measured == 1
    assert [e.effort for e in database.entries.values()] == [2]


def test_at_most_eight_are_run():
    device = TimedDevice(lambda launch: 1e-6)
    tuner = tuner_on(device)
    tuner(*linear(512, 4096, 4096))
    assert len(device.texts) <= 8 and device.count == len(device.texts) * (1 + 5)
    (choice,) = tuner.choices.values()
    assert choice.why == "best of 8 of 24 that differ"


def test_noise_changes_nothing():
    """A gain within the noise is none: the usual schedule stays."""
    device = TimedDevice(fast_if(64, 128, fast=19.8e-6))
    assert tuner_on(device, 2)(*linear(512, 4096, 4096)) == USUAL
    device = TimedDevice(fast_if(64, 128, fast=19e-6), noise=0.3)
    assert tuner_on(device, 2)(*linear(512, 4096, 4096)) == USUAL


def test_neighbours_do_not_decide():
    """The median of the rounds is compared, not a mean that single slow ones would move."""
    tuner = tuner_on(TimedDevice(fast_if(64, 128)), 2)
    tuner(*linear(512, 4096, 4096))
    (choice,) = tuner.choices.values()
    assert choice.schedule == FAST and choice.seconds == pytest.approx(10e-6)
    assert choice.usual == pytest.approx(20e-6)


def is_fast(launch):
    return (launch.constants.get("BLOCK_M"), launch.constants.get("BLOCK_N")) == (64, 128)


@pytest.mark.parametrize(
    "trouble, reason",
    [
        ({"refused": is_fast}, "LibraryError: linear_tiles: out of resources"),
        ({"failing": is_fast}, "misaligned address"),
    ],
)
def test_what_fails_is_left_out(trouble, reason):
    tuner = tuner_on(TimedDevice(fast_if(64, 128), **trouble))
    assert tuner(*linear(512, 4096, 4096)) == USUAL
    (choice,) = tuner.choices.values()
    assert "1 failed, the first: " in choice.why and reason in choice.why


def test_a_launch_that_fails_in_the_middle_is_alone():
    """Not at its first run, but while it is timed."""
    device = TimedDevice(fast_if(64, 128))
    seen = []

    def failing(launch):
        seen.extend([1] if is_fast(launch) else [])
        return is_fast(launch) and len(seen) > 2

    device.failing = failing
    tuner = tuner_on(device)
    assert tuner(*linear(512, 4096, 4096)) == USUAL
    assert "1 failed" in next(iter(tuner.choices.values())).why


def test_where_the_usual_one_fails_another_is_taken():
    device = TimedDevice(
        fast_if(64, 128), refused=lambda launch: launch.constants["BLOCK_N"] != 128
    )
    tuner = tuner_on(device)
    assert tuner(*linear(512, 4096, 4096)) == FAST
    (entry,) = tuner.database.entries.values()
    assert entry.seconds == entry.usual


def test_where_all_fail_the_usual_one_stays():
    database = Database()
    tuner = tuner_on(TimedDevice(lambda launch: 1.0, refused=lambda x: True), database=database)
    assert tuner(*linear(512, 4096, 4096)) == USUAL
    assert next(iter(tuner.choices.values())).why.startswith("none could be measured; 8 failed")
    assert not database.entries and tuner.measured == 0


def test_operands_are_cold():
    """Copies of the operands are several times the second cache together, within reason."""
    bench = Bench(TimedDevice(lambda launch: 1e-6), None, SM90)
    seen = []

    class Clock:
        def rounds(self, arms, copies, rounds):
            seen.append(copies)
            return {name: [1.0] * rounds for name in arms}

    graph = candidates(*linear(64, 4096, 4096), SM90, ()).graph
    replace(bench, clock=Clock()).timed(graph, [USUAL], 3)
    assert seen == [-(-4 * SM90.caches[1] // (2 * 64 * 4096 + 2 * 4096 * 4096))]


# Without a GPU


def test_without_a_gpu_the_model_decides():
    tuner = GpuTuner(Database(), 0, SM90, ())
    assert tuner(*linear(512, 4096, 4096))["tile"] == "128x128x64 w8 s3"
    (choice,) = tuner.choices.values()
    assert choice.source == "model" and choice.seconds < 0.9 * choice.usual
    tuner = GpuTuner(Database(), 0, SM90, ())
    assert tuner(*linear(8192, 8192, 8192)) == USUAL
    assert next(iter(tuner.choices.values())).why == "none of 25 is estimated to gain 10%"


def test_rows_that_must_not_depend_on_their_batch():
    target = replace(SM90, batch_invariant=True)
    node = linear(512, 4096, 4096)
    database = Database()
    Known(database).add(what_of(node[0], ()), H200, Measured(FAST, 1e-6, 2e-6, 2))
    assert GpuTuner(database, 2, target, ())(*node) == USUAL


def test_the_chain_of_places():
    node = linear(512, 4096, 4096)
    what, here = what_of(node[0], ()), Place.of(SM90, TimedDevice(lambda launch: 1.0))
    assert here.device == "NVIDIA H200" and here.arch == "sm90"
    nearer = [
        Place("AMD MI300X", "gfx942", here.triton),
        Place("NVIDIA A100", "sm80", here.triton),
        Place("NVIDIA H900", "sm99", here.triton),
        Place("NVIDIA H100", "sm90", "1.0"),
        Place("NVIDIA H100", "sm90", here.triton),
        replace(here, triton="1.0"),
        here,
    ]
    expected = [None, None, *["the same family"], *["the same architecture"] * 2, *["here"] * 2]
    known = Known(Database())
    for seconds, (place, near) in enumerate(zip(nearer, expected, strict=True)):
        known.add(what, place, Measured(FAST, float(seconds), 1.0, 1))
        found = known.nearest(what, here)
        assert (found and found.near) == near
        assert found is None or (found.place, found.measured.seconds) == (place, seconds)
    assert known.exact(what, here).seconds == 6.0 and known.exact("other", here) is None
    again = Known(known.database)  # from the keys alone
    assert again.nearest(what, here) == found


def test_what_another_gpu_measured_is_used_and_said():
    node, database = linear(512, 4096, 4096), Database()
    Known(database).add(what_of(node[0], ()), H200, Measured(FAST, 1e-6, 2e-6, 1))
    tuner = GpuTuner(database, 0, SM90, ())
    assert tuner(*node) == FAST
    (choice,) = tuner.choices.values()
    assert choice.source == "database"
    assert choice.why == "measured on NVIDIA H200 (sm90, triton 3.6.0), the same architecture"
    unknown = {**FAST, "tile": "8x8x8 w1 s1"}
    Known(database).add(what_of(node[0], ()), H200, Measured(unknown, 1e-6, 2e-6, 1))
    assert GpuTuner(database, 0, SM90, ())(*node)["tile"] == "128x128x64 w8 s3"  # the model's


def test_sizes_are_rounded_in_keys():
    assert [rounded(n) for n in (0, 1, 7, 8, 9, 1024, 1025, 14336, 11008)] == [
        *(0, 1, 7, 8, 10, 1024, 1280, 14336, 12288)
    ]
    dim = Dim(sympy.Symbol("rows", integer=True, positive=True), 2, 5000, 500)
    node, _ = linear(dim.symbol, 4096, 4096, dims=(dim,))
    assert what_of(node, (dim,)) == what_of(linear(512, 4096, 4096)[0], ())
    assert "bfloat16[512, 4096]" in what_of(node, (dim,))
    assert what_of(linear(512, 4096, 4096, torch.float16)[0], ()) != what_of(node, (dim,))


def test_failures_are_one_line():
    assert Timed.failed(ValueError("a\nb")) == Timed(math.inf, failure="ValueError: a")


def test_who_can_be_timed():
    assert clock_of(None) is None and clock_of(InterpretedDevice()) is None
    device = TimedDevice(lambda launch: 1.0)
    assert clock_of(device) is device.clock
    times = CallClock().rounds({"a": lambda i: None}, 2, 3)
    assert len(times["a"]) == 3 and min(times["a"]) >= 0


# Through compile


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("INFOPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@torch.no_grad()
def test_compile_measures_and_reports(cache, capsys):
    net = nn.Linear(256, 256).eval().to(torch.bfloat16)
    x = torch.randn(80, 256).bfloat16()
    device = TimedDevice(fast_if(64, 64))
    made = infopt.compile(net, (x,), target="cuda:sm90", device=device, tune=1)
    (choice,) = made.report.schedules.values()
    assert choice.source == "measured" and "64x64x64" in str(choice)
    assert "measured the schedules of 1 kernels" in made.report.notes
    assert "measured: best of" in str(made.report) and '"source": "measured"' in made.report.json()
    again = infopt.compile(net, (x,), target="cuda:sm90", tune=0)
    (choice,) = again.report.schedules.values()
    assert choice.source == "database" and choice.schedule["tile"] == "64x64x64 w4 s4"
    assert cli.main(["tuning", "--json"]) == 0
    assert " on NVIDIA H200 (sm90, triton " in capsys.readouterr().out


def test_tuning_asked_for_without_a_gpu_says_so(cache):
    net, x = nn.Linear(256, 256).eval().to(torch.bfloat16), torch.randn(80, 256).bfloat16()
    report = infopt.compile(net, (x,), target="cuda:sm90", tune=2).report
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert "tune=2: there is no GPU here to measure on" in report.notes
    assert [c.source for c in report.schedules.values()] != ["measured"]
