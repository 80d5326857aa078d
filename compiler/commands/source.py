"""The model a command line names: a transformers folder, or module:callable."""

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from infopt.compiler.errors import BadOption
from infopt.compiler.tracing.archive import SUFFIX, load_archive


class BadSource(ValueError):
    """A model argument that names no model."""


@dataclass(frozen=True)
class Source:
    """A model and the example it is compiled for. program: what is compiled, if not the model."""

    name: str
    model: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    dynamic_shapes: Any = None
    program: ExportedProgram | None = None

    def call(self, model: Any) -> Any:
        """`model` called with the example."""
        return model(*self.args, **self.kwargs)


def load_source(text: str) -> Source:
    """The model that `text` names, in eval mode. Raises BadSource saying what was expected."""
    if Path(text).is_dir():
        return _transformers_folder(Path(text))
    if text.endswith(SUFFIX):
        return _archive(text)
    module_name, colon, attribute = text.partition(":")
    if not colon or not attribute:
        raise BadSource(
            f"{text!r}: expected a folder with a transformers model, a {SUFFIX} archive or "
            "module:callable"
        )
    sys.path.insert(0, "")  # as `python -m` would: modules of the working folder
    try:
        target: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            target = getattr(target, part)
    except (ImportError, AttributeError) as reason:
        raise BadSource(f"{text!r}: {reason}") from None
    finally:
        sys.path.remove("")
    return _from_result(text, target())


def _archive(text: str) -> Source:
    """The program of a torch.export archive, with the example it was exported with."""
    try:
        program = load_archive(text)
    except BadOption as error:
        raise BadSource(str(error)) from error
    if program.example_inputs is None:
        raise BadSource(f"{text}: expected an archive with example inputs, found none")
    args, kwargs = program.example_inputs
    return Source(text, program.module(), args, kwargs, None, program)


def _from_result(text: str, result: Any) -> Source:
    if (
        not isinstance(result, tuple)
        or not 2 <= len(result) <= 4
        or not isinstance(result[0], torch.nn.Module)
        or not isinstance(result[1], tuple)
    ):
        raise BadSource(
            f"{text!r} must return (model, args), (model, args, kwargs) or "
            f"(model, args, kwargs, dynamic_shapes), with args a tuple; found {_describe(result)}"
        )
    model, args, *rest = result
    kwargs = rest[0] if rest and rest[0] is not None else {}
    return Source(text, model.eval(), args, kwargs, rest[1] if len(rest) > 1 else None)


def _describe(result: Any) -> str:
    if isinstance(result, tuple):
        return f"({', '.join(type(item).__name__ for item in result)})"
    return type(result).__name__


def _transformers_folder(folder: Path) -> Source:
    """The folder's model as AutoModel gives it, for text or images of any batch and length."""
    if not (folder / "config.json").exists():
        raise BadSource(f"{folder} has no config.json: expected a transformers model folder")
    try:
        from transformers import AutoConfig, AutoModel
    except ImportError:
        raise BadSource(
            f"{folder}: reading it needs transformers: pip install infopt[hf]"
        ) from None
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    batch = torch.export.Dim("batch", min=1, max=4096)
    main_input = model.main_input_name
    if main_input == "pixel_values":
        size = getattr(config, "image_size", 224)
        height, width = size if isinstance(size, list | tuple) else (size, size)
        pixels = torch.rand(2, getattr(config, "num_channels", 3), height, width)
        kwargs, shapes = {main_input: pixels}, {main_input: {0: batch}}
    elif main_input == "input_ids":
        longest = getattr(config, "max_position_embeddings", None) or 4096
        length = torch.export.Dim("length", min=1, max=longest)
        ids = torch.randint(0, config.get_text_config().vocab_size, (2, min(16, longest)))
        kwargs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        shapes = {name: {0: batch, 1: length} for name in kwargs}
    else:
        raise BadSource(
            f"{folder}: a model of {main_input} needs an example; write module:callable "
            "that returns (model, args, kwargs)"
        )
    return Source(str(folder), model, (), kwargs, shapes)
