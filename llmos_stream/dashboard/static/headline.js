// The state in a word, and the run in eight numbers.

import { el, place, setClass, setText } from "./dom.js";
import { count, duration, fixed, number, percent, plural, size, time, told } from "./words.js";

const status = document.getElementById("status");
const title = document.getElementById("federation");
const notices = document.getElementById("notices");
const tiles = new Map();

function words(now) {
  switch (now.status) {
    case "unreached": return "Waiting for the broker, which has not answered yet";
    case "training": return "Training";
    case "paused": return "Paused";
    case "finished": return now.finished ? `Finished: ${now.finished}` : "Finished";
    case "silent": return `No news since ${told(now.news_ms, time)}`;
    default: return now.version === null ? "Waiting for the first version" : "Waiting for clients";
  }
}

function clients(now) {
  const words = Object.entries({ slow: "slow", late: "late", left: "gone" });
  const states = words.filter(([name]) => now[name]).map(([name, word]) => `${count(now[name])} ${word}`);
  return states.length ? states.join(", ") : "none is slow, late or gone";
}

function lossNote(now) {
  return now.perplexity === null ? "of the last version evaluated" : `perplexity ${number(now.perplexity)}`;
}

function tokens(now) {
  if (now.tokens === null) return [];
  const [trained, perSecond, bytes] = now.tokens;
  return [["tokens trained", count(trained), `${told(perSecond, number)} a second of training, ${told(bytes, number)} bytes sent for each`]];
}

function figures(now) {
  const present = now.training + now.slow + now.done;
  const saved = now.saved_percent;
  const behind = now.lag === null ? "" : now.lag ? "records to read" : "nothing waits";
  return [
    ["accuracy", told(now.accuracy, fixed(3)), now.best ? `best ${now.best[0].toFixed(3)} at version ${now.best[1]}` : "not evaluated"],
    ["loss", told(now.loss, number), now.loss === null ? "" : lossNote(now)],
    ["newest version", told(now.version, count), now.promoted === null ? "none is promoted" : `version ${now.promoted} is promoted`],
    ["updates a second", number(now.per_second), `${count(now.folded)} folded, staleness ${told(now.staleness, fixed(1))}`],
    ["lag", told(now.lag, count), now.pace_seconds ? `${behind}; pace ${duration(now.pace_seconds)}` : behind],
    ["clients present", count(present), now.clients ? `of ${count(now.clients)}: ${clients(now)}` : "none has joined"],
    [
      saved === null || saved >= 0 ? "upload saved" : "upload more", told(saved === null ? null : Math.abs(saved), percent),
      now.raw ? `${size(now.sent)} sent, float32 takes ${size(now.raw)}` : "nothing uploaded",
    ],
    ["refused", count(now.refused), `and ${plural(now.duplicates, "duplicate")} dropped`],
    ...tokens(now),
  ];
}

export function headline(state) {
  const now = state.headline;
  setText(title, `Federation ${state.federation}`);
  const said = words(now);
  setText(status, said);
  setClass(status, `status ${now.status}`);
  const wrong = state.notices.map((text, index) => notices.children[index] ?? el("p", { className: "notice" }));
  place(notices, wrong);
  for (const [index, node] of wrong.entries()) setText(node, state.notices[index]);
  document.title = `${said} · ${state.federation}`;
  for (const [index, [name, value, note]] of figures(now).entries()) {
    if (!tiles.has(index)) {
      const parts = { name: el("dt"), value: el("span"), note: el("small") };
      document.getElementById("tiles").append(el("div", {}, parts.name, el("dd", {}, parts.value, parts.note)));
      tiles.set(index, parts);
    }
    const parts = tiles.get(index);
    setText(parts.name, name);
    setText(parts.value, value);
    setText(parts.note, note);
  }
}
