"""Artifacts: saved, loaded in a fresh process, and every kind of damage refused before it runs."""

import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import infopt.runtime.loading as loading_module
from infopt.runtime import cpu, folder
from infopt.runtime import verdict as verdict_module
from infopt.runtime.artifact import (
    Artifact,
    Parameter,
    Signature,
    Source,
    Variant,
)
from infopt.runtime.errors import (
    ArtifactCorrupt,
    ArtifactError,
    ArtifactIncompatible,
    ArtifactTooNew,
    ArtifactUnsafe,
    InputMismatch,
    PlanError,
)
from infopt.runtime.loading import load, read_manifest
from infopt.runtime.manifest import Manifest, _digest, _render
from infopt.runtime.opened import verified
from infopt.runtime.plan import AtenStep, Mutation
from infopt.runtime.structure import Leaf, describe


def make_artifact(plan, constant, kernels, executor, levels=("scalar",)):
    libraries = {"test": kernels, "executor": executor}
    return Artifact(
        Signature((Parameter("x", "positional", {"leaf": 0}),)),
        [Source(leaf=0)],
        describe({"y": Leaf(0), "loss": None}),
        [Variant(level, plan, [constant], libraries) for level in levels],
        graph_text="graph of the test: é\n",
        passes=[{"name": "fold", "error": 0.0}],
        about={"model": "test", "bound": float("inf")},
        versions={"infopt": "0"},
    )


@pytest.fixture
def parts(adder, constant, kernels_path, executor_path):
    return adder, constant, kernels_path, executor_path


@pytest.fixture
def saved(parts, tmp_path):
    return make_artifact(*parts).save(tmp_path / "model")


def expected(x, c):
    return (x + c[: x.shape[0]]) * 2 + x


def test_save_and_load(saved, constant):
    program = load(saved, threads=2)
    for n in (5, 300):
        x = torch.randn(n)
        for out in (program(x), program(x=x)):
            assert out["loss"] is None and torch.equal(out["y"], expected(x, constant))
    with pytest.raises(InputMismatch, match="0 <= n <= 1000, found 1001"):
        program(torch.zeros(1001))
    assert program.graph_text == "graph of the test: é\n" and program.level == "scalar"
    manifest = read_manifest(saved)
    assert manifest == program.manifest and manifest.versions["torch"] == torch.__version__
    assert manifest.passes == ({"name": "fold", "error": 0.0},)
    assert [(d.name, d.lo, d.hi) for d in manifest.dims] == [("n", 0, 1000)]
    assert sorted(str(p.relative_to(saved)) for p in saved.rglob("*") if p.is_file()) == sorted(
        [*manifest.files, "manifest.json"]
    )
    assert set(os.listdir(saved.parent)) == {"model"}  # no temporary folder is left
    for name, entry in manifest.files.items():
        found = subprocess.run(["sha256sum", saved / name], capture_output=True, text=True)
        if found.returncode == 0:
            assert found.stdout.split()[0] == entry.sha256


