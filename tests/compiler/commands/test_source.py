"""What a command line names: archives, folders of transformers, functions."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from infopt.compiler.commands import source as module
from infopt.compiler.commands.source import BadSource, load_source
from infopt.compiler.errors import BadOption
from infopt.compiler.tracing.archive import SUFFIX


def test_an_archive_brings_its_example(monkeypatch: pytest.MonkeyPatch) -> None:
    net = torch.nn.ReLU()
    example = ((torch.ones(2),), {"k": 3})
    program = SimpleNamespace(example_inputs=example, module=lambda: net)
    monkeypatch.setattr(module, "load_archive", lambda text: program)
    found = load_source(f"net{SUFFIX}")
    assert found.model is net and found.program is program and found.dynamic_shapes is None
    assert found.args is example[0] and found.kwargs is example[1] and found.name == f"net{SUFFIX}"
    program.example_inputs = None
    with pytest.raises(BadSource, match="expected an archive with example inputs, found none"):
        load_source(f"net{SUFFIX}")

    def damaged(text: str) -> None:
        raise BadOption(f"{text} is damaged")

    monkeypatch.setattr(module, "load_archive", damaged)
    with pytest.raises(BadSource, match="is damaged"):
        load_source(f"net{SUFFIX}")


def test_what_a_function_returned_is_described() -> None:
    for result, described in (
        ((torch.nn.ReLU(), [1]), r"found \(ReLU, list\)"),
        ([1], "found list"),
    ):
        with pytest.raises(BadSource, match=described):
            module._from_result("f", result)


def test_names_that_name_nothing(tmp_path: Path) -> None:
    path = list(sys.path)
    for text in ("net", "net:", "no_module_of_this_name:f", "math:no_such_name", "math:pi.real.no"):
        with pytest.raises(BadSource, match=f"^'{text}': "):
            load_source(text)
    assert sys.path == path
    with pytest.raises(BadSource, match=r"has no config.json"):
        load_source(str(tmp_path))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def loading(monkeypatch: pytest.MonkeyPatch, main_input: str, **config: Any) -> None:
    """transformers as far as reading a folder goes: a model of these inputs and settings."""
    model = torch.nn.Identity()
    model.main_input_name = main_input
    text = SimpleNamespace(vocab_size=config.pop("vocab_size", None))
    settings = SimpleNamespace(get_text_config=lambda: text, **config)

    class Auto:
        @staticmethod
        def from_pretrained(path: Path, local_files_only: bool) -> Any:
            assert local_files_only
            return settings

    stand_in = ModuleType("transformers")
    stand_in.AutoConfig = Auto
    stand_in.AutoModel = type(
        "AutoModel", (), {"from_pretrained": staticmethod(lambda path, local_files_only: model)}
    )
    monkeypatch.setitem(sys.modules, "transformers", stand_in)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        ({}, (2, 3, 224, 224)),
        ({"image_size": 16, "num_channels": 1}, (2, 1, 16, 16)),
        ({"image_size": (8, 12)}, (2, 3, 8, 12)),
        ({"image_size": [4, 6]}, (2, 3, 4, 6)),
    ],
)
def test_a_model_of_images(
    folder: Path, monkeypatch: pytest.MonkeyPatch, config: dict, shape: tuple
) -> None:
    loading(monkeypatch, "pixel_values", **config)
    found = load_source(str(folder))
    assert found.args == () and not found.model.training and list(found.kwargs) == ["pixel_values"]
    assert found.kwargs["pixel_values"].shape == shape
    (dims,) = found.dynamic_shapes.values()
    assert [(axis, d.__name__, d.min, d.max) for axis, d in dims.items()] == [(0, "batch", 1, 4096)]


@pytest.mark.parametrize(
    ("config", "length", "longest"),
    [({"max_position_embeddings": 10}, 10, 10), ({"max_position_embeddings": 512}, 16, 512),
     ({}, 16, 4096), ({"max_position_embeddings": None}, 16, 4096)],
)  # fmt: skip
def test_a_model_of_text(
    folder: Path, monkeypatch: pytest.MonkeyPatch, config: dict, length: int, longest: int
) -> None:
    loading(monkeypatch, "input_ids", vocab_size=5, **config)
    found = load_source(str(folder))
    ids, mask = found.kwargs["input_ids"], found.kwargs["attention_mask"]
    assert ids.shape == mask.shape == (2, length) and mask.eq(1).all() and mask.dtype == ids.dtype
    assert ids.min() >= 0 and ids.max() < 5
    for name in ("input_ids", "attention_mask"):
        dims = found.dynamic_shapes[name]
        assert [(axis, d.__name__, d.min, d.max) for axis, d in dims.items()] == [
            (0, "batch", 1, 4096),
            (1, "length", 1, longest),
        ]


def test_folders_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loading(monkeypatch, "input_features")
    with pytest.raises(BadSource, match="a model of input_features needs an example"):
        load_source(str(folder))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(BadSource, match=r"needs transformers: pip install infopt\[hf\]"):
        load_source(str(folder))
