"""Models saved and loaded: trust, golden calls, signatures, several targets, exchanged weights."""

import json
import os
import shutil
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

import infopt
from infopt.compiler.cli import main
from infopt.runtime import cpu, loading
from infopt.runtime.errors import (
    ArtifactCorrupt,
    ArtifactUntrusted,
    GoldenMismatch,
    WeightsMismatch,
)
from infopt.runtime.loading import read_manifest
from infopt.runtime.verdict import verdicts


class Net(nn.Module):
    """A constant folded from a buffer, tied names, an unused parameter, integers."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 8)
        self.third = self.second
        self.unused = nn.Linear(2, 2)
        self.register_buffer("scale", torch.rand(8))
        self.register_buffer("order", torch.tensor([1, 0, 2, 3, 4, 5, 6, 7]))

    def forward(self, x):
        y = self.second(nn.functional.gelu(self.first(x))) * torch.sqrt(self.scale + 1)
        return {"y": torch.softmax(y[:, self.order], -1), "z": self.third(self.first(x))}


def close(found, expected):
    for name in ("y", "z"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(1)
    return Net().eval()


@pytest.fixture(scope="module")
def compiled(net):
    rows = torch.export.Dim("rows", min=1, max=64)
    return infopt.compile(net, (torch.randn(4, 8),), dynamic_shapes={"x": {0: rows}}, strict=True)


@pytest.fixture
def saved(compiled, tmp_path):
    return compiled.save(tmp_path / "model", golden=2)


@pytest.fixture
def no_code(monkeypatch):
    def refuse(name, code):
        raise AssertionError(f"{name} was mapped as code")

    monkeypatch.setattr(loading, "map_code", refuse)


def test_sizes_have_the_users_names(compiled, saved):
    assert [(d.name, d.lo, d.hi) for d in read_manifest(saved).dims] == [("rows", 1, 64)]
    assert "rows" in str(compiled.graph)
    with pytest.raises(infopt.InputMismatch, match="1 <= rows <= 64, found 65"):
        infopt.load(saved)(torch.zeros(65, 8))


def test_dims_named_in_every_form_that_torch_takes():
    rows, columns = torch.export.Dim("rows"), torch.export.Dim("columns")

    class Sum(nn.Module):
        def forward(self, x, pair, *, k):
            return x + pair[0] * k["a"].sum() + pair[1].sum()

    f = Sum().eval()
    x, y, z = torch.randn(3, 5), torch.randn(3, 5), torch.randn(7, 2)
    compiled = infopt.compile(
        f,
        (x, [y, z]),
        {"k": {"a": torch.randn(7, 4)}},
        dynamic_shapes={
            "x": {0: rows, 1: torch.export.Dim.AUTO},
            "pair": [{0: rows, 1: torch.export.Dim.AUTO}, (columns, None)],
            "k": {"a": {0: columns}},
        },
        strict=True,
    )
    names = [d.name for d in compiled.graph.dims]
    assert {"rows", "columns"} < set(names) and len(names) == 3
    k = {"a": torch.randn(7, 4)}
    found, expected = compiled(x, [y, z], k=k), f(x, [y, z], k=k)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_code_that_may_not_run_is_not_mapped_and_torch_computes(saved, net, no_code):
    x = torch.randn(7, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        program = infopt.load(saved, native="never", check=True)
    assert program.level == "reference" and not program.is_native
    assert "native='never'" in program.notes[0]
    close(program(x), net(x))
    os.link(saved / "plans" / "reference.json", saved.parent / "second_name")
    with pytest.warns(infopt.NativeCodeRefused, match=r"plans/reference.json has 2 names"):
        program = infopt.load(saved)
    close(program(x), net(x))
    os.unlink(saved.parent / "second_name")
    (saved / "manifest.json").chmod(0o666)
    with pytest.warns(infopt.NativeCodeRefused, match=r"manifest.json can be written by every"):
        infopt.load(saved)


def test_another_users_artifact(saved, monkeypatch, no_code):
    is_root, stranger = os.geteuid() == 0, os.geteuid() + 12345
    monkeypatch.setattr("infopt.runtime.trust.os.geteuid", lambda: stranger)
    if is_root:  # its files are everybody's
        for folder, _, files in os.walk(saved):
            for name in (folder, *(os.path.join(folder, f) for f in files)):
                os.chown(name, 4321, -1)
    with pytest.warns(infopt.NativeCodeRefused, match="belongs to another user"):
        assert infopt.load(saved).level == "reference"


def test_without_a_reference_it_is_an_error(saved, no_code):
    from tests.runtime.test_artifact import rewrite  # the manifest as its author could write it

    rewrite(saved, lambda m: (m.pop("reference"), m["files"].pop("plans/reference.json")))
    (saved / "plans" / "reference.json").unlink()
    with pytest.raises(infopt.ArtifactUnsafe, match="it has nothing else: native='never'"):
        infopt.load(saved, native="never")


def test_golden_calls(saved, compiled, net):
    assert infopt.load(saved).check_golden() == 2
    program = infopt.load(saved, check=True)
    state = net.state_dict()
    changed = {"first.weight": state["first.weight"] + 0.01}
    program.load_weights(changed)
    with pytest.raises(
        GoldenMismatch, match=r"golden call 0, output y: off by .* \(relative RMS\)"
    ):
        program.check_golden()
    assert main(["verify", str(saved), "--golden"]) == 0


def test_a_program_in_bf16_has_a_measured_golden_limit(net, tmp_path):
    compiled = infopt.compile(net, (torch.randn(4, 8),), compute="bf16", strict=True)
    path = compiled.save(tmp_path / "model", golden=True)
    assert infopt.load(path, check=True, native="never").level == "reference"


def test_signed_artifacts(saved, tmp_path, capsys, no_code):
    pytest.importorskip("cryptography")
    from cryptography.hazmat.primitives.asymmetric import ec

    from tests.runtime.test_signature_file import write_keys

    private, public = write_keys(tmp_path, ec.generate_private_key(ec.SECP256R1()))
    _, stranger = write_keys(tmp_path, ec.generate_private_key(ec.SECP256R1()), "stranger")
    with pytest.raises(ArtifactUntrusted, match=r"found no model.sig"):
        infopt.load(saved, verify_with=public)
    assert main(["sign", str(saved), "--key", str(private)]) == 0
    assert main(["verify", str(saved), "--key", str(public), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.split("\n", 1)[1])["signed"] is True
    infopt.verify(saved)  # without a key the signature is not looked at
    with pytest.raises(ArtifactUntrusted, match="not by the key"):
        infopt.load(saved, verify_with=stranger)
    assert main(["verify", str(saved), "--key", str(stranger)]) == 1
    # the author of an edited artifact can make its digests true, but not the signature
    from tests.runtime.test_artifact import rewrite

    rewrite(saved, lambda m: m.update(about={"edited": True}))
    infopt.verify(saved)
    with pytest.raises(ArtifactUntrusted, match=r"manifest.json: expected sha256"):
        infopt.load(saved, verify_with=public)


def test_a_signature_lets_anothers_code_run(saved, tmp_path, monkeypatch):
    pytest.importorskip("cryptography")
    from cryptography.hazmat.primitives.asymmetric import ec

    from tests.runtime.test_signature_file import write_keys

    private, public = write_keys(tmp_path, ec.generate_private_key(ec.SECP384R1()))
    infopt.sign(saved, private)
    (saved / "manifest.json").chmod(0o666)
    with pytest.warns(infopt.NativeCodeRefused):
        assert not infopt.load(saved).is_native
    program = infopt.load(saved, verify_with=public, native="signed")
    assert program.is_native or not program.manifest.variants[0].libraries
    tool = shutil.which("model_signing")
    if tool is not None:  # the tool of the format's own project
        arguments = [tool, "verify", "key", str(saved), "--public_key", str(public)]
        subprocess.run([*arguments, "--signature", str(saved / "model.sig")], check=True)


def test_several_levels_in_one_artifact(compiled, tmp_path, net):
    one = compiled.save(tmp_path / "one")
    fat = compiled.save(tmp_path / "fat", targets=["cpu:scalar", "cpu:avx2"])
    manifest = read_manifest(fat)
    levels = [v.level for v in manifest.variants]
    assert {"scalar", "avx2"} <= set(levels) and len(set(levels)) == len(levels)
    sizes = [read_manifest(p).files["weights.safetensors"].size for p in (one, fat)]
    assert sizes[0] == sizes[1]  # the weights are stored once
    x = torch.randn(3, 8)
    close(infopt.load(fat)(x), net(x))
    libraries = any(v.libraries for v in manifest.variants)
    for level in ("scalar", "avx2") if libraries else ():
        machine = cpu.Cpu("x86_64", "a test", frozenset(cpu.FEATURES[level]), 2, {})
        found = {v.program: v for v in verdicts(manifest, machine, "linux")}
        assert found[level].answer == "runs" and found["reference"].answer == "runs slower"
        if level == "avx2":
            assert found["scalar"].answer == "runs slower"
            assert found["scalar"].reason == "made for scalar, the machine has avx2"
        else:
            assert found["avx2"].answer == "cannot run"
            assert found["avx2"].reason == "needs avx2, fma, f16c"
    arm = cpu.Cpu("aarch64", "a test", frozenset(), 2, {})
    answers = {v.program: v.answer for v in verdicts(manifest, arm, "linux")}
    assert answers["reference"] == "runs slower"
    assert not libraries or answers["avx2"] == "cannot run"


def test_a_machine_that_no_level_fits_runs_the_reference(saved, net, monkeypatch, no_code):
    machine = cpu.Cpu("riscv64", "a test", frozenset(), 2, {})
    monkeypatch.setattr("infopt.runtime.verdict.detect", lambda: machine)
    program = infopt.load(saved)
    assert program.level == "reference" and "torch calls alone" in program.notes[0]
    x = torch.randn(3, 8)
    close(program(x), net(x))


@pytest.fixture(params=["compiled", "loaded", "reference"])
def target(request, net, tmp_path):
    compiled = infopt.compile(net, (torch.randn(4, 8),), strict=True)
    if request.param == "compiled":
        return compiled
    path = compiled.save(tmp_path / "model")
    return infopt.load(path, native="never" if request.param == "reference" else "same-owner")


def test_weights_exchanged_without_compiling(target, net, tmp_path):
    from safetensors.torch import save_file

    x = torch.randn(4, 8)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    close(target(x), net(x))
    torch.manual_seed(2)
    other = Net().eval()
    target.load_weights(other.state_dict())
    close(target(x), other(x))
    state = {k: v.clone() for k, v in net.state_dict().items() if not k.startswith("third.")}
    save_file(state, tmp_path / "weights.safetensors")
    target.load_weights(tmp_path / "weights.safetensors")
    close(target(x), net(x))
    with torch.no_grad():
        mixed = Net().eval()
        mixed.load_state_dict(net.state_dict())
        mixed.scale.fill_(3.0)  # read by a folded constant alone
    target.load_weights({"scale": mixed.scale})
    close(target(x), mixed(x))
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])  # the module is not touched


def test_saved_after_an_exchange(net, tmp_path):
    compiled = infopt.compile(net, (torch.randn(4, 8),), strict=True)
    other = Net().eval()
    compiled.load_weights(other.state_dict())
    x = torch.randn(4, 8)
    close(infopt.load(compiled.save(tmp_path / "model", golden=1), check=True)(x), other(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(third_bias=torch.ones(8)), "third_bias: the model has no such"),
        (
            lambda s: s.update({"first.weight": torch.ones(8, 16)}),
            r"first.weight: expected torch.float32 \(16, 8\), found torch.float32 \(8, 16\)",
        ),
        (lambda s: s.update(scale=s["scale"].double()), "scale: expected torch.float32"),
        (lambda s: s.update(scale=[1.0]), "scale: expected a tensor, found list"),
        (lambda s: s.update(order=s["order"].flip(0)), "order: other values, but the program"),
        (
            lambda s: s.update({"second.bias": torch.ones(8)}),
            r"(second|third).bias: differs from .*same memory",
        ),
    ],
)
def test_weights_that_do_not_fit(target, net, change, message):
    x = torch.randn(4, 8)
    expected = target(x)
    state = {k: v.clone() for k, v in net.state_dict().items()}
    change(state)
    with pytest.raises(WeightsMismatch, match=message):
        target.load_weights(state)
    for name, result in target(x).items():
        assert torch.equal(result, expected[name])


def test_constants_folded_from_several_need_all_of_them(tmp_path):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.rand(4)), nn.Parameter(torch.rand(4))

        def forward(self, x):
            return x * (self.a + self.b)

    model = Sum().eval()
    x = torch.rand(2, 4)
    program = infopt.load(infopt.compile(model, (x,)).save(tmp_path / "model"))
    with pytest.raises(WeightsMismatch, match="give also b: constants were folded from them"):
        program.load_weights({"a": torch.ones(4)})
    program.load_weights({"a": torch.ones(4), "b": torch.ones(4)})
    assert torch.equal(program(x), x * 2)


def test_values_that_a_rewrite_may_have_read_are_held():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Parameter(torch.ones(4))
            self.factor = nn.Parameter(torch.tensor(2.0))

        def forward(self, x):
            return torch.where(self.gate > 0, x * self.factor, 0.0)

    compiled = infopt.compile(Masked().eval(), (torch.rand(2, 4),))
    for name, value in (("gate", -torch.ones(4)), ("factor", torch.tensor(3.0))):
        with pytest.raises(WeightsMismatch, match=f"{name}: other values"):
            compiled.load_weights({name: value})
    compiled.load_weights({"gate": torch.ones(4), "factor": torch.tensor(2.0)})


def test_a_constant_of_unknown_origin_holds_all_weights():
    class Doubled(infopt.Pass):
        name = "doubled"
        accuracy = infopt.Exact()

        def run(self, graph, ctx):
            node = next(n for n in graph.nodes() if n.op.name == "const" and len(n.shape) == 1)
            tensor = graph.consts[node.attr("name")].clone()
            new = ctx.builder.const("copied", infopt.TensorType.of(tensor))
            return ctx.exchange(graph, {node: new}).with_consts({"copied": tensor})

    linear = nn.Linear(4, 4).eval()
    passes = infopt.default_passes(add=[Doubled()])
    compiled = infopt.compile(linear, (torch.rand(2, 4),), passes=passes)
    with pytest.raises(WeightsMismatch, match="the constant copied was made by a pass that does"):
        compiled.load_weights(linear.state_dict())


def test_state_is_exchanged_too(tmp_path):
    class Counter(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("total", torch.zeros(3))

        def forward(self, x):
            self.total.add_(x)
            return self.total * 1

    compiled = infopt.compile(Counter().eval(), (torch.ones(3),), strict=True)
    program = infopt.load(compiled.save(tmp_path / "model", golden=True), check=True)
    assert program(torch.ones(3)).tolist() == [1, 1, 1]  # the replay left no trace
    program.load_weights({"total": torch.full((3,), 10.0)})
    assert program(torch.ones(3)).tolist() == [11, 11, 11]


def test_loading_and_exchanging_weights_never_import_the_compiler(saved):
    code = f"""