def test_a_fresh_process_needs_nothing_but_the_runtime(saved):
    code = f"""
import sys, torch
import infopt
program = infopt.load({str(saved)!r})
print(program(torch.ones(4))["y"].tolist())
bad = [m for m in sys.modules if m.split(".")[0] in ("transformers", "sympy", "networkx")
       or m.startswith(("infopt.compiler", "infopt.codegen", "infopt.passes"))]
assert not bad, bad
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": "/nonexistent"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str([3.0, 5.0, 7.0, 9.0])


def test_weights_are_mapped_aligned_and_readable_by_safetensors(saved, constant):
    program = load(saved)
    (weight,) = program.program.constants
    assert torch.equal(weight, constant) and weight.data_ptr() % 64 == 0
    weight[0] = 77  # a private mapping: the file is not changed
    tensors = load_file(saved / "weights.safetensors")
    assert torch.equal(tensors["tensor.0"], constant)
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(saved / "weights.safetensors") in maps.read_text()


def test_memory_layouts_and_shared_memory_survive(tmp_path, builder):
    base = torch.randn(6, 4)
    kinds = [
        base,
        base.t(),
        base[1:3],
        base[:, 1],
        torch.randn(1).expand(5),
        torch.tensor(3),
        torch.zeros(0, 3),
        torch.randn(3, dtype=torch.complex128),
        torch.tensor([True, False]),
        base.bfloat16(),
        base.to(torch.float8_e4m3fn),
        torch.tensor([5, 6], dtype=torch.uint16),
    ]
    for i, x in enumerate(kinds):
        buffer = builder.buffer("const", 0, i)
        builder.output(buffer, tuple(x.shape), str(x.dtype), tuple(x.stride()))
    artifact = Artifact(
        Signature(()),
        [],
        describe([Leaf(i) for i in range(len(kinds))]),
        [Variant("scalar", builder.plan(), kinds)],
    )
    program = load(artifact.save(tmp_path / "model"))
    for x, y in zip(kinds, program(), strict=True):
        assert y.dtype == x.dtype and y.stride() == x.stride() and y.shape == x.shape
        as_bytes = [t.contiguous().reshape(-1).view(torch.uint8) for t in (x, y)]
        assert torch.equal(*as_bytes)
    names = load_file(tmp_path / "model" / "weights.safetensors")
    assert len([n for n in names if n.startswith("tensor.")]) == len(kinds) - 1  # base.t() shared


def test_state_is_kept_between_calls(tmp_path, builder):
    x, total = builder.add_input("x", (3,)), builder.add_input("total", (3,))
    out = builder.buffer("torch", 12)
    views = [{"tensor": builder.view(b, (3,))} for b in (x, total)]
    result = builder.view(out, (3,))
    builder.steps.append(AtenStep("aten.add.Tensor", tuple(views), (result,)))
    builder.mutations.append(Mutation(1, result))
    builder.output(out, (3,))
    artifact = Artifact(
        Signature((Parameter("x", "positional", {"leaf": 0}),)),
        [Source(leaf=0), Source(state=0)],
        {"leaf": 0},
        [Variant("scalar", builder.plan())],
        state=[torch.ones(3)],
    )
    path = artifact.save(tmp_path / "model")
    for program in (load(path), load(path)):
        assert program(torch.ones(3)).tolist() == [2, 2, 2]
        assert program(torch.ones(3)).tolist() == [3, 3, 3]


def test_saving_over_something(parts, saved, tmp_path):
    artifact = make_artifact(*parts)
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        artifact.save(saved)
    before = load(saved)
    assert artifact.save(saved, overwrite=True) == saved
    assert load(saved)(torch.zeros(1))["y"] == before(torch.zeros(1))["y"]  # both still work
    for other in (tmp_path / "file", tmp_path / "folder"):
        if other.name == "file":
            other.write_text("precious")
        else:
            other.mkdir()
        with pytest.raises(FileExistsError, match="not an artifact"):
            artifact.save(other, overwrite=True)
    assert (tmp_path / "file").read_text() == "precious"
    assert set(os.listdir(tmp_path)) == {"model", "file", "folder"}


def test_a_failed_save_leaves_nothing(parts, tmp_path):
    artifact = make_artifact(*parts)
    broken = Artifact(artifact.signature, artifact.inputs, {"leaf": "x"}, artifact.variants)
    with pytest.raises(ArtifactCorrupt):
        broken.save(tmp_path / "model")
    assert os.listdir(tmp_path) == []
    with pytest.raises(PlanError, match=r"needs the libraries .'test'."):
        Artifact(
            artifact.signature,
            artifact.inputs,
            artifact.outputs,
            [Variant("scalar", parts[0], [parts[1]])],
        ).save(tmp_path / "model")
    assert os.listdir(tmp_path) == []


@pytest.fixture
def no_code(monkeypatch):
    """Mapping code is an error: damage must be found before."""

    def refuse(name, code):
        raise AssertionError(f"{name} was mapped as code")

    monkeypatch.setattr(loading_module, "map_code", refuse)


def test_every_flipped_bit_is_noticed(saved, no_code):
    generator = random.Random(7)
    files = [p for p in saved.rglob("*") if p.is_file()]
    assert len(files) == 6
    for path in files:
        original = path.read_bytes()
        places = {0, len(original) - 1, *(generator.randrange(len(original)) for _ in range(80))}
        for place in places:
            changed = bytearray(original)
            changed[place] ^= 1 << generator.randrange(8)
            path.write_bytes(changed)
            with pytest.raises(ArtifactError) as caught:
                load(saved)
            assert str(saved) in str(caught.value)
        path.write_bytes(original)


@pytest.fixture
def large(parts, tmp_path):
    """Weights of 40 MiB, hashed in the background while the rest is read."""
    artifact = make_artifact(*parts)
    return replace(artifact, state=[torch.randn(10 << 20)]).save(tmp_path / "model")


def test_no_code_runs_before_all_is_verified(large, no_code, constant):
    """Although that of the code itself is right, and known long before that of the weights."""
    with pytest.raises(AssertionError, match="mapped as code"):
        load(large)
    weights = large / "weights.safetensors"
    with open(weights, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    size = weights.stat().st_size
    place = rf"weights\.safetensors: the content was changed at bytes {size >> 20 << 20} to {size}"
    with pytest.raises(ArtifactCorrupt, match=place):
        load(large)
    with pytest.raises(ArtifactCorrupt, match=place), verified(large, None) as opened:
        assert opened.part("weights.safetensors", 8, 9) == b"{"  # that chunk is right
        with pytest.raises(ArtifactCorrupt, match=place):
            opened.part("weights.safetensors", size - 2, size)


def test_a_file_is_given_out_only_when_it_is_verified(large):
    (plan,) = (large / "plans").iterdir()
    plan.write_bytes(plan.read_bytes().replace(b'"', b"'", 1))
    changed = r"plans/scalar\.json: the content was changed"
    with pytest.raises(ArtifactCorrupt, match=changed), verified(large, None) as opened:
        assert bytes(opened.content("graph.txt")).decode() == "graph of the test: é\n"
        with pytest.raises(ArtifactCorrupt, match=changed):
            opened.content("plans/scalar.json")
        # when the block ends, all is asked for


def test_a_refusal_ends_the_hashing(large, monkeypatch):
    """The manifest is refused while the weights are being hashed; nothing reads them afterwards."""
    rewrite(large, lambda fields: fields.update(abi=99))
    closed = []
    plain = folder.Verification.close
    monkeypatch.setattr(folder.Verification, "close", lambda v: (plain(v), closed.append(v)))
    with pytest.raises(ArtifactIncompatible):
        load(large)
    assert closed
    text = (large / "manifest.json").read_text()
    (large / "manifest.json").write_text(text[:-2])
    with pytest.raises(ArtifactCorrupt, match=r"manifest\.json"):
        load(large)
    assert len(closed) == 2


@pytest.mark.parametrize("chunk", [1 << 16, 3 << 20])
def test_pieces_of_other_sizes(parts, tmp_path, monkeypatch, chunk, constant):
    """The size is the manifest's: what was hashed in other pieces before it was read is dropped."""
    monkeypatch.setattr(folder, "CHUNK", chunk)
    saved = make_artifact(*parts).save(tmp_path / "model")
    monkeypatch.undo()
    assert read_manifest(saved).chunk == chunk != folder.CHUNK
    x = torch.randn(5)
    assert torch.equal(load(saved)(x)["y"], expected(x, constant))
    (saved / "graph.txt").write_text("graph of the test: e\n")
    with pytest.raises(ArtifactCorrupt, match=r"graph\.txt"):
        load(saved)


