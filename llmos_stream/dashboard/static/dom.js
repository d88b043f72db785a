// Elements and text. Whatever comes from the wire becomes text, never HTML.

/** An element with properties, attributes (names with a dash, role, for, scope) and children, which are nodes or text. */
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined) continue;
    if (name.includes("-") || ["role", "for", "scope", "colspan"].includes(name)) node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children);
  return node;
}

/** Set a node's text where it differs, so that screen readers and selections are left in peace. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function setClass(node, name) {
  if (node.className !== name) node.className = name;
}

/** Make the children of `parent` these nodes, moving none that stands where it should. */
export function place(parent, nodes) {
  const wanted = new Set(nodes);
  for (const child of [...parent.children]) if (!wanted.has(child)) child.remove();
  const focused = document.activeElement;
  let next = parent.firstElementChild;
  for (const node of nodes) {
    if (node === next) next = next.nextElementSibling;
    else parent.insertBefore(node, next);
  }
  if (focused !== document.activeElement && parent.contains(focused)) focused.focus({ preventScroll: true });
}

/** A small bar, `fraction` of its width full. */
export function bar() {
  return el("span", { className: "bar", "aria-hidden": "true" }, el("span"));
}

export function fill(node, fraction) {
  node.firstChild.style.width = `${Math.round(100 * Math.min(1, Math.max(0, fraction)))}%`;
}
