// The clients: how stale, slow or absent each is.

import { Table } from "./table.js";
import { ago, count, duration, fixed, percent, size, told } from "./words.js";

const ORDER = ["late", "slow", "left", "training", "done"];
let now = () => 0;
let stalest = 1;
let largest = 1;

const table = new Table(document.getElementById("clients"), {
  caption: "Each client; a column's name sorts by it",
  what: "client",
  empty: "No client has joined yet.",
  key: (row) => row.place, // two names may look alike once their control characters are gone
  sort: [0, 1],
  dress: (row) => row.state,
  columns: [
    { name: "client", left: true, text: (row) => row.id, value: (row) => row.id },
    { name: "state", left: true, text: (row) => row.state, value: (row) => ORDER.indexOf(row.state), kind: (row) => row.state },
    { name: "last heard", text: (row) => told(row.seen_ms, (at) => ago(now() - at)), value: (row) => row.seen_ms },
    {
      name: "staleness mean / last", value: (row) => row.staleness, share: (row) => (row.staleness ?? 0) / stalest,
      text: (row) => `${told(row.staleness, fixed(1))} / ${told(row.last_staleness)}`,
    },
    { name: "training", text: (row) => told(row.train_seconds, duration), value: (row) => row.train_seconds },
    { name: "share of weight", text: (row) => percent(100 * row.share), value: (row) => row.share, share: (row) => row.share / largest },
    { name: "updates", text: (row) => count(row.folded), value: (row) => row.folded },
    { name: "refused", text: (row) => count(row.refused), value: (row) => row.refused },
    { name: "examples", text: (row) => told(row.examples, count), value: (row) => row.examples },
    { name: "sent", text: (row) => size(row.sent), value: (row) => row.sent },
  ],
});

export function clients(state, clock) {
  now = clock;
  const { rows, more } = state.clients;
  stalest = Math.max(1, ...rows.map((row) => row.staleness ?? 0));
  largest = Math.max(1e-9, ...rows.map((row) => row.share));
  table.show(rows.map((row, place) => ({ ...row, place })));
  table.scroll.querySelector("caption").textContent =
    "Each client; a column's name sorts by it" + (more > 0 ? `. ${count(more)} more counted together` : "");
}
