"""A user's pass, in a file of its own outside the package, through both front doors."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

import infopt

SOURCE = '''
import infopt

class GeluToTanh(infopt.Rule):
    """gelu(x) -> gelu(x, approximate="tanh"): cheaper where erf is slow."""
    name, stage = "gelu-to-tanh", infopt.Stage.COMPRESS
    accuracy = infopt.Close(rtol=5e-3, atol=5e-3)

    def pattern(self, o, x):
        return o.gelu(x, approximate="none")

    def legal(self, m, ctx):
        return None if m.x.shape[-1] > 32 else f"x is {m.x.type}, too narrow to matter"

    def gain(self, m, ctx):
        return 1e-6

    def rewrite(self, o, x):
        return o.gelu(x, approximate="tanh")
'''


@pytest.fixture
def passes(tmp_path: Path):
    file = tmp_path / "my_passes.py"
    file.write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("my_passes", file)
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["my_passes"] = module
    spec.loader.exec_module(module)
    yield infopt.default_passes(add=[module.GeluToTanh()])
    del sys.modules["my_passes"]


@pytest.fixture
def net():
    torch.manual_seed(0)
    torch._dynamo.reset()
    layers = (nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 24), nn.GELU())
    return nn.Sequential(*layers).eval()


def check(net, fast, x):
    with torch.no_grad():
        want, got = net(x), fast(x)
        tanh = nn.functional.gelu(net[0](x), approximate="tanh")
        exact_elsewhere = nn.functional.gelu(net[2](tanh))
    torch.testing.assert_close(got, exact_elsewhere, rtol=1e-5, atol=1e-5)
    assert 0 < (got - want).abs().max() < 5e-3
    told = infopt.explain(fast, "gelu-to-tanh")
    assert told.count(": applied") == 1
    assert told.count("declined: x is f32[5, 24], too narrow to matter") == 1
    assert "Close(rtol=0.005, atol=0.005)" in told


def test_through_torch_compile(net, passes):
    check(net, torch.compile(net, backend="infopt", options={"passes": passes}), torch.randn(5, 16))


def test_through_infopt_compile(net, passes):
    x = torch.randn(5, 16)
    compiled = infopt.compile(net, (x,), passes=passes)
    check(net, compiled, x)
    entry = compiled.report.find("gelu-to-tanh")
    assert entry.error and len(entry.applied) == len(entry.declined) == 1
    assert "gelu-to-tanh" in str(compiled.report)


def test_another_strictness_is_another_key(passes):
    keys = {p.key for p in passes}
    assert len(keys) >= len({type(p) for p in passes})
