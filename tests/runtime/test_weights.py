"""Malicious headers of weights.safetensors, and torch ops a plan of a stranger may not call."""

import json

import pytest
import torch

from infopt.runtime import weights
from infopt.runtime.aten import find_op
from infopt.runtime.errors import ArtifactCorrupt, PlanError
from infopt.runtime.weights import Stored

RECORD = Stored("a", "torch.float32", (4,), (1,))


def read(data, records):
    return weights.read(data, records, lambda first, last: data[first:last].numpy().tobytes())


def file_of(header, data=bytes(32)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return torch.frombuffer(
        bytearray(len(text).to_bytes(8, "little") + text + data), dtype=torch.uint8
    )


def entry(first, last, dtype="F32", shape=None):
    size = (last - first) // 4 if shape is None else shape
    return {"dtype": dtype, "shape": [size], "data_offsets": [first, last]}


def test_a_good_file():
    header = json.dumps({"a": entry(0, 16), "b": entry(16, 32)}).encode()
    padded = header + b" " * (-(8 + len(header)) % 64)
    assert read(file_of(padded), [RECORD])[0].shape == (4,)
    with pytest.raises(ArtifactCorrupt, match=r"'a' starts at byte .*, expected a multiple of 64"):
        read(file_of(padded + b" "), [RECORD])


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry(0, 16), "b": entry(8, 32)},  # overlap
        {"a": entry(0, 16), "b": entry(20, 32)},  # hole
        {"a": entry(0, 16)},  # data nobody names
        {"a": entry(0, 16), "b": entry(16, 64)},  # beyond the file
        {"a": entry(0, 32, shape=4)},  # size is not shape times dtype
        {"a": entry(0, 32, shape=2**62)},
        {"a": entry(0, 32, shape=-8)},
        {"a": entry(0, 32, dtype="F31")},
        {"a": entry(0, 32) | {"path": "/etc/passwd"}},
        {"a": [0, 32]},
        [],
        b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}, "a": {}}',  # twice
        b"[" * 200_000,
        b"\xff\xfe",
    ],
)
def test_headers_that_lie(header):
    with pytest.raises(ArtifactCorrupt, match=r"weights.safetensors"):
        read(file_of(header), [RECORD])


@pytest.mark.parametrize("length", [0xFFFFFFFFFFFFFFFF, 2**62, 101_000_000, 41])
def test_a_header_longer_than_the_file(length):
    data = torch.frombuffer(bytearray(length.to_bytes(8, "little") + bytes(40)), dtype=torch.uint8)
    with pytest.raises(ArtifactCorrupt, match="header is longer than the file"):
        read(data, [RECORD])


@pytest.mark.parametrize(
    "op", ["aten.save.default", "aten.from_file.default", "aten.resize_.default"]
)
def test_torch_ops_that_do_more_than_compute(op):
    with pytest.raises(PlanError, match="does more than compute"):
        find_op(op, ())
    assert find_op("aten.add.Tensor", ()) is torch.ops.aten.add.Tensor