def test_every_truncation_is_noticed(saved, no_code):
    for path in [p for p in saved.rglob("*") if p.is_file()]:
        original = path.read_bytes()
        for size in {0, 1, len(original) // 2, len(original) - 1}:
            path.write_bytes(original[:size])
            with pytest.raises(ArtifactCorrupt, match=path.name):
                load(saved)
        path.write_bytes(original + b"x")
        with pytest.raises(ArtifactCorrupt, match=path.name):
            load(saved)
        path.unlink()
        with pytest.raises(ArtifactCorrupt, match=f"{path.name} is missing"):
            load(saved)
        path.write_bytes(original)


def rewrite(saved, change):
    """Change the manifest's fields as its author could: with a true digest."""
    fields = json.loads((saved / "manifest.json").read_text())
    fields.pop("digest")
    change(fields)
    (saved / "manifest.json").write_text(_render({**fields, "digest": _digest(fields)}))


def test_a_newer_format(saved, no_code):
    rewrite(saved, lambda m: m.update(format=3, more={}))
    with pytest.raises(ArtifactTooNew, match="expected format 2 or older, found 3"):
        load(saved)


@pytest.mark.parametrize("version", [0, -1, None, True, "1"])
def test_a_format_that_never_was(saved, no_code, version):
    rewrite(saved, lambda m: m.update(format=version))
    with pytest.raises(ArtifactCorrupt, match="expected a format from 1 to 2, found"):
        load(saved)


def test_format_1_is_still_read(saved, constant):
    """Its pieces had 8 MiB, which the manifest did not say."""

    def older(fields):
        fields.update(format=1)
        for name in ("chunk", "batch_invariant"):
            fields.pop(name)
        assert all(f["size"] < 8 << 20 for f in fields["files"].values())

    rewrite(saved, older)
    x = torch.randn(5)
    assert torch.equal(load(saved)(x)["y"], expected(x, constant))
    (saved / "graph.txt").write_text("graph of the test: e\n")
    with pytest.raises(ArtifactCorrupt, match=r"graph\.txt"):
        load(saved)


def test_another_kernel_interface(saved, no_code):
    rewrite(saved, lambda m: m.update(abi=2))
    with pytest.raises(ArtifactIncompatible, match="expected kernel interface 1, found 2"):
        load(saved)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("inputs"),
        lambda m: m.update(unknown=1),
        lambda m: m["inputs"].append({"leaf": 9}),
        lambda m: m["inputs"].append({"leaf": 0}),
        lambda m: m["inputs"][0].update(state=0),
        lambda m: m["variants"][0].update(level="avx9000"),
        lambda m: m["variants"][0].update(constants=[4]),
        lambda m: m["variants"][0]["libraries"].pop("test"),
        lambda m: m["tensors"][0].update(shape=[1001]),
        lambda m: m["tensors"][0].update(strides=[-1]),
        lambda m: m["tensors"][0].update(dtype="torch.nn"),
        lambda m: m["tensors"][0].update(name="tensor.9"),
        lambda m: m["files"]["graph.txt"].update(chunks=[]),
        lambda m: m.update(outputs={"call": "os.system"}),
        lambda m: m.update(state=[5]),
        lambda m: m.update(chunk=0),
        lambda m: m.update(chunk=1 << 40),
        lambda m: m.update(batch_invariant=1),
    ],
)
def test_a_manifest_that_does_not_fit(saved, no_code, change):
    rewrite(saved, change)
    with pytest.raises(ArtifactCorrupt):
        load(saved)


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "/etc/passwd",
        "kernels/../../x",
        "a//b",
        "./x",
        "",
        "a\\b/..",
        "a/b/c/d",
        "x\0",
        "..",
        "kernels/scalar/-o.so",
        "ü",
    ],
)
def test_file_names_that_reach_elsewhere(saved, no_code, name):
    def change(fields):
        fields["files"][name] = fields["files"].pop("graph.txt")

    rewrite(saved, change)
    (saved / "graph.txt").unlink()
    with pytest.raises(ArtifactUnsafe, match="expected a plain file name"):
        load(saved)


