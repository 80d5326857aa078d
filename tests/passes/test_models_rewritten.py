"""What the passes make of real architectures, against what they made of them before.

models_rewritten.json holds, for each model, how often each op is in the final graph, and how often
each pass applied or declined with which reason. A rewrite that stops applying, applies once more,
or declines for another reason changes no result, so nothing else would tell. After a change that is
meant, write the file again and read what changed in it:

    python -m tests.passes.test_models_rewritten
"""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from infopt.compiler.options import Options
from infopt.compiler.pipeline import PassContext, Pipeline
from infopt.compiler.report import Report
from infopt.compiler.settings import Settings
from infopt.compiler.target import Target
from infopt.compiler.tracing.export import Exported, export
from infopt.models import zoo
from infopt.models.minilm import MiniLM
from infopt.passes.pipelines import default_passes
from infopt.runtime.structure import Leaf

KEPT = Path(__file__).with_name("models_rewritten.json")
MACHINE = Target.parse("cpu:avx512,cores=2")
# name -> (architecture, what default_passes is asked for)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    name: (name, {})
    for name in (
        "bert", "llama", "t5", "deberta_v2", "vit", "gpt2", "mixtral", "convnext", "mpnet",
        "gpt_neox", "bloom", "swin", "minilm",
    )
}  # fmt: skip
CASES |= {
    "llama bf16": ("llama", {"compute": "bf16"}),
    "minilm bf16": ("minilm", {"compute": "bf16"}),
    "mpnet int8": ("mpnet", {"weights": "int8", "activations": "int8"}),
    "gpt2 int4": ("gpt2", {"weights": "int4-g32"}),
}


def versions() -> dict[str, str]:
    """Of what writes the graphs; others may write others."""
    import transformers

    return {p.__name__: p.__version__.partition("+")[0] for p in (torch, transformers)}


def exported(name: str) -> tuple[Exported, list[tuple[Any, ...]]]:
    """A model's program, and example inputs where passes are to see some (half is padding)."""
    torch.manual_seed(0)
    if name != "minilm":
        return export(zoo.build(name), (), zoo.inputs(name, 0), None, Leaf), []
    ids, sizes = torch.ones(2, 16, dtype=torch.int64), {0: "batch", 1: "length"}
    mask = torch.tensor([[1] * 4 + [0] * 12, [1] * 12 + [0] * 4])
    dims = {axis: torch.export.Dim(text, min=1, max=256) for axis, text in sizes.items()}
    found = export(MiniLM().eval(), (ids, mask), {}, (dims, dims), Leaf)
    return found, [found.sample((ids, mask), {})]


def rewritten(case: str) -> dict[str, Any]:
    """Ops of the final graph, and what every pass says of its sites."""
    name, asked = CASES[case]
    asked = dict(asked)
    if "weights" in asked:
        asked["weights"] = Options(weights=asked["weights"]).weights
    report = Report()
    program, samples = exported(name)
    ctx = PassContext(MACHINE, tuple(samples), report, Settings())
    graph = Pipeline(default_passes(**asked)).run(program.graph, ctx)
    sites = Counter(
        f"{entry.name}: {'applied' if site.applied else 'declined: ' + plain(site.reason)}"
        for entry in report.passes
        for site in entry.sites
    )
    ops = Counter(node.op.name for node in graph.nodes())
    return {"ops": dict(sorted(ops.items())), "sites": dict(sorted(sites.items()))}


def plain(reason: str) -> str:
    """A reason without numbers of nodes."""
    return re.sub(r"%\+?\d+", "%n", reason)


@pytest.mark.parametrize("case", CASES)
def test_as_before(case: str) -> None:
    pytest.importorskip("transformers")
    kept = json.loads(KEPT.read_text())
    if kept["versions"] != versions():
        pytest.skip(f"written with {kept['versions']}, here are {versions()}")
    warnings.simplefilter("ignore")
    assert rewritten(case) == kept["models"][case]


def test_a_pass_that_is_left_out_is_noticed() -> None:
    """The control: if the record were of something else, it would not change."""
    graph, found = exported("minilm")[0].graph, []
    for passes in (default_passes(), default_passes()[:-6]):
        ctx = PassContext(MACHINE, (), Report(), Settings())
        found.append(Counter(n.op.name for n in Pipeline(passes).run(graph, ctx).nodes()))
    assert found[0] != found[1]


if __name__ == "__main__":
    found = {"versions": versions(), "models": {case: rewritten(case) for case in CASES}}
    KEPT.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
