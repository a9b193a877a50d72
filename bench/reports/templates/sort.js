"use strict";

// A number is what a cell opens with, alone or before an interval, a count, a slash.
const NUMBER = /^[<>]?\s*([-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?)(?=$|[\s,;:%/[(])/i;

const words = new Intl.Collator("en", { numeric: true });

function value(row, column) {
  const cell = row.cells[column];
  const text = cell.textContent.trim();
  const number = NUMBER.exec(text);
  return number ? Number(number[1]) : text === "—" || cell.dataset.state ? null : text;
}

function compare(a, b) {
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return typeof a === "number" ? a - b : words.compare(a, b);
}

// Ascending, descending, as it was; what is missing stays at the end.
function sort(button) {
  const header = button.closest("th");
  const body = header.closest("table").tBodies[0];
  const next = { none: "ascending", ascending: "descending", descending: "none" };
  const order = next[header.getAttribute("aria-sort") || "none"];
  for (const other of header.parentNode.cells) other.removeAttribute("aria-sort");
  for (const open of body.querySelectorAll("[aria-expanded=true]")) open.click(); // it closes
  const rows = [...body.rows];
  rows.forEach((row, i) => (row.dataset.place ??= i));
  rows.sort((a, b) => a.dataset.place - b.dataset.place);
  if (order !== "none") {
    header.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const keyed = rows.map((row) => [value(row, header.cellIndex), row]);
    const known = keyed.filter(([key]) => key !== null);
    known.sort(([a], [b]) => sign * compare(a, b));
    const missing = keyed.filter(([key]) => key === null);
    body.append(...[...known, ...missing].map(([, row]) => row));
  } else {
    body.append(...rows);
  }
}