def test_links_and_strange_files(saved, tmp_path, no_code):
    graph = saved / "graph.txt"
    text = graph.read_text()
    (tmp_path / "elsewhere").write_text(text)
    graph.unlink()
    graph.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactUnsafe, match=r"graph.txt is a symbolic link"):
        load(saved)
    graph.unlink()
    os.mkfifo(graph)
    with pytest.raises(ArtifactUnsafe, match=r"expected a regular file graph.txt"):
        load(saved)
    graph.unlink()
    graph.mkdir()
    with pytest.raises(ArtifactUnsafe, match=r"expected a regular file graph.txt"):
        load(saved)
    graph.rmdir()
    graph.write_text(text)
    shutil.move(saved / "kernels", tmp_path / "kernels")
    (saved / "kernels").symlink_to(tmp_path / "kernels")
    with pytest.raises(ArtifactUnsafe, match="kernels is a symbolic link"):
        load(saved)
    (saved / "kernels").unlink()
    shutil.move(tmp_path / "kernels", saved / "kernels")
    for extra in ("kernels/scalar/libc.so", "setup.py", ".hidden", "a/b/c/d"):
        path = saved / extra
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        with pytest.raises(ArtifactUnsafe, match=r"unexpected (file|folder)|plain file name"):
            load(saved)
        path.unlink()


