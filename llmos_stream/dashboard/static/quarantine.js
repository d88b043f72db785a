// What was refused: counts by reason, and the newest entries with where they lie in the log, as far as they ever did.

import { el } from "./dom.js";
import { Table } from "./table.js";
import { count, time, told } from "./words.js";

const place = document.getElementById("quarantine");
const none = el("p", { className: "muted" }, "No update was refused.");
const reasonsPlace = el("div");
const newestPlace = el("div");
const side = el("div", { className: "side" }, reasonsPlace, newestPlace);
place.append(none, side);

const reasons = new Table(reasonsPlace, {
  caption: "By reason",
  what: "reason",
  empty: "",
  key: (row) => row[0],
  sort: [1, -1],
  columns: [
    { name: "reason", left: true, text: (row) => row[0], value: (row) => row[0] },
    { name: "updates", text: (row) => count(row[1]), value: (row) => row[1] },
  ],
});

const newest = new Table(newestPlace, {
  caption: "The newest entries",
  what: "entry",
  empty: "",
  key: (row) => row.key,
  sort: [0, -1],
  columns: [
    { name: "time", left: true, text: (row) => time(row.time_ms), value: (row) => row.key },
    { name: "partition / offset", text: (row) => (row.offset === null ? "not sent" : `${told(row.partition)} / ${row.offset}`), value: (row) => row.offset },
    { name: "client", left: true, text: (row) => told(row.client), value: (row) => row.client, kind: () => "name" },
    { name: "sequence", text: (row) => told(row.sequence), value: (row) => row.sequence },
    { name: "reason", left: true, text: (row) => row.reason, value: (row) => row.reason },
    { name: "detail", left: true, text: (row) => row.detail, value: (row) => row.detail, kind: () => "w" },
  ],
});

export function quarantine(state) {
  const found = state.quarantine;
  none.hidden = found.total > 0;
  side.hidden = found.total === 0;
  reasons.show(found.reasons);
  newestPlace.querySelector("caption").textContent = `The newest entries; partition / offset are of ${found.topic}, and what a client refused itself was not sent`;
  const first = found.total - found.newest.length;
  newest.show(found.newest.map((row, index) => ({ ...row, key: first + index })));
}
