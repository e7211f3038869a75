"""What a page looks like, and the script that draws its figures in light or dark."""

from __future__ import annotations

CSS = """:root { color-scheme: light dark; --ink: #1c1e21; --paper: #fff; --faint: #5c6370; --line: #d9dce1; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e6ea; --paper: #16181c; --faint: #a0a6b1; --line: #363a42; }
}
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin-top: 2.5rem; overflow-wrap: anywhere; }
p { max-width: 42rem; overflow-wrap: anywhere; white-space: pre-line; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { padding: 0.3rem 0.7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child { text-align: left; }
thead th { color: var(--faint); font-weight: 600; }
tbody th { font-weight: 400; }
.figure { width: 100%; min-height: 12rem; }
@media print { .modebar { display: none; } section { break-inside: avoid; } }
"""

# Figures without colours of their own take them from the template. Plotly.react draws and redraws.
SCRIPT = """"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const template = () => {
    const ink = dark.matches ? "#e4e6ea" : "#1c1e21";
    const line = dark.matches ? "#363a42" : "#d9dce1";
    const paper = dark.matches ? "#16181c" : "#ffffff";
    const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
    return {
      layout: {
        paper_bgcolor: paper, plot_bgcolor: paper, font: { color: ink, family: "system-ui, sans-serif", size: 12 },
        xaxis: axis, yaxis: axis, margin: { l: 40, r: 10, t: 40, b: 40 },
        hoverlabel: { bgcolor: paper, bordercolor: line, font: { color: ink }, align: "left" },
        annotationdefaults: { font: { color: ink } },
        colorway: ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"],
      },
    };
  };
  const draw = () => {
    figures.forEach((figure, place) => {
      const layout = { ...figure.layout, template: template() };
      const options = { responsive: true, displaylogo: false };
      Plotly.react(`figure-${place}`, structuredClone(figure.data), structuredClone(layout), options);
    });
  };
  dark.addEventListener("change", draw);
  draw();
})();
"""