import sys, torch, infopt
program = infopt.load({str(saved)!r}, check=True)
program.load_weights({{"first.bias": torch.ones(16)}})
infopt.load({str(saved)!r}, native="never", check=True)
bad = [m for m in sys.modules if m.startswith(("infopt.compiler", "infopt.codegen", "cryptogr"))]
assert not bad, bad
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_flipped_byte_of_a_compiled_model(saved, no_code):
    for path in [p for p in saved.rglob("*") if p.is_file()]:
        content = bytearray(path.read_bytes())
        for place in {0, len(content) // 2, len(content) - 1}:
            content[place] ^= 4
            path.write_bytes(content)
            with pytest.raises((ArtifactCorrupt, infopt.ArtifactError)):
                infopt.load(saved)
            content[place] ^= 4
        path.write_bytes(content)


def test_one_file_is_an_artifact_too(compiled, net, tmp_path, capsys, monkeypatch):
    """Signed, verified, inspected, run, given other weights; a stranger's code is not mapped."""
    ec = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ec")
    from cryptography.hazmat.primitives import serialization

    path = compiled.save(tmp_path / "model.infopt", golden=2)
    x = torch.randn(7, 8)
    program = infopt.load(path, check=True)
    close(program(x), net(x))
    other = Net().eval()
    other.load_state_dict(
        {k: v * 0.5 if v.is_floating_point() else v for k, v in net.state_dict().items()}
    )
    program.load_weights(other.state_dict())
    close(program(x), other(x))

    private = ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    (tmp_path / "key.pem").write_bytes(
        private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (tmp_path / "public.pem").write_bytes(
        private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    keys = [str(tmp_path / name) for name in ("key.pem", "public.pem")]
    with pytest.raises(ArtifactUntrusted, match=r"expected a signature, found no model\.sig"):
        infopt.verify(path, verify_with=keys[1])
    assert main(["sign", str(path), "--key", keys[0]]) == 0
    assert main(["verify", str(path), "--key", keys[1], "--golden"]) == 0
    assert main(["inspect", str(path)]) == 0
    assert main(["run", str(path), "--key", keys[1]]) == 0
    assert "2 golden calls give the stored results" in capsys.readouterr().out
    assert infopt.sign(path, keys[0]) == path  # once more: the signature is replaced
    assert sorted(os.listdir(tmp_path)) == ["key.pem", "model.infopt", "public.pem"]

    monkeypatch.setattr("infopt.runtime.trust.os.geteuid", lambda: os.getuid() + 12345)
    if os.getuid() == 0:  # what is root's is everybody's
        os.chown(path, 54321, -1)
    with pytest.warns(infopt.NativeCodeRefused, match="belongs to another user"):
        assert infopt.load(path).level == "reference"
    assert infopt.load(path, verify_with=keys[1]).level != "reference"


def test_what_is_attached_to_one_file(compiled, tmp_path):
    (tmp_path / "words.txt").write_text("one two")
    path = compiled.save(tmp_path / "model.infopt", attach=[tmp_path / "words.txt"])
    program = infopt.load(path)
    copy = program.attached("words.txt")
    assert copy.read_text() == "one two" and program.attached("words.txt") == copy
    with pytest.raises(KeyError, match="no 'other' is attached"):
        program.attached("other")
    again = infopt.load(path)
    compiled.save(path, overwrite=True)  # without it
    with pytest.raises(ArtifactCorrupt, match="the content was changed since it was loaded"):
        again.attached("words.txt")
    del program
    assert not copy.exists()
