// Charts, drawn by Plotly once everything else stands. Each has its finding in words, so that none is missed without.

import { el, setText } from "./dom.js";

const LATEST_MS = 1000; // between two drawings of the same chart
const parent = document.getElementById("charts");
const held = new Map();
const fine = matchMedia("(pointer: fine)").matches;
const config = {
  responsive: true,
  displaylogo: false,
  displayModeBar: fine ? "hover" : false,
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
};
let Plotly = null;
let said = "The chart is being loaded";

/** Colours are names of CSS variables; the page's theme says which they are. */
function paint(node, key, theme) {
  if (Array.isArray(node)) return typeof node[0] === "object" ? node.map((item) => paint(item, key, theme)) : node;
  if (node !== null && typeof node === "object") {
    return Object.fromEntries(Object.entries(node).map(([name, item]) => [name, paint(item, name, theme)]));
  }
  return typeof node === "string" && node.startsWith("--") && /color$/.test(key) ? theme.getPropertyValue(node).trim() : node;
}

function make(chart) {
  const one = { title: el("h3"), words: el("p", { id: `${chart.name}-words` }), keys: el("ul", { className: "keys", "aria-label": "Legend" }) };
  one.plot = el("div", { className: "plot", role: "img", "aria-labelledby": `${chart.name}-words` }, el("p", {}, said));
  one.plot.style.minHeight = `${chart.height}px`;
  one.node = el("figure", {}, el("figcaption", {}, one.title, one.words, one.keys), one.plot);
  one.drawn = null;
  one.drawnAt = 0;
  one.legend = "";
  parent.append(one.node);
  return one;
}

function legend(one, keys) {
  const now = JSON.stringify(keys);
  if (now === one.legend) return;
  one.legend = now;
  one.keys.replaceChildren(
    ...keys.map(([colour, mark, label]) => {
      const drawn = /^[a-z]+$/.test(mark);
      const sign = el("span", { className: drawn ? `mark ${mark}` : "mark", "aria-hidden": "true" }, drawn ? "" : mark);
      sign.style.setProperty("--of", `var(${colour})`);
      return el("li", {}, sign, label);
    }),
  );
}

function draw(one) {
  const { figure } = one.chart;
  if (!Plotly || !figure || one.drawn === figure || document.hidden) return;
  if (one.drawn === null) one.plot.replaceChildren();
  one.drawn = figure;
  one.drawnAt = performance.now();
  const { data, layout } = paint(figure, "", getComputedStyle(document.documentElement));
  // On a touch screen a drag across a chart scrolls the page. What a person zoomed into stays so.
  Plotly.react(one.plot, data, { ...layout, dragmode: fine ? "zoom" : false, uirevision: "kept" }, config);
}

/** Words, legend and drawing change together: what a chart says is what it shows. */
function show(one) {
  const early = LATEST_MS - (performance.now() - one.drawnAt);
  if (one.drawn && early > 0) {
    one.due ??= setTimeout(() => ((one.due = null), show(one)), early);
    return;
  }
  setText(one.title, one.chart.title);
  setText(one.words, one.chart.summary);
  legend(one, one.chart.keys);
  one.plot.hidden = !one.chart.figure;
  draw(one);
}

function redraw() {
  for (const one of held.values()) {
    one.drawn = one.drawn && undefined;
    one.drawnAt = 0;
    show(one);
  }
}

export function charts(state) {
  for (const chart of state.charts) {
    if (!held.has(chart.name)) held.set(chart.name, make(chart));
    const one = held.get(chart.name);
    one.chart = chart;
    show(one);
  }
}

/** Fetch Plotly, which is large, after the first paint. */
export function loadCharts() {
  const script = el("script", { src: document.body.dataset.plotly, async: true });
  script.onload = () => {
    Plotly = window.Plotly;
    redraw();
  };
  script.onerror = () => {
    said = "The charts could not be loaded; reload the page. Their titles say what they show.";
    for (const one of held.values()) setText(one.plot, said);
  };
  document.head.append(script);
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
document.addEventListener("visibilitychange", () => held.forEach(show));
