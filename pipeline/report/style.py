"""Style sheet of the page: light, dark, narrow and printed, nothing from outside.

The dark and light papers are those of ``drawing`` and ``curves``, so that pictures have no edge.
"""

STYLE = """
:root { color-scheme: light dark;
  --paper: #ffffff; --ink: #1c2026; --soft: #59616e; --rule: #dfe3e9; --tint: #f4f6f8;
  --accent: #2f6690; --shade: #1c202633; --wash: #c9dcea;
  --good: #1d6640; --good-tint: #edf6f0; --warn: #8a4b00; --warn-tint: #fdf5e8;
  --bad: #a32430; --bad-tint: #fcefef }
@media screen and (prefers-color-scheme: dark) { :root {
  --paper: #15181d; --ink: #e4e7ec; --soft: #a2abb8; --rule: #323842; --tint: #1d2128;
  --accent: #7ab3dc; --shade: #000000aa; --wash: #2b4a60;
  --good: #84cfa2; --good-tint: #182a20; --warn: #eebb6b; --warn-tint: #2c2416;
  --bad: #f2928f; --bad-tint: #331d1f } }
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100% }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial,
    sans-serif }
main { max-width: 1120px; margin: 0 auto; padding: 3.5rem 2rem 4rem }
h1, h2, h3, p, dl, dd, ul, ol, figure { margin: 0; padding: 0 }
h1 { font-size: 2.5rem; line-height: 1.15; letter-spacing: -.02em; font-weight: 650;
  overflow-wrap: anywhere }
h1 .version { color: var(--soft); font-weight: 400; white-space: nowrap; font-size: 1.5rem;
  letter-spacing: 0 }
h2 { font-size: 1.125rem; line-height: 1.4; font-weight: 650 }
h3 { font-size: 1rem; font-weight: 650; margin-top: 2.25rem }
a { color: var(--accent) }
small { font-size: .8125rem; color: var(--soft) }
code { font: .875em ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace;
  overflow-wrap: anywhere }
.kicker { color: var(--soft); font-size: .875rem; margin-bottom: .25rem }
.lead { font-size: 1.125rem; color: var(--soft); margin-top: .5rem; max-width: 44rem;
  overflow-wrap: anywhere }
.ok { color: var(--good) } .warn { color: var(--warn) } .bad { color: var(--bad) }
.verdict { margin-top: 2rem; padding: 1rem 1.25rem; border-left: 4px solid; border-radius: 3px;
  overflow-wrap: anywhere }
.verdict strong { display: block; font-size: 1.25rem; line-height: 1.4 }
.verdict span { color: var(--ink) }
.verdict.good { color: var(--good); background: var(--good-tint) }
.verdict.bad { color: var(--bad); background: var(--bad-tint) }
.figures { display: grid; grid-template-columns: repeat(4, 1fr); gap: 1.5rem 2rem;
  margin-top: 2rem }
.figures dt { color: var(--soft); font-size: .875rem }
.figures .big { display: block; font-size: 1.75rem; line-height: 1.3; font-weight: 600;
  letter-spacing: -.01em; font-variant-numeric: tabular-nums }
.figures small { display: block; line-height: 1.45 }
.caveats { margin-top: 2.25rem }
.caveats ul { margin-top: .5rem; padding-left: 1.25rem }
.caveats li, .notes li { overflow-wrap: anywhere }
.caveats li + li { margin-top: .2rem }
.part { display: grid; grid-template-columns: 10.5rem minmax(0, 1fr); gap: 0 2.5rem;
  border-top: 1px solid var(--rule); padding-top: 1.75rem; margin-top: 3rem }
.part > div > * + * { margin-top: 1.25rem }
.part > div > h3 { margin-top: 2.25rem }
.part > div > h3:first-child { margin-top: 0 }
.part > div > h3 + * { margin-top: .6rem }
.scroll { overflow-x: auto;
  /* A shadow at the right edge while there is more to see there. */
  background: linear-gradient(to left, var(--paper) 40%, transparent) right / 3rem 100% local,
    linear-gradient(to left, var(--shade), transparent) right / .9rem 100%;
  background-repeat: no-repeat }
.scroll:focus-visible, summary:focus-visible { outline: 2px solid var(--accent);
  outline-offset: 3px }
table { border-collapse: collapse; width: 100%; font-size: .9375rem;
  font-variant-numeric: tabular-nums }
caption { text-align: left; color: var(--soft); font-size: .875rem; padding-bottom: .5rem }
th, td { padding: .5rem 0 .5rem 1rem; text-align: right; vertical-align: top;
  border-bottom: 1px solid var(--rule); white-space: nowrap; font-weight: 400 }
th:first-child { text-align: left; padding-left: 0 }
thead th { color: var(--soft); font-size: .8125rem; vertical-align: bottom }
td small { display: block; line-height: 1.3; white-space: normal; min-width: 4.5rem }
.words td { text-align: left }
.words thead th { text-align: left }
.line { display: block }
.facts > div { display: grid; grid-template-columns: 11rem minmax(0, 1fr); gap: 0 1.25rem;
  padding: .4rem 0; border-bottom: 1px solid var(--rule) }
.facts > div:first-child { border-top: 1px solid var(--rule) }
.scroll + .facts > div:first-child { border-top: 0 }
.facts dt { color: var(--soft) }
.facts dd { overflow-wrap: anywhere }
.settings { columns: 2; column-gap: 2.5rem; font-size: .9375rem }
.settings > div { display: flex; justify-content: space-between; gap: 1rem; padding: .25rem 0;
  border-bottom: 1px solid var(--rule); break-inside: avoid }
.settings dt { color: var(--soft) }
.settings dd { text-align: right; min-width: 0 }
.plain { list-style: none } .notes { list-style: none; color: var(--soft); font-size: .875rem }
.plain.columns { columns: 2; column-gap: 2.5rem }
.plain li { break-inside: avoid }
.plain li::before { content: "\\2013\\00a0" }
.facts .plain li::before { content: none }
figcaption { color: var(--soft); font-size: .875rem; margin-top: .6rem }
img { display: block; max-width: 100%; height: auto }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr));
  gap: 2rem 2.5rem }
.pair figure { max-width: 30rem }
.genotype img { max-width: none; width: 100%; min-width: 36rem; max-height: none }
.genotype { max-width: 46rem }
.chart { display: block; overflow: visible }
.chart text { font-size: 13px; fill: var(--soft); font-variant-numeric: tabular-nums }
.chart .axis { text-anchor: middle; font-size: 12px }
.chart .name { fill: var(--ink) }
.chart .value { fill: var(--ink); text-anchor: end }
.chart .value.warn { fill: var(--warn); font-weight: 600; font-size: 11px }
.chart .grid { stroke: var(--rule) }
.chart .whole { stroke: var(--accent); stroke-width: 1.5 }
.chart .span { stroke: var(--wash); stroke-width: 10 }
.chart .dot { fill: var(--accent) }
.chart .unstable .whole { stroke: var(--warn); stroke-dasharray: 4 3 }
.chart .unstable .span { stroke: var(--rule) }
.chart .unstable .dot { fill: var(--paper); stroke: var(--warn); stroke-width: 2 }
.classes { list-style: none; columns: 3; column-gap: 2.5rem; font-size: .9375rem }
details .classes { margin-top: .75rem }
summary { cursor: pointer }
.classes li { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: 0 1rem;
  padding: .3rem 0; break-inside: avoid }
.classes .name { overflow-wrap: anywhere }
.classes .count { color: var(--soft); font-variant-numeric: tabular-nums }
.classes .bar { grid-column: 1 / -1; height: 3px; background: var(--accent); opacity: .55;
  border-radius: 2px }
.lineage { list-style: none; border-left: 2px solid var(--rule); margin-left: .3rem }
.lineage li { position: relative; padding: 0 0 1rem 1.5rem }
.lineage li:last-child { padding-bottom: 0 }
.lineage li::before { content: ""; position: absolute; left: -6px; top: .5rem; width: 10px;
  height: 10px; border-radius: 50%; background: var(--accent) }
.lineage span { margin-left: .6rem; overflow-wrap: anywhere }
.hash { display: block; color: var(--soft); font-size: .8125rem; line-height: 1.5 }
footer { margin-top: 3rem; padding-top: 1.25rem; border-top: 1px solid var(--rule);
  color: var(--soft); font-size: .875rem }
@media screen and (max-width: 760px) {
  main { padding: 2rem 1.125rem 3rem }
  h1 { font-size: 1.875rem }
  .part { display: block; margin-top: 2.25rem; padding-top: 1.25rem }
  .part > div { margin-top: .9rem }
  .figures { grid-template-columns: 1fr 1fr; gap: 1.25rem 1rem }
  .figures .big { font-size: 1.375rem }
  .facts > div { grid-template-columns: 1fr; padding: .5rem 0 }
  .facts dt { font-size: .875rem }
  .settings, .classes, .plain.columns { columns: 1 }
}
@media print {
  @page { margin: 15mm }
  html { font-size: 12px } body { font-size: 1rem }
  main { max-width: none; padding: 0 }
  .part { display: block; margin-top: 1.5rem; padding-top: 1rem }
  .part > div { margin-top: .75rem }
  .scroll { overflow: visible; background: none }
  .genotype img { min-width: 0 }
  th, td { padding: .3rem 0 .3rem .6rem }
  td small { min-width: 0 }
  h2, h3, caption { break-after: avoid }
  figure, tr, .facts > div, .lineage li, .verdict, .figures { break-inside: avoid }
  .verdict, .bar, .lineage li::before { print-color-adjust: exact }
}
"""
