"""`python -m benchmarks groups`: linear layers that skip groups of weights, against whole ones.

Speed: layers at the shapes of MobileNet's pointwise convolutions (images of 224 x 224, channels
last) and of BERT's layers, and a step of one token, with random weights of which a share is gone;
whole and cut in turns, with what the cost model expects. Quality: the real MiniLM with a share of
the groups gone, by size alone and fitted to 48 sentences, judged on others and timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

import infopt
from benchmarks.pruning import Row, table, timed
from benchmarks.report import wide_console, write_json
from infopt.codegen.group_sparsity import largest
from infopt.codegen.kernels.group_sparse_linear import group_form, group_sparse_linear
from infopt.codegen.load import lower_for, program
from infopt.compiler.cost import graph_seconds
from infopt.compiler.graph import Graph, Node, Stage
from infopt.compiler.infer import Builder
from infopt.compiler.pipeline import PassContext, Pipeline
from infopt.compiler.report import Report
from infopt.compiler.settings import Settings
from infopt.compiler.target import Target
from infopt.compiler.types import TensorType
from infopt.models.agreement import relative_error
from infopt.models.minilm import load_minilm, tokenize
from infopt.models.sentences import SENTENCES
from infopt.passes.pipelines import default_passes
from infopt.passes.sparsify_groups import SparsifyGroups
from infopt.runtime.measure import measure

SHAPES = {  # rows, features in, features out
    **{f"MobileNet {k} -> {n}": (m, k, n) for m, k, n in (
        (12544, 32, 64), (3136, 128, 128), (784, 256, 256), (196, 512, 512), (49, 1024, 1024),
    )},
    "BERT projection": (128, 768, 768),
    "BERT up": (128, 768, 3072),
    "BERT down": (128, 3072, 768),
    "one token": (1, 2048, 8192),
}  # fmt: skip
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


@torch.no_grad()
def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks groups", description=__doc__)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.3, 0.5, 0.7])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--kept", type=float, nargs="+", default=[0.1, 0.2, 0.3], help="of MiniLM")
    parser.add_argument("--seconds", type=float, default=1.0, help="of timing, per layer")
    parser.add_argument("--only", choices=("layers", "minilm"))
    parser.add_argument("--json", help="also write the rows to this file")
    options = parser.parse_args(arguments)
    console, found = wide_console(), {}
    if options.only in (None, "layers"):
        found["layers"] = list(layers(options))
        console.print(table("Layers with a share of their groups gone", found["layers"]))
    if options.only in (None, "minilm"):
        found["minilm"] = minilm(options)
        console.print(table("MiniLM, judged on sentences that chose nothing", found["minilm"]))
    if options.json:
        write_json(options.json, found)
    return 0


def layers(options: argparse.Namespace) -> Iterator[Row]:
    target = Target.parse(f"cpu:cores={torch.get_num_threads()}")
    for dtype in options.dtypes:
        for name, shape in SHAPES.items():
            x, start = whole(*shape, DTYPES[dtype])
            graphs = {"whole": start}
            graphs |= {f"{s:.0%}": without(start, s, target) for s in options.shares}
            programs = {way: program(lower_for(g, target)) for way, g in graphs.items()}
            runs = {way: partial(run, [x]) for way, run in programs.items()}
            times = measure(runs, options.seconds, rounds=41)
            first = times["whole"]
            for way, found in times.items():
                row = {"layer": name, "dtype": dtype, "gone": "" if way == "whole" else way}
                row |= {"median us": found.median * 1e6, "least us": found.min * 1e6}
                row |= {"faster": first.median / found.median, "by least": first.min / found.min}
                gone = 0.0 if way == "whole" else float(way[:-1]) / 100
                yield row | {"expected": expected(start, gone, target) if gone else 1.0}


def whole(m: int, k: int, n: int, dtype: torch.dtype) -> tuple[torch.Tensor, Graph]:
    """Rows, and a layer that reads them."""
    torch.manual_seed(0)
    weights = {"w": torch.randn(n, k, dtype=dtype) / k**0.5, "b": torch.randn(n, dtype=dtype)}
    o, x = Builder(), torch.randn(m, k, dtype=dtype)
    node = o.input("x", TensorType.of(x))
    layer = o.linear(node, *(o.const(name, TensorType.of(t)) for name, t in weights.items()))
    return x, Graph((node,), (layer,), weights, stage=Stage.FUSE)


def without(graph: Graph, share: float, target: Target) -> Graph:
    """The layer with a share of its groups gone, whether that pays or not."""
    weight, bias = graph.consts["w"], graph.consts["b"]
    form = group_form(target, weight.dtype)
    blocks, groups = form.counts(*weight.shape)
    columns = largest(torch.rand(blocks, groups), groups - round(share * groups))
    parts = {"values": form.packed(weight, columns), "columns": columns, "b": bias}
    o, (x,) = Builder(), graph.inputs
    consts: list[Node] = [o.const(name, TensorType.of(t)) for name, t in parts.items()]
    made = o.call(group_sparse_linear, x, *consts, None, features=len(weight), activation="none")
    return Graph((x,), (made,), parts, stage=Stage.FUSE)


def expected(graph: Graph, share: float, target: Target) -> float:
    """How many times faster the pass takes the layer to be: below 1 it declines."""
    report = Report()
    asked = SparsifyGroups(share, limit=float("inf"))
    Pipeline([asked], alone=True).run(graph, PassContext(target, (), report, Settings()))
    (site,) = report.passes[0].sites
    before = graph_seconds(graph, target)
    return before / (before - (site.gain or 0.0))


def minilm(options: argparse.Namespace) -> list[Row]:
    model = load_minilm()
    chosen, calibrating = SENTENCES[::4][:48], SENTENCES[1::4][:48]
    samples = tokenize(chosen)
    seen = [(s.ids, s.mask) for s in (tokenize([c]) for c in calibrating)]
    held_out = tokenize([s for s in SENTENCES if s not in {*chosen, *calibrating}])
    want = model(held_out.ids, held_out.mask)
    ids, mask = (torch.export.Dim(n, min=1, max=512) for n in ("sentences", "tokens"))
    shapes, args = ({0: ids, 1: mask}, {0: ids, 1: mask}), (samples.ids, samples.mask)
    ways: dict[str, tuple[float | None, Any]] = {"whole": (None, None)}
    for share in options.kept:
        ways |= {f"{share:.0%} by size": (share, None), f"{share:.0%} fitted": (share, seen)}
    rows, runs = [], {}
    for way, (share, calibration) in ways.items():
        passes = default_passes(group_sparsity=share)
        passes = tuple(
            SparsifyGroups(p.share, limit=10.0) if isinstance(p, SparsifyGroups) else p
            for p in passes
        )
        compiled = infopt.compile(
            *(model, args), dynamic_shapes=shapes, passes=passes, calibration=calibration
        )
        found = compiled(held_out.ids, held_out.mask)
        rows.append(
            {
                "way": way,
                "weights": compiled.report.memory["weights"] / 2**20,
                "error": relative_error(want, found),
                "least cosine": torch.cosine_similarity(found, want).min().item(),
            }
        )
        runs[way] = lambda c=compiled: c(*args)
    return timed(rows, runs, 20 * options.seconds)
