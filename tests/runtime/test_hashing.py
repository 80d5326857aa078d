"""Many digests at once are those of hashlib: every size around a block, any number of pieces."""

import hashlib
import os
import random

import pytest

from infopt.runtime import hashing
from infopt.runtime.cpu import FEATURES, detect
from tests.runtime.conftest import CSRC

SIZES = [0, 1, 54, 55, 56, 57, 63, 64, 65, 118, 119, 120, 127, 128, 129, 1000, 4096, 70_000]


def found(pieces):
    with hashing.Digests(pieces) as digests:
        return digests.of(range(0, len(pieces)))


def expected(pieces):
    return [hashlib.sha256(piece).hexdigest() for piece in pieces]


@pytest.fixture(params=["hashlib", "lanes"])
def way(request, monkeypatch, compile_cpp):
    if request.param == "hashlib":
        monkeypatch.setattr(hashing, "hashing_library", lambda: None)
        return
    if not set(FEATURES[hashing.LEVEL]) <= detect().features:
        pytest.skip("the processor has no AVX-512")
    # GCC 12 says this of its own header
    flags = ("-mavx512f", "-mavx512bw", "-Wno-uninitialized", "-Wno-maybe-uninitialized")
    library = hashing.hashing_library(compile_cpp(CSRC / "hashing.cpp", *flags))
    assert library is not None
    monkeypatch.setattr(hashing, "hashing_library", lambda: library)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 15, 16, 17, 33, 50])
def test_pieces_of_all_sizes(way, count, monkeypatch):
    generator = random.Random(count)
    for busy in (0, 0, 0, 0, hashing._BUSY, hashing._BUSY):
        monkeypatch.setattr(hashing, "_BUSY", busy)
        pieces = [memoryview(os.urandom(generator.choice(SIZES))) for _ in range(count)]
        assert found(pieces) == expected(pieces)


def test_pieces_of_one_size_take_the_lanes(way):
    for size in (0, 64, 1000):
        pieces = [memoryview(os.urandom(size)) for _ in range(37)]
        assert found(pieces) == expected(pieces)


def test_several_threads(way):
    data = memoryview(os.urandom((5 << 20) + 77))
    pieces = [data[i : i + (1 << 18)] for i in range(0, len(data), 1 << 18)]
    assert found(pieces) == expected(pieces)
    assert found([data] * 4) == expected([data] * 4)


def test_memory_that_cannot_be_written_to(way):
    pieces = [memoryview(bytes([i]) * 100) for i in range(20)]
    assert all(piece.readonly for piece in pieces)
    assert found(pieces) == expected(pieces)


def test_without_the_library_hashlib_does_it(tmp_path):
    assert hashing.hashing_library(tmp_path / "nothing.so") is None
    (tmp_path / "broken.so").write_bytes(b"\x7fELF" + bytes(100))
    assert hashing.hashing_library(tmp_path / "broken.so") is None


def test_digests_are_there_in_any_order_and_more_than_once(way):
    pieces = [memoryview(os.urandom(size)) for size in (100, 5000, *[1 << 20] * 20)]
    with hashing.Digests(pieces) as digests:
        assert digests.of(range(20, 22)) == expected(pieces[20:])
        assert digests.of(range(0, 2)) == expected(pieces[:2])
        assert digests.of(range(0, 22)) == expected(pieces)


def test_nothing_is_read_after_the_end(way):
    memory = bytearray(os.urandom(64 << 20))
    pieces = [memoryview(memory)[i : i + (1 << 20)] for i in range(0, len(memory), 1 << 20)]
    digests = hashing.Digests(pieces)
    first = digests.of(range(0, 1))
    digests.close()  # long before all are done
    digests.close()
    assert first == expected(pieces[:1])


def test_a_library_of_another_version_is_not_used(tmp_path, compile_cpp):
    other = tmp_path / "other.cpp"
    other.write_text('extern "C" void infopt_sha256() {}')
    assert hashing.hashing_library(compile_cpp(other)) is None
