// How numbers and times are written for people.

const UNITS = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
export const NOTHING = "–";

/** The value as `write` writes it, or a dash where nothing told. */
export const told = (value, write = String) => (value === null || value === undefined ? NOTHING : write(value));

export function size(bytes) {
  let value = bytes;
  let unit = 0;
  while (value >= 999.5 && unit < UNITS.length - 1) [value, unit] = [value / 1000, unit + 1];
  return unit === 0 ? `${bytes} B` : `${value.toFixed(value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2)} ${UNITS[unit]}`;
}

export const count = (value) => String(value).replace(/\B(?=(\d{3})+(?!\d))/g, "\u202f");

export const plural = (value, one) => `${count(value)} ${one}${value === 1 ? "" : "s"}`;

export function number(value) {
  if (value === 0) return "0";
  const most = Math.abs(value);
  if (most >= 999.5 && most < 1e9) return count(Math.round(value));
  return most >= 0.001 && most < 999.5 ? String(Number(value.toPrecision(3))) : value.toExponential(2);
}

export const fixed = (digits) => (value) => value.toFixed(digits);

export const percent = (value) => `${value.toFixed(Math.abs(value) < 9.95 ? 1 : 0)} %`;

export function duration(seconds) {
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  for (const [unit, name, smaller, small] of [[86400, "d", 3600, "h"], [3600, "h", 60, "min"], [60, "min", 1, "s"]]) {
    if (whole >= unit) {
      const rest = Math.floor((whole % unit) / smaller);
      return `${Math.floor(whole / unit)} ${name}${rest ? ` ${rest} ${small}` : ""}`;
    }
  }
  return `${whole} s`;
}

/** How long ago, in whole seconds: it is written anew every second. */
export function ago(milliseconds) {
  const seconds = Math.max(0, Math.floor(milliseconds / 1000));
  return seconds < 1 ? "now" : `${duration(seconds < 10 ? seconds : seconds).replace(".0 s", " s")} ago`;
}

/** A time of day, with the date where it is not today's. */
export function time(milliseconds) {
  const at = new Date(milliseconds);
  const clock = at.toLocaleTimeString("en-GB");
  return at.toDateString() === new Date().toDateString() ? clock : `${at.toLocaleDateString("en-CA")} ${clock}`;
}