def test_not_an_artifact(tmp_path):
    with pytest.raises(
        ArtifactCorrupt, match="expected an artifact, a folder or one file: there is nothing"
    ):
        load(tmp_path / "nothing")
    with pytest.raises(ArtifactCorrupt, match=r"manifest.json is missing"):
        load(tmp_path)


def on_cpu(monkeypatch, level, arch="x86_64"):
    found = cpu.Cpu(arch, "a test", frozenset(cpu.FEATURES[level]), 2, {})
    monkeypatch.setattr(verdict_module, "detect", lambda: found)


def test_the_best_level_this_machine_can_run(parts, tmp_path, monkeypatch):
    on_cpu(monkeypatch, "amx")
    path = make_artifact(*parts, levels=("avx512", "scalar", "amx", "avx2")).save(tmp_path / "m")
    for level, chosen in (
        ("scalar", "scalar"),
        ("avx2", "avx2"),
        ("avx512_bf16", "avx512"),
        ("amx", "amx"),
    ):
        on_cpu(monkeypatch, level)
        assert load(path).level == chosen


def test_a_machine_that_lacks_features(parts, tmp_path, monkeypatch, no_code):
    on_cpu(monkeypatch, "amx")
    path = make_artifact(*parts, levels=("avx512", "amx")).save(tmp_path / "m")
    on_cpu(monkeypatch, "avx2")
    with pytest.raises(
        ArtifactIncompatible,
        match=r"no program for this machine .*level avx2\): "
        "amx needs avx512f, .*; avx512 needs avx512f",
    ):
        load(path)
    on_cpu(monkeypatch, "scalar", arch="aarch64")
    with pytest.raises(ArtifactIncompatible, match="avx512 needs linux on x86_64"):
        load(path)


def test_the_manifest_text_is_stable(saved):
    text = (saved / "manifest.json").read_text()
    assert Manifest.from_text(text).to_text() == text
    with pytest.raises(ArtifactCorrupt):
        Manifest.from_text(text + " ")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads /proc")
def test_loading_again_opens_nothing_more(saved):
    """A server that reloads a model must not run out of descriptors, nor map its code again."""
    load(saved)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        load(saved)
    assert len(os.listdir("/proc/self/fd")) == before
