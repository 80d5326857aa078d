"""How the pages of page.py look: one style sheet, light and dark."""

STYLE = """
:root { color-scheme: light dark; --back: #fbfbfd; --card: #fff; --text: #1d1f24; --dim: #667085;
  --line: #e3e6ec; --accent: #2f5fde; --added: #0a7a3d; --added-back: #e5f6ec;
  --removed: #b42318; --removed-back: #fdeceb; --compute: #2f5fde; --memory: #d9730d;
  --start: #8a94a6 }
@media (prefers-color-scheme: dark) { :root { --back: #14161a; --card: #1c1f25; --text: #e6e8ec;
  --dim: #98a2b3; --line: #2f343d; --accent: #7da2ff; --added: #6fd699; --added-back: #16301f;
  --removed: #ff9b93; --removed-back: #3a1c1a; --compute: #7da2ff; --memory: #f5a352;
  --start: #8a94a6 } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 32px 24px 64px; max-width: 1080px; background: var(--back);
  color: var(--text); font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 24px; margin: 0 0 4px }
h2 { font-size: 17px; margin: 36px 0 10px }
p, .dim { color: var(--dim); margin: 4px 0 }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px;
  margin: 20px 0 }
.tile, details, .card { background: var(--card); border: 1px solid var(--line); border-radius: 8px }
.tile { padding: 12px 14px }
.tile b { display: block; font-size: 20px; font-weight: 600 }
.card { padding: 14px; overflow-x: auto }
details { margin: 6px 0 }
summary { cursor: pointer; padding: 9px 14px; display: flex; gap: 14px; align-items: baseline;
  flex-wrap: wrap }
summary::before { content: "▸"; color: var(--dim); width: 8px }
details[open] > summary::before { content: "▾" }
summary:hover { color: var(--accent) }
summary b { min-width: 200px; font-weight: 600 }
details > div { padding: 2px 14px 14px; border-top: 1px solid var(--line) }
.idle summary b { font-weight: 400; color: var(--dim) }
table { border-collapse: collapse; width: 100%; font-size: 13.5px }
td, th { text-align: left; padding: 4px 12px 4px 0; border-bottom: 1px solid var(--line);
  vertical-align: top }
th { color: var(--dim); font-weight: 500 }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
h3 { font-size: 14px; margin: 14px 0 4px }
pre, code { font: 12.5px/1.55 ui-monospace, monospace }
pre { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; padding: 8px 0;
  margin: 6px 0 }
pre span { display: block; padding: 0 12px; white-space: pre; min-width: max-content }
.add { color: var(--added); background: var(--added-back) }
.del { color: var(--removed); background: var(--removed-back) }
.hunk { color: var(--dim) }
.yes { color: var(--added) } .no { color: var(--dim) } .bad { color: var(--removed) }
svg { width: 100%; height: auto; max-width: 760px }
svg text { fill: var(--dim); font-size: 12px }
.mid { text-anchor: middle } .end { text-anchor: end }
.grid { stroke: var(--line); fill: none }
.roof { stroke: var(--text); stroke-width: 1.6; fill: none }
circle { fill-opacity: .55; stroke-width: 1.5 }
circle.compute { fill: var(--compute); stroke: var(--compute) }
circle.memory { fill: var(--memory); stroke: var(--memory) }
circle.start { fill: var(--start); stroke: var(--start) }
.key { display: inline-block; width: 10px; height: 10px; border-radius: 50%; margin: 0 4px 0 12px }
"""
