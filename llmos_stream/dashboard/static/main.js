// The live page: one state from the server, shown by each part for itself.

import { charts, loadCharts } from "./charts.js";
import { clients } from "./clients.js";
import { connect } from "./connection.js";
import { headline } from "./headline.js";
import { operator } from "./operator.js";
import { quarantine } from "./quarantine.js";
import { sites } from "./sites.js";
import { versions } from "./versions.js";

let state = null;
let before = {};
let due = false;
let first = true;

function show() {
  due = false;
  const parts = state;
  headline(parts);
  operator(parts);
  clients(parts, () => connection.clock());
  if (parts.versions !== before.versions || parts.headline.promoted !== before.headline?.promoted) versions(parts);
  if (parts.sites !== before.sites) sites(parts);
  if (parts.quarantine !== before.quarantine) quarantine(parts);
  if (parts.charts !== before.charts) charts(parts);
  before = parts;
  if (first) {
    first = false;
    // Charts come after what can be read is on the screen.
    requestAnimationFrame(() => setTimeout(loadCharts));
  }
}

const connection = connect((made) => {
  state = made;
  if (!due) {
    due = true;
    // A page that nobody sees is drawn no more often than its timers come round.
    if (document.hidden) setTimeout(show, 1000);
    else requestAnimationFrame(show);
  }
});
// How long ago somebody was heard changes by itself.
setInterval(() => state && !document.hidden && clients(state, () => connection.clock()), 1000);
