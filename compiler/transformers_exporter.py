"""infopt as an export format of transformers: exported, saved, loaded and called by its classes.

After `infopt.register_with_transformers()` the format "infopt" stands beside "onnx" and "openvino":

    exporter = AutoHfExporter.from_config({"export_format": "infopt"})
    exported = exporter.export(model, inputs, config=InfoptConfig(dynamic=True))
    exported.save_pretrained("folder")               # model.infopt beside transformers' own files
    ExportedModel.from_pretrained("folder")(**inputs)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from infopt.compiler.driver import compile
from infopt.compiler.errors import MissingLibrary
from infopt.runtime.loading import load
from infopt.runtime.packed import SUFFIX

FORMAT = "infopt"


@cache
def register_with_transformers() -> type:
    """Make "infopt" known to transformers' exporters; the class of its configuration.

    That class takes what transformers' DynamoConfig takes, and `options`: those of infopt.compile.
    Raises MissingLibrary where transformers has no registry of exporters.
    """
    try:
        from transformers.exporters.auto import register_backend
        from transformers.exporters.configs import DynamoConfig
        from transformers.exporters.exporter_dynamo import (
            DynamoExporter,
            get_auto_dynamic_shapes,
        )
        from transformers.exporters.runners.base import ModelRunner
    except ImportError:
        raise MissingLibrary(
            "exporting by transformers needs a transformers with transformers.exporters: "
            'pip install -U "infopt[hf]"'
        ) from None

    @dataclass
    class InfoptConfig(DynamoConfig):
        """options: as infopt.compile takes them."""

        export_format: str = FORMAT
        options: dict[str, Any] = field(default_factory=dict)

    class InfoptExporter(DynamoExporter):
        """torch.export as transformers does it, then infopt.compile."""

        export_format = FORMAT
        config_class = InfoptConfig
        program_suffix = SUFFIX

        def export_program(self, model: Any, sample_inputs: Any, config: Any) -> tuple[Any, Any]:
            program, metadata = super().export_program(model, sample_inputs, config=config)
            args, kwargs = program.example_inputs
            shapes = config.dynamic_shapes
            if config.dynamic and shapes is None:
                shapes = get_auto_dynamic_shapes(kwargs)
            # once more without transformers' patches, under which attention has other strides than
            # it has when it runs
            with torch.no_grad():
                plain = torch.export.export(program.module(), args, kwargs, dynamic_shapes=shapes)
            return compile(plain, args, kwargs, **config.options), metadata

        @classmethod
        def save_program(cls, program: Any, path: Any) -> None:
            program.save(path)

        @classmethod
        def load_program(cls, path: Any) -> Any:
            return load(path)

    class InfoptRunner(ModelRunner):
        """Calls what was compiled, or loaded."""

        def __init__(self, program: Any, metadata: Any) -> None:
            super().__init__(metadata)
            self.program = program

        @property
        def device(self) -> torch.device:
            return torch.device("cpu")

        @classmethod
        def from_program(cls, program: Any, metadata: Any, device: Any = None) -> InfoptRunner:
            if device is not None and torch.device(device).type != "cpu":
                raise ValueError(f"expected device cpu, found {device}")
            return cls(program, metadata)

        def __call__(
            self, share_inputs: bool = True, share_outputs: bool = False, **kwargs: Any
        ) -> Any:
            with torch.no_grad():
                return self.program(**{**self.metadata.in_constants, **kwargs})

    register_backend(InfoptExporter, InfoptRunner)
    return InfoptConfig
