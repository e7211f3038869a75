"""What a page looks like, in light and dark, on a screen, a phone and paper."""

from __future__ import annotations

CSS = """:root {
  color-scheme: light dark;
  --ink: #1b1e24; --paper: #ffffff; --faint: #59616e; --line: #dfe2e7; --wash: #f5f6f8; --link: #0b5c96;
  --good: #0a7a5c; --bad: #b3450a; --plain: #6b7380; --warning: #9a6b00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e3e6eb; --paper: #15171b; --faint: #a1a8b4; --line: #32363e; --wash: #1d2025; --link: #7cbcf0;
    --good: #3fbf97; --bad: #ee8a4f; --plain: #8d95a3; --warning: #e0b341;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", \
Roboto, "Noto Sans", "Liberation Sans", sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 0 0 0.75rem; overflow-wrap: anywhere; }
h3 { font-size: 0.95rem; line-height: 1.4; margin: 1.75rem 0 0.25rem; overflow-wrap: anywhere; }
p { max-width: 44rem; margin: 0 0 0.75rem; overflow-wrap: anywhere; white-space: pre-line; }
a { color: var(--link); }
section { padding-top: 2.25rem; }
.subtitle { color: var(--faint); margin: 0.35rem 0 0; max-width: none; }
.note { color: var(--faint); font-size: 0.875rem; line-height: 1.5; }
header + section { padding-top: 1.5rem; }
nav { margin-top: 2rem; padding: 0.75rem 0; border-block: 1px solid var(--line); font-size: 0.9rem; line-height: 1.9; \
display: flex; flex-wrap: wrap; gap: 0 1.1rem; }
nav a { text-decoration: none; white-space: nowrap; }
nav a:hover { text-decoration: underline; }
.callout { border-left: 4px solid var(--tone); background: var(--wash); padding: 1rem 1.25rem; border-radius: 0 6px 6px 0; \
margin: 0 0 1rem; --tone: var(--plain); }
.callout.good { --tone: var(--good); } .callout.bad { --tone: var(--bad); } .callout.warning { --tone: var(--warning); }
.callout p { margin: 0.35rem 0 0; max-width: 50rem; }
.callout .say { font-weight: 600; font-size: 1.15rem; line-height: 1.35; margin: 0; }
.callout.warning .say { font-size: 1rem; }
.facts { display: flex; flex-wrap: wrap; gap: 1px; margin: 1.25rem 0; background: var(--line); \
border: 1px solid var(--line); border-radius: 6px; overflow: hidden; }
.facts > div { background: var(--paper); padding: 0.75rem 0.9rem; flex: 1 1 9rem; }
.facts dt { color: var(--faint); font-size: 0.8rem; }
.facts dd { margin: 0.1rem 0 0; font-size: 1.3rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.facts .by { display: block; font-size: 0.8rem; color: var(--faint); line-height: 1.4; margin-top: 0.15rem; }
/* A shade at an edge beyond which a table goes on. */
.wide { overflow-x: auto; margin: 0.5rem 0 1rem; background:
  linear-gradient(to right, var(--paper) 30%, transparent) left / 3rem 100% no-repeat local,
  linear-gradient(to left, var(--paper) 30%, transparent) right / 3rem 100% no-repeat local,
  linear-gradient(to right, var(--line), transparent) left / 0.8rem 100% no-repeat scroll,
  linear-gradient(to left, var(--line), transparent) right / 0.8rem 100% no-repeat scroll; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.875rem; }
th, td { padding: 0.35rem 0.8rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child { text-align: left; padding-left: 0; }
thead th { color: var(--faint); font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 400; }
table.words { width: 100%; }
table.words th, table.words td { text-align: left; white-space: normal; overflow-wrap: anywhere; vertical-align: top; }
table.words th, table.words td { min-width: 5.5rem; }
.figure { width: 100%; margin: 0.25rem 0 1rem; }
details { margin: 0.75rem 0; }
summary { cursor: pointer; color: var(--link); }
pre { background: var(--wash); padding: 0.9rem 1rem; border-radius: 6px; overflow: auto; max-height: 30rem; \
font: 0.8rem/1.5 ui-monospace, "DejaVu Sans Mono", "Liberation Mono", monospace; }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
footer { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--line); color: var(--faint); font-size: 0.85rem; \
white-space: pre-line; }
@media (max-width: 40rem) {
  main { padding: 1.25rem 1rem 3rem; }
  h1 { font-size: 1.45rem; }
  .callout { padding: 0.85rem 1rem; }
  .facts > div { flex-basis: 40%; }
}
@media print {
  nav, .modebar, details:not([open]) { display: none; }
  section { break-inside: avoid; }
}
"""
