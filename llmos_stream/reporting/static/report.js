(() => {
  "use strict";
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const paint = (node, key, theme) =>
    Array.isArray(node) ? node.map((item) => paint(item, key, theme))
    : node !== null && typeof node === "object"
      ? Object.fromEntries(Object.entries(node).map(([name, item]) => [name, paint(item, name, theme)]))
    : typeof node === "string" && node.startsWith("--") && /color$/.test(key)
      ? theme.getPropertyValue(node).trim()
    : node;
  const fine = matchMedia("(pointer: fine)").matches;
  const config = {
    responsive: true, displaylogo: false, displayModeBar: fine ? "hover" : false,
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  };
  const draw = () => {
    const theme = getComputedStyle(document.documentElement);
    for (const [name, figure] of Object.entries(figures)) {
      const { data, layout } = paint(figure, "", theme);
      // On a touch screen a drag across a chart scrolls the page.
      Plotly.react(name, data, { ...layout, dragmode: fine ? "zoom" : false }, config);
    }
  };
  for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", draw);
  draw();
})();
