// The stream of what happens: a snapshot, then changes. It comes back by itself and says when it is lost.

import { apply } from "./patch.js";
import { setClass, setText } from "./dom.js";
import { time } from "./words.js";

const SILENCE_MS = 12000; // the server says something every five seconds
const PAUSE_MS = 2000;

/** Calls `show(state)` with each new state. `clock()` of what it returns is the server's time. */
export function connect(show) {
  const words = document.getElementById("connection");
  let source = null;
  let state = null;
  let offset = 0;
  let heard = Date.now();
  let lostAt = null;
  let again = 0;

  const say = (text, name) => {
    setText(words, text);
    setClass(words, name);
  };
  const alive = (now) => {
    offset = now - Date.now();
    heard = Date.now();
    lostAt = null;
    say("Live: changes come by themselves", "muted");
  };
  const lost = () => {
    lostAt ??= Date.now();
    say(`The monitor has not answered since ${time(lostAt)}. What is shown is of then; trying again.`, "lost");
    clearTimeout(again);
    again = setTimeout(open, PAUSE_MS);
  };
  const open = () => {
    source?.close();
    heard = Date.now();
    source = new EventSource("/api/events");
    const on = (name, take) =>
      source.addEventListener(name, (event) => {
        const { now_ms: now, data } = JSON.parse(event.data);
        alive(now);
        take(data);
      });
    on("snapshot", (data) => show((state = data)));
    on("changes", (data) => show((state = data.reduce(apply, state))));
    on("beat", () => {});
    source.onerror = () => {
      source.close();
      lost();
    };
  };
  setInterval(() => {
    if (lostAt === null && Date.now() - heard > SILENCE_MS) {
      source.close();
      lost();
    }
  }, 1000);
  open();
  return { clock: () => Date.now() + offset };
}
