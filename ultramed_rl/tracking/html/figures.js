// Figures without colours of their own take them from the template. Plotly.react draws and redraws. Once all are
// drawn the page says so (data-drawn of its root element), for whoever looks on from outside.
"use strict";
(() => {
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const touch = window.matchMedia("(pointer: coarse)");
  const template = () => {
    const [ink, faint, line, paper] = dark.matches
      ? ["#e3e6eb", "#a1a8b4", "#32363e", "#15171b"] : ["#1b1e24", "#59616e", "#dfe2e7", "#ffffff"];
    const axis = {
      gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true, ticks: "", tickfont: { color: faint },
      title: { font: { color: faint, size: 12 }, standoff: 8 },
    };
    return {
      layout: {
        paper_bgcolor: paper, plot_bgcolor: paper, font: { color: ink, family: "system-ui, sans-serif", size: 12 },
        xaxis: axis, yaxis: axis, margin: { l: 40, r: 10, t: 30, b: 40 },
        hoverlabel: { bgcolor: paper, bordercolor: line, font: { color: ink }, align: "left" },
        annotationdefaults: { font: { color: ink } }, shapedefaults: { line: { color: faint } },
        legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", font: { color: faint } },
        colorway: dark.matches
          ? ["#5aaee6", "#ee8a4f", "#3fbf97", "#d993bd", "#e0b341", "#9fb3c8", "#b39ddb", "#8fce7a"]
          : ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#c28a00", "#6f8296", "#7b5fb5", "#5a9e3a"],
      },
    };
  };
  const draw = async () => {
    const options = { responsive: true, displaylogo: false, displayModeBar: false };
    for (const [place, figure] of figures.entries()) {
      const layout = { ...structuredClone(figure.layout), template: template() };
      if (touch.matches) layout.dragmode = false;
      await Plotly.react(`figure-${place}`, structuredClone(figure.data), layout, options);
    }
    root.dataset.drawn = String(figures.length);
  };
  const unpack = async () => {
    const bytes = Uint8Array.from(atob(document.getElementById("library").textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  };
  const fail = (error) => {
    for (const place of figures.keys()) {
      const text = `This figure needs a browser of 2023 or newer (${error.message}).`;
      document.getElementById(`figure-${place}`).textContent = text;
    }
  };
  unpack().then(draw).then(() => dark.addEventListener("change", draw), fail);
})();
