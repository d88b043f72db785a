// What sites measured on their own validation data: together, and each by itself.

import { el } from "./dom.js";
import { Table } from "./table.js";
import { count, fixed, number, told } from "./words.js";

const place = document.getElementById("sites");
const togetherPlace = el("div");
const eachPlace = el("div");
const modelsPlace = el("div");
place.append(togetherPlace, eachPlace, modelsPlace);

const together = new Table(togetherPlace, {
  caption: "Together, each site at its newest version",
  what: "metric",
  empty: "",
  key: (row) => row[0],
  sort: [0, 1],
  columns: [
    { name: "metric", left: true, text: (row) => row[0], value: (row) => row[0] },
    { name: "mean over examples", text: (row) => number(row[1]), value: (row) => row[1] },
    { name: "spread between sites", text: (row) => number(row[2]), value: (row) => row[2] },
    { name: "worst site", left: true, text: (row) => row[3], value: (row) => row[3], kind: () => "name" },
    { name: "its value", text: (row) => number(row[4]), value: (row) => row[4] },
    { name: "sites", text: (row) => count(row[5]), value: (row) => row[5] },
    { name: "not finite", text: (row) => count(row[6]), value: (row) => row[6] },
  ],
});

const each = new Table(eachPlace, {
  caption: "Each site; a column's name sorts by it",
  what: "site",
  empty: "No site has told what it measured. Clients do, where their task has validation data.",
  key: (row) => row.place,
  sort: [0, 1],
  dress: (row) => (row.counts ? "" : "left"),
  columns: [
    { name: "site", left: true, text: (row) => row.id, value: (row) => row.id },
    { name: "newest version", text: (row) => count(row.version), value: (row) => row.version },
    { name: "accuracy", text: (row) => told(row.accuracy, fixed(3)), value: (row) => row.accuracy },
    { name: "loss", text: (row) => told(row.loss, number), value: (row) => row.loss },
    { name: "other metrics", left: true, text: (row) => row.others, value: (row) => row.others, kind: () => "w" },
    { name: "examples", text: (row) => count(row.examples), value: (row) => row.examples },
    { name: "versions measured", text: (row) => count(row.count), value: (row) => row.count },
    {
      name: "counts", left: true, value: (row) => (row.counts ? 1 : 0),
      text: (row) => (row.counts ? "yes" : "no: no update of it was folded"),
    },
  ],
});

/** The federation's model and those that sites trained alone, on each site's data: its columns are the sites. */
function models(found) {
  if (found === null) return [];
  const head = ["model", "since version", ...found.sites].map((name, at) => el("th", { scope: "col", className: at ? "n" : "t" }, name));
  const rows = found.rows.map(([name, since, values]) =>
    el(
      "tr", {}, el("th", { scope: "row", className: "t" }, name), el("td", {}, told(since)),
      ...values.map((value) => el("td", {}, told(value, number))),
    ),
  );
  const caption = `${found.metric} of the federation's model and of those trained alone, on each site's validation data`;
  const table = el("table", {}, el("caption", {}, caption), el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...rows));
  return [el("div", { className: "scroll card", tabIndex: 0, role: "region", "aria-label": caption }, table)];
}

export function sites(state) {
  modelsPlace.replaceChildren(...models(state.sites.models));
  together.show(state.sites.together);
  each.show(state.sites.rows.map((row, place) => ({ ...row, place })));
}
