"""The fixed parts of the report: the style sheet, the drawing script and the frame of the page.

The colours of the clients (`--c0` to `--c7`) were chosen so that any two stay apart in normal
and in colour-blind sight, and so that each has a contrast of 3:1 against its card.
"""

LIGHT = {
    "page": "#f4f5f7",
    "card": "#ffffff",
    "text": "#1a1d21",
    "muted": "#5a626c",
    "line": "#c9ced6",
    "grid": "#e7e9ed",
    "link": "#1f5fa8",
    "bad": "#b3261e",
    "rest": "#868d97",
    "c0": "#205f9f",
    "c1": "#e87419",
    "c2": "#2e8d6f",
    "c3": "#bb7bac",
    "c4": "#3891ec",
    "c5": "#963215",
    "c6": "#321f86",
    "c7": "#a3640f",
}
DARK = {
    "page": "#0f1215",
    "card": "#171a1f",
    "text": "#e8eaed",
    "muted": "#a4acb6",
    "line": "#3c434c",
    "grid": "#272c33",
    "link": "#86b7f0",
    "bad": "#ff8a80",
    "rest": "#7d8794",
    "c0": "#508cbf",
    "c1": "#ee9e10",
    "c2": "#0db98e",
    "c3": "#cc9ddb",
    "c4": "#9cdafe",
    "c5": "#e25d1d",
    "c6": "#9c72fe",
    "c7": "#f6e12b",
}


def _variables(theme: dict[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in theme.items())


STYLE = (
    f"""
:root {{ color-scheme: light; {_variables(LIGHT)} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ color-scheme: dark; {_variables(DARK)} }} }}
"""
    + """
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
header, main, footer { max-width: 1200px; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2rem; }
footer { padding-top: 2rem; padding-bottom: 2rem; color: var(--muted); font-size: .85rem; }
h1 { margin: 0; font-size: 1.75rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 2.25rem 0 .75rem; font-size: 1.25rem; }
h3 { margin: 0; font-size: 1rem; line-height: 1.35; overflow-wrap: anywhere; }
p { margin: .25rem 0; }
.muted { color: var(--muted); overflow-wrap: anywhere; }
.notice {
  margin: .75rem 0 0; padding: .5rem .9rem; background: var(--card); border-left: 4px solid var(--c1);
  border-radius: .25rem; overflow-wrap: anywhere;
}
.skip { position: absolute; left: -999rem; }
.skip:focus { left: 1rem; top: .5rem; padding: .25rem .75rem; background: var(--card); color: var(--link); }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
.tiles {
  display: grid; gap: .75rem; margin: 0;
  grid-template-columns: repeat(4, minmax(0, 1fr));
}
.tiles div, figure, .card { background: var(--card); border: 1px solid var(--grid); border-radius: .5rem; }
.tiles div { padding: .6rem .9rem .7rem; }
dt { color: var(--muted); font-size: .85rem; }
dd { margin: 0; font-size: 1.5rem; font-weight: 600; line-height: 1.3; overflow-wrap: anywhere; }
dd small { display: block; color: var(--muted); font-size: .8rem; font-weight: 400; }
.charts { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .75rem; }
figure { display: flex; flex-direction: column; margin: 0; padding: .9rem 1rem .5rem; min-width: 0; }
figure.wide { grid-column: 1 / -1; }
figcaption p { color: var(--muted); font-size: .875rem; overflow-wrap: anywhere; }
.keys {
  display: flex; flex-wrap: wrap; gap: .1rem .9rem;
  margin: .3rem 0 0; padding: 0; list-style: none; font-size: .8rem;
}
.plot { flex: 1; }
.keys li { overflow-wrap: anywhere; }
.mark { display: inline-block; margin-right: .35rem; color: var(--of); font-weight: 700; }
.block { width: .75rem; height: .75rem; border-radius: 2px; background: var(--of); vertical-align: -1px; }
.line, .dash, .dot { width: 1.4rem; border-top: 2px solid var(--of); vertical-align: 4px; }
.dash { border-top-style: dashed; }
.dot { border-top-style: dotted; }
.scroll { overflow-x: auto; margin-top: .75rem; }
.small { max-width: 26rem; }
.tall { max-height: 40rem; overflow-y: auto; }
.tall thead th { position: sticky; top: 0; background: var(--card); }
details .scroll { margin: .25rem 0 0; border: 0; }
table { width: 100%; border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
caption { padding: .6rem .9rem .2rem; text-align: left; color: var(--muted); }
th, td { padding: .35rem .9rem; text-align: right; white-space: nowrap; border-top: 1px solid var(--grid); }
thead th { border-top: 0; color: var(--muted); font-weight: 400; vertical-align: bottom; }
th.t, td.t { text-align: left; }
td.w { white-space: normal; overflow-wrap: anywhere; min-width: 12rem; text-align: left; }
tbody th { font-weight: 600; max-width: 16rem; white-space: normal; overflow-wrap: anywhere; min-width: 8rem; }
.bar {
  display: inline-block; width: 4rem; height: .6rem; margin-right: .5rem;
  background: var(--grid); border-radius: 2px;
}
.bar span { display: block; height: 100%; border-radius: 2px; background: var(--of); }
.late, .bad { color: var(--bad); font-weight: 600; }
.slow { font-weight: 600; }
details { margin-top: .75rem; padding: .5rem 0; }
summary { padding: 0 .9rem; cursor: pointer; }
@media (max-width: 860px) {
  .charts { grid-template-columns: minmax(0, 1fr); }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); }
}
@media (max-width: 480px) {
  header, main, footer { padding-left: .75rem; padding-right: .75rem; }
  figure { padding: .75rem .5rem .25rem; }
  figcaption { padding: 0 .25rem; }
  dd { font-size: 1.25rem; }
}
@media print {
  body { background: none; }
  .tall { max-height: none; }
   figure, .tiles div, tr { break-inside: avoid; }
}
"""
)

SCRIPT = """
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
"""


def page(*, title: str, policy: str, body: str, figures: str, scripts: list[str]) -> str:
    """Return the whole document. All arguments are HTML already; `figures` is JSON without `<`."""
    inline = "".join(f"<script>{script}</script>\n" for script in scripts)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
{body}
<script type="application/json" id="figures">{figures}</script>
{inline}</body>
</html>
"""
