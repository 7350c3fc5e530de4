"""The page's style sheet: one column, system fonts, two palettes, and narrow screens."""

__all__ = ["STYLE"]

STYLE = """
:root { color-scheme: light dark;
  --paper: #fbfaf8; --card: #ffffff; --ink: #1d2126; --soft: #646b75; --rule: #e4e1db;
  --good: #1a7f4b; --bad: #c02d2d; --warn: #9a6200; --line: #2f66b3; --code: #f2f0ec; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #14171b; --card: #1c2026; --ink: #e6e8eb; --soft: #98a1ad; --rule: #30363e;
  --good: #56c98b; --bad: #f2777a; --warn: #e3ac4f; --line: #78a9ee; --code: #262b32; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
header { border-left: 5px solid var(--tone); padding-left: 1.1rem; margin-bottom: 2rem; }
.over { margin: 0; color: var(--soft); font-size: .9rem; letter-spacing: .02em; }
h1 { margin: .1rem 0 .9rem; font-size: 1.75rem; line-height: 1.25; letter-spacing: -.015em; }
h2 { margin: 0; font-size: 1.2rem; display: flex; gap: .7rem; align-items: center;
  flex-wrap: wrap; overflow-wrap: anywhere; }
h3 { margin: 0 0 .35rem; font-size: 1rem; display: flex; gap: .1rem .7rem; flex-wrap: wrap;
  align-items: baseline; }
h3 small { color: var(--tone); font-weight: 600; }
h3 code, td code { color: var(--soft); background: none; padding: 0; font-weight: 400; }
h3 code { margin-left: auto; }
td code { display: block; font-size: .78rem; }
.passed { --tone: var(--good); } .failed { --tone: var(--bad); }
.inconclusive, .unavailable { --tone: var(--warn); }
.skipped, .expected_failure { --tone: var(--soft); }
.contents { list-style: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap;
  gap: .4rem 1.4rem; }
.contents a { display: flex; gap: .5rem; align-items: center; color: inherit;
  text-decoration: none; }
.contents a:hover span:last-child { text-decoration: underline; }
.pill { font-size: .74rem; font-weight: 600; line-height: 1; padding: .32em .7em;
  border-radius: 99px;
  color: var(--tone); background: color-mix(in srgb, var(--tone) 13%, transparent); }
.tag { font-size: .8rem; border: 1px solid var(--tone); color: var(--tone); border-radius: 4px;
  padding: 0 .45em; }
.solver, .environment { background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: 1.25rem 1.4rem; margin: 1.1rem 0; }
.solver > p { margin: .6rem 0; }
.facts { color: var(--soft); font-size: .9rem; margin: .15rem 0 .8rem !important; }
article { border-left: 3px solid var(--tone); padding: .1rem 0 .1rem 1rem; margin: 1.1rem 0; }
article p { margin: .2rem 0; overflow-wrap: anywhere; }
article b, .again b { color: var(--soft); font-weight: 600; font-size: .88rem; }
code, pre { font: .86rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
.again code { background: var(--code); border-radius: 5px; padding: .2em .5em;
  overflow-wrap: anywhere; }
pre { background: var(--code); border-radius: 6px; padding: .8rem 1rem; overflow: auto;
  max-height: 20rem; }
details { border-top: 1px solid var(--rule); margin-top: .9rem; padding-top: .7rem; }
summary { cursor: pointer; font-size: .92rem; color: var(--soft); }
summary:hover { color: var(--ink); }
div.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr));
  gap: 1rem 1.4rem; margin-top: .7rem; }
.legend { color: var(--soft); font-size: .84rem; max-width: 50rem; }
.legend i { display: inline-block; width: 1.5rem; height: 0; border-top: 2px solid var(--line);
  vertical-align: middle; margin: 0 .15rem; }
.legend i.remainder { border-top-style: dashed; border-top-width: 1.5px; opacity: .75; }
.legend i.wrong { border-color: var(--bad); border-top-width: 3px; }
figure { margin: 0; }
figcaption { font-size: .86rem; text-align: center; overflow-wrap: anywhere; }
svg { width: 100%; height: auto; display: block; }
svg text { font: 10px system-ui, sans-serif; fill: var(--soft); }
svg .grid { stroke: var(--rule); stroke-width: 1; }
svg line.limit { stroke: var(--soft); stroke-dasharray: 2 3; }
svg polyline { fill: none; stroke: var(--line); stroke-linejoin: round; }
svg .error { stroke-width: 1.6; opacity: .85; }
svg .remainder { stroke-width: 1; stroke-dasharray: 4 3; opacity: .6; }
svg .wrong { stroke: var(--bad); opacity: 1; }
svg .error.wrong { stroke-width: 2.4; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; margin-top: .5rem; }
td { padding: .4rem .9rem .4rem 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
td.number { text-align: right; padding-right: 0; white-space: nowrap; color: var(--soft);
  font-variant-numeric: tabular-nums; }
.mark { color: var(--tone); white-space: nowrap; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.4rem; margin: .7rem 0 0;
  font-size: .9rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  main { padding: 1.25rem .75rem 3rem; } h1 { font-size: 1.35rem; }
  .solver, .environment { padding: 1rem; border-radius: 8px; }
  h3 code { margin-left: 0; width: 100%; }
  table, tbody, tr, td { display: block; }
  tr { padding: .5rem 0; border-bottom: 1px solid var(--rule); }
  td { border: 0; padding: .05rem 0; } td.number { text-align: left; }
  dl { grid-template-columns: 1fr; gap: 0; } dt { margin-top: .4rem; }
}
@media print { .solver, .environment { break-inside: avoid; border-color: #ccc; } }
"""
