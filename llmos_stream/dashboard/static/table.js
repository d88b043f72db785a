// A table that keeps its rows: cells change in place, columns sort, long ones show their rest when asked.

import { bar, el, fill, place, setClass, setText } from "./dom.js";
import { plural } from "./words.js";

const FIRST = 50;
const TALL = 16;

/**
 * columns: [{ name, text(row), value(row) to sort by, left, share(row) for a bar, kind(row) for a class, title(row) }]
 * The first column heads its row. `key(row)` tells rows apart; `dress(row)` is a class; `opens` makes each row's first
 * cell a button and is asked for what lies under it.
 */
export class Table {
  constructor(parent, { caption, what, columns, key, sort, dress = () => "", opens = null, empty }) {
    Object.assign(this, { what, columns, key, dress, opens, empty });
    this.sorted = sort; // [column, -1 or 1]
    this.all = false;
    this.rows = [];
    this.held = new Map();
    this.body = el("tbody");
    this.heads = columns.map((column, index) => this.#head(column, index));
    const table = el("table", {}, el("caption", {}, caption), el("thead", {}, el("tr", {}, ...this.heads)), this.body);
    this.scroll = el("div", { className: "scroll card", tabIndex: 0, role: "region", "aria-label": caption }, table);
    this.rest = el("button", { className: "act more", type: "button", onclick: () => this.#more() });
    this.none = el("p", { className: "muted" }, empty);
    parent.append(this.none, this.scroll, this.rest);
  }

  #head(column, index) {
    const button = el("button", { type: "button", onclick: () => this.#sort(index) }, column.name);
    return el("th", { scope: "col", className: column.left ? "t" : "n" }, button);
  }

  #sort(index) {
    const [column, way] = this.sorted;
    this.sorted = [index, column === index ? -way : this.columns[index].left ? 1 : -1];
    this.show(this.rows);
  }

  #more() {
    this.all = !this.all;
    this.show(this.rows);
  }

  show(rows) {
    this.rows = rows;
    const [index, way] = this.sorted;
    this.heads.forEach((head, at) => {
      if (at === index) head.setAttribute("aria-sort", way > 0 ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
    const value = this.columns[index].value;
    const ordered = [...rows].sort((a, b) => way * compare(value(a), value(b)) || compare(this.key(a), this.key(b)));
    // What a person has opened stays, however many newer ones have come.
    const shown = ordered.filter((row, at) => this.all || at < FIRST || this.held.get(this.key(row))?.inside);
    const nodes = [];
    const keys = new Set();
    for (const row of shown) {
      const held = this.#row(row);
      keys.add(this.key(row));
      nodes.push(held.node);
      if (held.inside) nodes.push(held.inside);
    }
    this.#keepInView(() => place(this.body, nodes));
    for (const key of this.held.keys()) if (!keys.has(key)) this.held.delete(key);
    this.none.hidden = rows.length > 0;
    this.scroll.hidden = rows.length === 0;
    setClass(this.scroll, nodes.length > TALL ? "scroll card tall" : "scroll card");
    this.rest.hidden = rows.length <= FIRST;
    setText(this.rest, this.all ? `Show the first ${FIRST}` : `Show all ${plural(rows.length, this.what)}`);
  }

  /** New rows above must not push away what a person reads. */
  #keepInView(change) {
    const open = [...this.held.values()].find((held) => held.inside || held.node.contains(document.activeElement));
    const before = open?.node.offsetTop;
    change();
    if (open?.node.isConnected) this.scroll.scrollTop += open.node.offsetTop - before;
  }

  #row(row) {
    const key = this.key(row);
    if (!this.held.has(key)) this.held.set(key, this.#make(key));
    const held = this.held.get(key);
    setClass(held.node, `${this.opens ? "opens " : ""}${this.dress(row)}`.trim());
    this.columns.forEach((column, index) => {
      const cell = held.cells[index];
      setText(cell.words, column.text(row));
      if (cell.bar) fill(cell.bar, column.share(row));
      if (column.kind) setClass(cell.node, `${column.left ? "t " : ""}${column.kind(row)}`.trim());
      if (column.title && cell.node.title !== column.title(row)) cell.node.title = column.title(row);
    });
    return held;
  }

  #make(key) {
    const held = { inside: null };
    held.cells = this.columns.map((column, index) => {
      const first = index === 0;
      const words = first && this.opens ? el("button", { type: "button", "aria-expanded": "false" }) : el("span");
      const cell = { words, bar: column.share ? bar() : null };
      cell.node = el(first ? "th" : "td", { className: column.left ? "t" : "", scope: first ? "row" : null });
      cell.node.append(...(cell.bar ? [cell.bar, words] : [words]));
      return cell;
    });
    held.node = el("tr", {}, ...held.cells.map((cell) => cell.node));
    if (this.opens) held.node.onclick = () => this.#toggle(key, held);
    return held;
  }

  #toggle(key, held) {
    const button = held.cells[0].words;
    if (held.inside) {
      held.inside.remove();
      held.inside = null;
    } else {
      const cell = el("td", { colspan: String(this.columns.length) });
      held.inside = el("tr", { className: "inside" }, cell);
      held.node.after(held.inside);
      this.opens(key, cell);
    }
    button.setAttribute("aria-expanded", String(held.inside !== null));
  }
}

/** Numbers before what nobody told, names as people count: client-2 before client-10. */
function compare(a, b) {
  if (a === null || b === null) return (a === null ? -1 : 0) - (b === null ? -1 : 0);
  return typeof a === "number" ? a - b : names.compare(a, b);
}
const names = new Intl.Collator("en", { numeric: true });
