"""A report as one HTML page: no script, nothing loaded from elsewhere, light and dark."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from infopt.compiler.dump import text
from infopt.compiler.page_style import STYLE
from infopt.compiler.roofline import Point, points_of, roofline

if TYPE_CHECKING:
    from infopt.compiler.report import PassReport, Report, Step

_LONGEST_DIFF = 400  # lines; the pattern of equal layers is seen long before
_LONGEST_GRAPH = 1000
_SHOWN = 12  # equal sites or operations named before the rest is only counted
# No scripts, no network: a page may hold names from anybody's model.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(reports: Sequence[Report], title: str) -> str:
    """One page for the programs of a model. What comes from models and passes is escaped."""
    body = [f"<h1>{escape(title)}</h1>"]
    for number, report in enumerate(reports, start=1):
        if len(reports) > 1:
            body.append(f"<h1>Program {number} of {len(reports)}</h1>")
        body += _program(report)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
        f"<body>{''.join(body)}</body></html>\n"
    )


def _program(report: Report) -> list[str]:
    target = f"compiled for {escape(report.target)}" if report.target else ""
    return [
        f"<p>{target}</p>",
        _declined(report),
        _tiles(report),
        *(f"<p>{escape(note)}</p>" for note in report.notes),
        "<h2>Passes, in order</h2>",
        *_passes(report),
        _final(report),
        _roofline(report),
        _lowering(report),
        _resources(report),
    ]


def _declined(report: Report) -> str:
    if not report.declined:
        return ""
    return f'<p class="bad">runs as torch runs it: {escape(report.declined)}</p>'


def _tiles(report: Report) -> str:
    total = report.native_nodes + report.aten_nodes
    applied = sum(len(e.applied) for e in report.passes)
    gain = sum(e.gain for e in report.passes)
    facts = [
        (f"{report.native_share:.0%}", f"native, {report.native_nodes} of {total} operations")
        if total
        else None,
        (str(applied), f"sites changed by {len(report.history)} of {len(report.passes)} passes"),
        (_time(gain), "gain per call that passes predict") if gain else None,
        (_time(sum(report.phases.values())), "to compile") if report.phases else None,
    ]
    facts += [(_bytes(n), f"memory, {name}") for name, n in sorted(report.memory.items())]
    tiles = (f'<div class="tile"><b>{a}</b>{escape(b)}</div>' for a, b in filter(None, facts))
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _passes(report: Report) -> Iterable[str]:
    steps = {step.entry: step for step in report.history}
    for index, entry in enumerate(report.passes):
        yield _pass(entry, steps.get(index))


def _pass(entry: PassReport, step: Step | None) -> str:
    changed = step is not None or entry.applied or entry.nodes_before != entry.nodes_after
    nodes = f"{entry.nodes_before} → {entry.nodes_after} nodes" if changed else "unchanged"
    facts = [
        entry.stage.lower(),
        nodes,
        f"{len(entry.applied)} applied, {len(entry.declined)} declined",
        f"predicted gain {_time(entry.gain)}" if entry.gain else "",
        "" if entry.measured is None else f"measured gain {_measured(entry)}",
        f"error {entry.error}" if entry.error else "",
        f"{entry.milliseconds:.1f} ms",
    ]
    shown = "".join(f'<span class="dim">{escape(f)}</span>' for f in facts if f)
    inside = [f"<p>promises {escape(entry.contract)}</p>", _sites(entry)]
    if step is not None:
        inside.append(f"<h3>What changed</h3>{_diff(step.diff())}")
    elif changed:
        inside.append("<p>the graphs between passes are kept for the newest programs only</p>")
    if entry.key:
        inside.append(f"<p>content <code>{entry.key[:16]}</code></p>")
    kind = "" if changed else ' class="idle"'
    return (
        f"<details{kind}><summary><b>{escape(entry.name)}</b>{shown}</summary>"
        f"<div>{''.join(inside)}</div></details>"
    )


def _measured(entry: PassReport) -> str:
    return f"{_time(entry.measured or 0.0)} ± {_time(entry.noise or 0.0)}"


def _sites(entry: PassReport) -> str:
    """Applied sites, then declined ones under their reasons; equal ones are counted."""
    if not entry.sites:
        return "<p>found nothing to do</p>"
    gains: dict[tuple[bool, str, str], float] = defaultdict(float)
    counts: Counter[tuple[bool, str, str]] = Counter()
    for site in entry.sites:
        numbered = site.where.startswith("%")
        where = site.where.partition(" ")[2] if numbered else site.where
        key = (site.applied, site.reason, where)
        counts[key] += 1
        gains[key] += site.gain or 0.0
    rows = []
    for key, count in sorted(counts.items(), key=lambda item: (not item[0][0], -item[1])):
        applied, reason, where = key
        kind, verdict = ("yes", "applied") if applied else ("no", "declined")
        verdict = f'<span class="{kind}">{verdict}</span>'
        gain = gains[key]
        cells = [str(count), verdict, f"<code>{escape(where)}</code>", escape(reason)]
        rows.append([*cells, _time(gain) if gain else ""])
    head = ("count", "", "where", "why not", "gain")
    kept = [i for i in range(len(head)) if any(row[i] for row in rows)]
    shown = [[row[i] for i in kept] for row in rows]
    return _table([head[i] for i in kept], shown, [n for n, i in enumerate(kept) if i in (0, 4)])


def _diff(difference: str) -> str:
    lines = difference.splitlines()
    kinds = {"+": "add", "-": "del", "@": "hunk"}
    shown = [
        f'<span class="{kinds.get(line[:1], "")}">{escape(line) or " "}</span>'
        for line in lines[1 : _LONGEST_DIFF + 1]
    ]
    more = len(lines) - 1 - _LONGEST_DIFF
    rest = f"<p>{more} more lines; INFOPT_DUMP writes all of them</p>" if more > 0 else ""
    return f"<p>{escape(lines[0])}</p><pre>{''.join(shown)}</pre>{rest}"


def _final(report: Report) -> str:
    """The whole graph that was lowered, closed at first."""
    if report.graph is None:
        return ""
    lines = text(report.graph).splitlines()
    shown = "".join(f"<span>{escape(line)}</span>" for line in lines[1 : _LONGEST_GRAPH + 1])
    more = len(lines) - 1 - _LONGEST_GRAPH
    rest = f"<p>{more} more lines; INFOPT_DUMP writes all of them</p>" if more > 0 else ""
    return (
        f"<details><summary><b>The final graph</b>"
        f'<span class="dim">{len(report.graph.nodes())} nodes</span></summary>'
        f"<div><pre>{shown}</pre>{rest}</div></details>"
    )


def _roofline(report: Report) -> str:
    if report.graph is None or report.machine is None:
        return ""
    points = points_of(report.graph, report.machine)
    if not points:
        return ""
    total = sum(p.seconds for p in points)
    legend = "".join(
        f'<span class="key" style="background:var(--{name})"></span>{text}'
        for name, text in (
            ("compute", "limited by arithmetic"),
            ("memory", "by memory"),
            ("start", "by starting the step"),
        )
    )
    rows = [_operation(p, total) for p in points[:_SHOWN]]
    left = len(points) - _SHOWN
    rest = f"<p>{left} more kinds of operations take less</p>" if left > 0 else ""
    head = ("operation", "count", "flop/byte", "GFLOP/s", "estimate", "share", "limit")
    return (
        "<h2>Roofline</h2><p>Estimates of the cost model for the final graph at the sizes seen; "
        f'the area of a disc is its share of the time.{legend}</p><div class="card">'
        f"{roofline(points, report.machine)}{_table(head, rows, numbers=range(1, 6))}{rest}</div>"
    )


def _operation(p: Point, total: float) -> list[str]:
    return [
        f"<code>{escape(p.name)}</code> {p.dtype}",
        str(p.count),
        f"{p.intensity:.3g}",
        f"{p.gflops:.3g}",
        _time(p.seconds),
        f"{p.seconds / total:.0%}",
        p.bound,
    ]


def _lowering(report: Report) -> str:
    parts = []
    if report.kernels:
        counts = Counter(report.kernels).most_common()
        rows = [[f"<code>{escape(op)}</code>", str(n)] for op, n in counts]
        table = _table(("operation", "count"), rows, numbers=(1,))
        parts.append(f'<h2>Kernels</h2><div class="card">{table}</div>')
    if report.times:
        total = sum(report.times.values())
        measured = [
            [f"<code>{escape(kernel)}</code>", _time(spent), f"{spent / total:.0%}"]
            for kernel, spent in report.times.items()
        ]
        table = _table(("kernel", "measured per call", "share"), measured, numbers=(1, 2))
        parts.append(f'<h2>Time in kernels</h2><div class="card">{table}</div>')
    if report.fallbacks:
        reasons = sorted(report.fallbacks.items())
        rows = [[f"<code>{escape(op)}</code>", escape(why)] for op, why in reasons]
        table = _table(("operation", "why torch runs it"), rows)
        parts.append(f'<h2>Fallbacks</h2><div class="card">{table}</div>')
    elif report.native_nodes:
        parts.append("<h2>Fallbacks</h2><p>none: every operation runs natively</p>")
    return "".join(parts)


def _resources(report: Report) -> str:
    rows = [[escape(name), _time(spent)] for name, spent in report.phases.items()]
    rows += [[f"memory, {escape(name)}", _bytes(n)] for name, n in sorted(report.memory.items())]
    if not rows:
        return ""
    return f'<h2>Time and memory</h2><div class="card">{_table(("", ""), rows, (1,))}</div>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    """Cells are HTML already."""
    right = set(numbers)
    marks = ['class="n"' if i in right else "" for i in range(len(head))]
    top = "".join(f"<th {m}>{h}</th>" for m, h in zip(marks, head, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td {m}>{c}</td>' for m, c in zip(marks, row, strict=True))}</tr>"
        for row in rows
    )
    return f"<table><tr>{top}</tr>{body}</table>".replace("<td >", "<td>").replace("<th >", "<th>")


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if abs(seconds) >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.2g} µs"


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} GiB"
