// What an operator may do, with the token that the monitor was started with.

import { el, setText } from "./dom.js";

const KEPT = "llmos-token"; // for this tab, until it is closed
const place = document.getElementById("operator");
let made = null;

function make() {
  const token = el("input", { type: "password", id: "token", autocomplete: "off", value: sessionStorage.getItem(KEPT) ?? "" });
  const version = el("input", { type: "number", id: "promote-version", min: "0", step: "1", inputMode: "numeric" });
  const said = el("p", { id: "said", role: "status", "aria-live": "polite" });
  const buttons = {
    pause: el("button", { type: "button", className: "act", id: "pause" }, "Pause"),
    resume: el("button", { type: "button", className: "act", id: "resume" }, "Resume"),
    finish: el("button", { type: "button", className: "act", id: "finish" }, "Finish"),
    promote: el("button", { type: "submit", className: "act", id: "promote" }, "Promote"),
  };
  const ask = async (path, body, done) => {
    setText(said, "Asking");
    try {
      const answer = await fetch(`/api/${path}`, {
        method: "POST",
        headers: { "Content-Type": "application/json", Authorization: `Bearer ${token.value}` },
        body: JSON.stringify(body),
      });
      const words = await answer.json();
      if (answer.ok) sessionStorage.setItem(KEPT, token.value);
      setText(said, answer.ok ? done : `Refused: ${words.detail}`);
    } catch {
      setText(said, "The monitor did not answer; it is not known whether it was done.");
    }
  };
  buttons.pause.onclick = () => ask("pause", {}, "Paused: clients wait until you resume.");
  buttons.resume.onclick = () => ask("resume", {}, "Resumed.");
  buttons.finish.onclick = () => {
    if (confirm("End this run with its newest version? Clients leave.")) ask("finish", {}, "The run has ended.");
  };
  const form = el(
    "form", {},
    el("label", { for: "token" }, "Token", token), buttons.pause, buttons.resume, buttons.finish,
    el("label", { for: "promote-version" }, "Version to serve", version), buttons.promote,
  );
  form.onsubmit = (event) => {
    event.preventDefault();
    if (version.value === "") {
      setText(said, "Say which version is to be promoted.");
      version.focus();
    } else {
      ask("promote", { version: Number(version.value) }, `Version ${Number(version.value)} is promoted.`);
    }
  };
  place.replaceChildren(form, said);
  return buttons;
}

export function operator(state) {
  if (!state.may_operate) {
    made = null;
    const words = "Look only. To pause, resume, finish and promote from here, start the monitor with LLMOS_DASHBOARD__TOKEN.";
    if (place.textContent !== words) place.replaceChildren(el("p", { className: "muted" }, words));
    return;
  }
  made ??= make();
  const over = state.headline.status === "finished";
  made.pause.disabled = over || state.headline.paused;
  made.finish.disabled = over;
  made.resume.disabled = over || !state.headline.paused;
}
