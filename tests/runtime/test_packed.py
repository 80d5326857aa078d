"""Artifacts as one file: the same checks as of a folder, and no bit without one."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import infopt.runtime.loading as loading_module
from infopt.runtime import packed
from infopt.runtime.errors import ArtifactCorrupt, ArtifactError, ArtifactUnsafe
from infopt.runtime.loading import load, read_manifest, verify
from infopt.runtime.safetensors_header import entry, render
from infopt.runtime.trust import NativeCodeRefused
from tests.runtime.test_artifact import expected, make_artifact


@pytest.fixture
def artifact(adder, constant, kernels_path, executor_path):
    return make_artifact(adder, constant, kernels_path, executor_path)


@pytest.fixture
def saved(artifact, tmp_path):
    return artifact.save(tmp_path / "model.infopt")


@pytest.fixture
def no_code(monkeypatch):
    def refuse(name, code):
        raise AssertionError(f"{name} was mapped as code")

    monkeypatch.setattr(loading_module, "map_code", refuse)


def test_save_and_load(artifact, saved, constant):
    assert saved.is_file() and os.listdir(saved.parent) == ["model.infopt"]
    program, x = load(saved, threads=2), torch.randn(300)
    assert torch.equal(program(x)["y"], expected(x, constant))
    folder = artifact.save(saved.parent / "model")
    assert read_manifest(saved) == read_manifest(folder) == program.manifest == verify(saved)


def test_any_reader_of_safetensors_finds_the_files(artifact, saved):
    folder = artifact.save(saved.parent / "model")
    files = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
    found = {n: t for n, t in load_file(saved).items() if not n.startswith("padding.")}
    assert set(found) == set(files)
    for name, path in files.items():
        assert found[name].numpy().tobytes() == path.read_bytes()


def test_weights_are_mapped_from_inside_the_file(saved, constant):
    program = load(saved)
    (weight,) = program.program.constants
    assert torch.equal(weight, constant) and weight.data_ptr() % 64 == 0
    before = saved.read_bytes()
    weight[0] = 77  # a private mapping
    assert saved.read_bytes() == before
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(saved) in maps.read_text()


def test_every_flipped_bit_is_noticed(saved, no_code):
    original, generator = saved.read_bytes(), random.Random(5)
    header = 8 + int.from_bytes(original[:8], "little")
    places = {*range(0, 700, 7), header - 1, header, len(original) - 1}
    places |= {generator.randrange(header) for _ in range(200)}
    places |= {generator.randrange(len(original)) for _ in range(400)}
    for place in places:
        changed = bytearray(original)
        changed[place] ^= 1 << generator.randrange(8)
        saved.write_bytes(changed)
        with pytest.raises(ArtifactError) as caught:
            load(saved)
        assert str(saved) in str(caught.value)


def test_every_truncation_is_noticed(saved, no_code):
    original = saved.read_bytes()
    for size in {0, 1, 7, 8, 9, len(original) // 2, len(original) - 1}:
        saved.write_bytes(original[:size])
        with pytest.raises(ArtifactCorrupt):
            load(saved)
    saved.write_bytes(original + b"\0")
    with pytest.raises(ArtifactCorrupt):
        load(saved)


def forged(saved, change):
    """Write the file with other members, as its author could."""
    opened = packed.members(saved)
    contents = {name: [bytes(file.data())] for name, file in opened.items()}
    for file in opened.values():
        file.close()
    change(contents)
    sizes = {name: sum(map(len, parts)) for name, parts in contents.items()}
    head, gaps = packed._layout(sizes)
    data = [bytes(gaps[name]) + b"".join(parts) for name, parts in contents.items()]
    saved.write_bytes(head + b"".join(data))


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        (lambda m: m.pop("graph.txt"), ArtifactCorrupt, r"graph\.txt is missing"),
        (lambda m: m.pop("manifest.json"), ArtifactCorrupt, r"manifest\.json is missing"),
        (lambda m: m.update(more=[b"x"]), ArtifactUnsafe, "unexpected file more"),
        (lambda m: m.update({"../more": [b"x"]}), ArtifactUnsafe, "plain file name"),
        (lambda m: m.update({"/etc/passwd": [b"x"]}), ArtifactUnsafe, "plain file name"),
        (lambda m: m.update({"a\0b": [b"x"]}), ArtifactUnsafe, "plain file name"),
        (lambda m: m.update({"a/b/c/d": [b"x"]}), ArtifactUnsafe, "plain file name"),
        (lambda m: m.update({"graph.txt": [b"other"]}), ArtifactCorrupt, r"graph\.txt: expected"),
    ],
)
def test_members_that_do_not_belong(saved, no_code, change, error, reason):
    forged(saved, change)
    with pytest.raises(error, match=reason):
        load(saved)


def test_headers_that_lie(saved, no_code):
    original = saved.read_bytes()
    for head, reason in (
        ((2**62).to_bytes(8, "little"), "longer than the file"),
        ((2 << 20).to_bytes(8, "little") + bytes(3 << 20), "longer than the file"),  # a bomb
        (render({"a": entry("U8", 1 << 40, 0, 1 << 40)}, 64), "bytes of data"),
        (render({"a": entry("U8", 8, 0, 8), "b": entry("U8", 8, 4, 12)}, 64), "malformed entry"),
        (b"\x02" + bytes(7) + b"[]", "expected a JSON object"),
        (b"\x02" + bytes(7) + b"\xff\xff", "malformed header"),
    ):
        saved.write_bytes(head)
        with pytest.raises(ArtifactCorrupt, match=reason):
            load(saved)
    # the same entries in another form: spaces, an order of keys, alignment
    length = 8 + int.from_bytes(original[:8], "little")
    fields = json.loads(original[8:length])
    fields.pop(next(reversed(fields)))
    for text in (
        json.dumps(json.loads(original[8:length])).encode(),
        original[8:length] + b" " * 64,
    ):
        saved.write_bytes(len(text).to_bytes(8, "little") + text + original[length:])
        with pytest.raises(ArtifactCorrupt, match="the header was changed"):
            load(saved)


def test_padding_is_zero(saved, no_code):
    original = bytearray(saved.read_bytes())
    start = 8 + int.from_bytes(original[:8], "little")
    header = json.loads(original[8:start])
    for name, found in header.items():
        if name.startswith("padding."):
            changed = bytearray(original)
            changed[start + found["data_offsets"][0]] = 1
            saved.write_bytes(changed)
            with pytest.raises(ArtifactCorrupt, match="the content was changed at bytes"):
                load(saved)


def test_links_and_strange_files(saved, tmp_path, no_code):
    (tmp_path / "link").symlink_to(saved)
    with pytest.raises(ArtifactUnsafe, match="expected a regular file"):
        load(tmp_path / "link")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ArtifactUnsafe, match="expected a regular file, found another kind"):
        load(tmp_path / "fifo")
    os.link(saved, tmp_path / "second")
    shutil.rmtree(tmp_path / "nothing", ignore_errors=True)
    with pytest.raises(ArtifactUnsafe, match=r"native code is refused.* has 2 names"):
        load(saved)
    assert NativeCodeRefused  # with a reference it is a warning, as for folders


def test_saving_over_something(artifact, saved, tmp_path):
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        artifact.save(saved)
    before = saved.read_bytes()
    assert artifact.save(saved, overwrite=True).read_bytes() == before
    other = tmp_path / "notes.infopt"
    other.write_text("not an artifact")
    with pytest.raises(FileExistsError, match="is not an artifact; it is left alone"):
        artifact.save(other, overwrite=True)
    assert other.read_text() == "not an artifact"
    assert sorted(os.listdir(tmp_path)) == ["model.infopt", "notes.infopt"]


def test_a_failed_save_leaves_nothing(artifact, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(packed.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        artifact.save(tmp_path / "model.infopt")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads /proc")
def test_loading_again_opens_nothing_more(saved):
    load(saved)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        load(saved)
        read_manifest(saved)
    forged(saved, lambda m: m.pop("graph.txt"))
    with pytest.raises(ArtifactCorrupt):
        load(saved)
    assert len(os.listdir("/proc/self/fd")) == before
