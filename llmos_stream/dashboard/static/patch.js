// Applies what the server says has changed. The forms are those of llmos_stream/dashboard/changes.py.

export function apply(old, [kind, ...rest]) {
  if (kind === "v") return rest[0];
  if (kind === "d") {
    const made = { ...old };
    for (const [key, change] of rest[0]) made[key] = apply(old[key], change);
    return made;
  }
  if (kind === "s") return old.slice(0, rest[0]).concat(rest[1]);
  if (kind === "l") {
    const [drop, changes, items] = rest;
    const made = old.slice(drop);
    for (const [index, change] of changes) made[index] = apply(made[index], change);
    return made.concat(items);
  }
  throw new Error("the server speaks a newer language than this page: reload it");
}
