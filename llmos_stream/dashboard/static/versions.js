// The newest versions, and what each was made of; older ones by their number, looked up in the log.

import { bar, el, fill } from "./dom.js";
import { Table } from "./table.js";
import { count, fixed, number, percent, plural, size, time, told } from "./words.js";

let promoted = null;

const place = document.getElementById("versions");
const table = new Table(place, {
  caption: "The newest versions",
  what: "version",
  empty: "There is no version yet.",
  key: (row) => row.number,
  sort: [0, -1],
  dress: (row) => (row.number === promoted ? "promoted" : ""),
  opens: open,
  columns: [
    { name: "version", left: true, text: (row) => `${row.number}${row.number === promoted ? " promoted" : ""}`, value: (row) => row.number },
    { name: "time", left: true, text: (row) => time(row.time_ms), value: (row) => row.time_ms },
    { name: "accuracy", text: (row) => told(row.accuracy, fixed(3)), value: (row) => row.accuracy },
    { name: "loss", text: (row) => told(row.loss, number) + perplexity(row), value: (row) => row.loss },
    {
      name: "made of", value: (row) => row.contributions,
      text: (row) => (row.contributions ? `${plural(row.contributions, "update")} of ${plural(row.clients, "client")}` : made(row)),
    },
    { name: "staleness", text: (row) => told(row.staleness, fixed(1)), value: (row) => row.staleness },
    { name: "size", text: (row) => `${size(row.bytes)} ${row.kind}`, value: (row) => row.bytes },
    { name: "weights", left: true, text: (row) => row.digest.slice(0, 12), value: (row) => row.digest, kind: () => "digest", title: (row) => row.digest },
  ],
});

function perplexity(row) {
  return row.perplexity === null ? "" : ` (perplexity ${number(row.perplexity)})`;
}

export function versions(state) {
  promoted = state.headline.promoted;
  table.show(state.versions);
  lookUp.hidden = state.versions.length === 0;
}

const wanted = el("input", { type: "number", id: "version-wanted", min: "0", step: "1", inputMode: "numeric", required: true });
const found = el("div", { id: "version-found", className: "inside", "aria-live": "polite" });
const form = el(
  "form", { className: "ask" },
  el("label", { for: "version-wanted" }, "An older version, from the log", wanted),
  el("button", { type: "submit", className: "act" }, "Open"),
);
form.onsubmit = (event) => {
  event.preventDefault();
  open(wanted.value, found);
};
const lookUp = el("div", { id: "look-up", className: "card", hidden: true }, form, found);
place.append(lookUp);

let asked = 0;

async function open(number, cell) {
  const mine = (cell.asked = ++asked); // a slow answer must not take a later one's place
  const show = (...nodes) => cell.asked === mine && cell.replaceChildren(...nodes);
  show(el("p", { className: "muted" }, "Reading its manifest"));
  try {
    const answer = await fetch(`/api/versions/${number}`);
    const said = await answer.json();
    show(...(answer.ok ? [facts(said), contributions(said)] : [el("p", { className: "bad" }, said.detail)]));
  } catch {
    show(el("p", { className: "bad" }, "The monitor did not answer. Open it again."));
  }
}

function facts(version) {
  const rows = [
    ["parent", told(version.parent)],
    ["written as", `${version.kind}, ${version.codec}, ${size(version.bytes)} at partition ${version.partition}, offset ${version.offset}`],
    ["weights SHA-256", version.weights_digest],
    ["payload SHA-256", version.payload_digest],
    ["layout", version.layout_digest],
    ["built with", version.build.map(([name, value]) => `${name} ${value}`).join(", ") || "not told"],
  ];
  return el("dl", { className: "facts pinned" }, ...rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

/** What a version without contributions is made of. */
function made(version) {
  return version.rolled_back_to === null ? "initial weights" : `back to version ${version.rolled_back_to}`;
}

function contributions(opened) {
  const { number: version, contributions: rows } = opened;
  if (!rows.length) return el("p", { className: "muted" }, `No contributions: ${made(opened)}.`);
  const names = ["client", "weight", "share", "staleness", "examples", "clip", "sequence", "partition / offset", "payload SHA-256"];
  const heads = names.map((name, index) => el("th", { scope: "col", className: index === 0 || index === 8 ? "t" : "n" }, name));
  const body = [...rows].sort((a, b) => b.share - a.share).map((row) => {
    const share = bar();
    fill(share, row.share);
    const cells = [
      number(row.weight), null, String(row.staleness), count(row.examples), row.clip.toPrecision(3), String(row.sequence),
      `${row.partition} / ${row.offset}`,
    ].map((text) => (text === null ? el("td", {}, share, percent(100 * row.share)) : el("td", {}, text)));
    return el(
      "tr", {}, el("th", { scope: "row", className: "t" }, row.client), ...cells,
      el("td", { className: "t digest", title: row.digest }, row.digest.slice(0, 12)),
    );
  });
  const caption = `What version ${version} was made of: ${plural(rows.length, "contribution")}`;
  return el("table", {}, el("caption", {}, caption), el("thead", {}, el("tr", {}, ...heads)), el("tbody", {}, ...body));
}
