"""`infopt passes`: list them, run some on a model, show what they change, find a wrong one."""

import argparse
import inspect
from dataclasses import asdict, dataclass

from infopt.compiler.bisection import bisect_graph
from infopt.compiler.commands.measuring import measure
from infopt.compiler.commands.output import print_json, print_table, print_text, progress
from infopt.compiler.commands.pass_argument import load_pass, pipeline
from infopt.compiler.commands.source import Source, load_source
from infopt.compiler.graph import Graph
from infopt.compiler.kernel_check import WrongKernel, wrong_kernels
from infopt.compiler.pipeline import Pass, PassContext, Pipeline
from infopt.compiler.report import Report, explanation
from infopt.compiler.settings import Settings
from infopt.compiler.target import Target
from infopt.compiler.tracing.export import export
from infopt.passes.named import BUILT_IN, describe, offered
from infopt.passes.pipelines import default_passes
from infopt.runtime.structure import Leaf


def run(args: argparse.Namespace) -> int:
    return {"list": _list, "run": _run, "diff": _diff, "bisect": _bisect}[args.what](args)


def _list(args: argparse.Namespace) -> int:
    """The default passes in order, then those that run only when somebody names them."""
    defaults = default_passes()
    rest = [cls() for name, cls in BUILT_IN.items() if name not in {p.name for p in defaults}]
    rows = [_row(p, "default") for p in defaults] + [_row(p, "on request") for p in rest]
    offers = [{"name": e.name, "from": describe(e), "place": e.value} for e in offered()]
    if args.json:
        print_json({"passes": rows, "offered": offers})
        return 0
    print_table(list(rows[0]), [list(row.values()) for row in rows], numbers=False)
    for offer in offers:
        print_text(f"offered by {offer['from']}, runs when named: {offer['name']}")
    return 0


def _row(p: Pass, runs: str) -> dict[str, str]:
    what = (inspect.getdoc(type(p)) or "").partition("\n")[0]
    stage = p.stage.name.lower()
    return {"stage": stage, "name": p.name, "contract": str(p.accuracy), "runs": runs, "what": what}


@dataclass
class _Model:
    """A traced model with its example inputs in the graph's order."""

    source: Source
    graph: Graph
    sample: tuple
    target: Target


def _model(args: argparse.Namespace) -> _Model:
    with progress() as bar:
        task = bar.add_task(f"loading {args.source}", total=2)
        source = load_source(args.source)
        bar.update(task, advance=1, description=f"tracing {source.name}")
        traced = export(source.model, source.args, source.kwargs, source.dynamic_shapes, Leaf)
    sample = traced.sample(source.args, source.kwargs)
    return _Model(source, traced.graph, sample, Target.parse(args.target))


def _through(args: argparse.Namespace, names: list[str]) -> Report:
    """Run the pipeline with every contract measured on the example. Raises ContractBroken."""
    passes, model = pipeline(args, args.passes), _model(args)
    report = Report(target=model.target.name)
    settings = Settings.from_environment()
    checked = Settings(check=max(1, settings.check), dump=settings.dump, skip=settings.skip)
    Pipeline(passes).run(model.graph, PassContext(model.target, (model.sample,), report, checked))
    if args.measure is not None:
        every = names or [p.name for p in passes]
        measure(report, model.graph, model.sample, passes, every, model.target, args.measure)
    return report


def _run(args: argparse.Namespace) -> int:
    names = [load_pass(text).name for text in args.passes]
    report = _through(args, names)
    entries = [e for e in report.passes if not names or e.name in names]
    if args.json:
        print_json({"target": report.target, "passes": [e.to_json() for e in entries]})
    else:
        print_text("\n".join([*(explanation(e) for e in entries), *report.notes]))
    return 0


def _diff(args: argparse.Namespace) -> int:
    names = [load_pass(text).name for text in args.passes]
    report = _through(args, names)
    steps = [s for s in report.history if not names or s.name in names]
    if args.html:
        report.html(args.html, title=args.source)
    if args.json:
        print_json({"passes": [{"name": s.name, "diff": s.diff()} for s in steps]})
        return 0
    for step in steps:
        print_text(f"{step.name}: {step.diff()}")
    if args.html:
        print_text(f"wrote {args.html}")
    return 0


def _bisect(args: argparse.Namespace) -> int:
    """0 where every pass keeps its contract and every kernel computes its op, else 1."""
    passes = pipeline(args, args.passes)
    model = _model(args)
    found = bisect_graph(passes, model.graph, [model.sample], model.target)
    kernels = [] if found else _wrong_kernels(model, passes)
    if args.json:
        result = {"found": asdict(found) if found else None, "passes": [p.name for p in passes]}
        print_json({**result, "kernels": [asdict(k) for k in kernels]})
    elif found:
        print_text(str(found))
    else:
        print_text(f"all {len(passes)} passes keep their contracts on the example inputs")
        print_text("\n".join(map(str, kernels)) or "so does every kernel, alone on what it meets")
    return 1 if found or kernels else 0


def _wrong_kernels(model: _Model, passes: tuple[Pass, ...]) -> list[WrongKernel]:
    context = PassContext(model.target)
    graph = Pipeline(passes).run(model.graph, context)
    return wrong_kernels(graph, model.sample, model.target)
