
// The answer: what is shown, what is compared, which cell is open. The address holds all three.

const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const record = document.getElementById("record");
const chosen = document.getElementById("chosen");
const compared = document.getElementById("compare");
let opened = "";

function values(name) {
  const boxes = all(`[data-of="${name}"] input`, chosen);
  const kept = boxes.filter((box) => box.checked).map((box) => box.value);
  return kept.length === boxes.length ? null : kept;
}

const shown = (kept, value) => kept === null || kept.includes(value);

// Columns and rows of the map, and whatever else belongs to a method.
function show() {
  const [kinds, access, methods] = ["kind", "access", "method"].map(values);
  const blocks = new Set();
  for (const map of all("#answers .heat")) {
    const heads = all("th.method", map);
    const hidden = heads.map((head) => {
      const keep = shown(access, head.dataset.access) && shown(methods, head.dataset.method);
      if (keep) blocks.add(head.dataset.block);
      return !keep;
    });
    for (const row of all("tr", map)) {
      if (row.querySelector("th.seen, [scope=rowgroup]")) continue;
      [...row.cells].slice(1).forEach((cell, i) => (cell.hidden = hidden[i]));
    }
    for (const group of all("th.seen", map)) {
      const count = heads.filter((h, i) => h.dataset.access === group.dataset.access && !hidden[i]);
      group.hidden = count.length === 0;
      group.colSpan = count.length || 1;
    }
    for (const body of all("tbody[data-kind]", map)) body.hidden = !shown(kinds, body.dataset.kind);
  }
  for (const part of all("[data-block]:not(th)")) part.hidden = !blocks.has(part.dataset.block);
  for (const chart of all("[data-blocks]")) {
    chart.hidden = !chart.dataset.blocks.split(" ").some((block) => blocks.has(block));
  }
  rove();
}

function element(tag, text, parent) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  return parent ? parent.appendChild(made) : made;
}

// Two methods side by side, row by row of the map that holds the first.
function sideBySide() {
  const pressed = all(".method button[aria-pressed=true]");
  compared.replaceChildren();
  compared.hidden = pressed.length !== 2;
  if (compared.hidden) return;
  const heads = pressed.map((button) => button.closest("th"));
  const scroll = element("div", undefined, compared);
  scroll.className = "scroll";
  const table = element("table", undefined, scroll);
  element("caption", `${heads[0].dataset.method} and ${heads[1].dataset.method}, attack by attack`, table);
  const line = element("tr", undefined, element("thead", undefined, table));
  for (const text of ["attack", ...heads.map((head) => head.dataset.method), "difference in rate"]) {
    element("th", text, line).scope = "col";
  }
  const body = element("tbody", undefined, table);
  const rows = new Map();
  heads.forEach((head, side) => {
    for (const row of all("tbody[data-kind] tr:not(.kind)", head.closest("table"))) {
      const name = row.cells[0].textContent;
      const cell = row.cells[head.cellIndex].firstElementChild;
      if (!rows.has(name)) rows.set(name, [null, null]);
      if (cell?.tagName === "BUTTON") rows.get(name)[side] = cell;
    }
  });
  for (const [name, cells] of rows) {
    const added = element("tr", undefined, body);
    element("th", name, added).scope = "row";
    for (const cell of cells) {
      const told = element("td", cell ? cell.title.slice(cell.title.indexOf(": ") + 2) : "—", added);
      told.className = "long";
    }
    const rates = cells.map((cell) => (cell?.dataset.rate ? Number(cell.dataset.rate) : NaN));
    const apart = rates[0] - rates[1];
    element("td", Number.isNaN(apart) ? "—" : `${apart < 0 ? "−" : "+"}${Math.abs(apart).toFixed(2)}`, added);
  }
}

// A cell of the map opens the records behind it, as the list of cells has them.
function open(button) {
  opened = button.dataset.place;
  document.getElementById("record-title").textContent = button.title;
  const body = document.getElementById("record-body");
  body.replaceChildren();
  const rows = button.dataset.cells.split(" ").map((n) => all(`#cells [data-cell="${n}"]`)[0].closest("tr"));
  const scroll = element("div", undefined, body);
  scroll.className = "scroll";
  const table = element("table", undefined, scroll);
  element("caption", "Its records: press a key to read one", table);
  const heads = element("tr", undefined, element("thead", undefined, table));
  for (const head of rows[0].closest("table").tHead.rows[0].cells) {
    element("th", head.textContent, heads).scope = "col";
  }
  const list = element("tbody", undefined, table);
  for (const row of rows) {
    const copy = row.cloneNode(true);
    copy.removeAttribute("id");
    copy.hidden = false;
    copy.querySelector("[data-cell]").setAttribute("aria-expanded", "false");
    list.append(copy);
  }
  if (!record.open) record.showModal();
  remember();
}

record.addEventListener("close", () => {
  const button = document.querySelector(`[data-place="${opened}"]`);
  opened = "";
  remember();
  button?.focus();
});

function remember() {
  const said = new URLSearchParams();
  for (const name of ["kind", "access", "method"]) {
    const kept = values(name);
    if (kept !== null) said.set(name, JSON.stringify(kept));
  }
  const pressed = all(".method[data-block] button[aria-pressed=true]");
  if (pressed.length) {
    said.set("compare", pressed.map((button) => button.closest("th").dataset.block).join(" "));
  }
  if (opened) said.set("cell", opened);
  const hash = said.toString();
  if (hash || location.hash.includes("=")) {
    history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
  }
}

function listOf(text) {
  try {
    const found = JSON.parse(text);
    return Array.isArray(found) ? found : null;
  } catch {
    return null;
  }
}

function recall() {
  const said = new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");
  for (const name of ["kind", "access", "method"]) {
    const kept = listOf(said.get(name));
    for (const box of all(`[data-of="${name}"] input`, chosen)) {
      box.checked = kept === null || kept.includes(box.value);
    }
  }
  const blocks = (said.get("compare") ?? "").split(" ");
  for (const head of all("th.method")) {
    head.firstElementChild.setAttribute("aria-pressed", String(blocks.includes(head.dataset.block)));
  }
  show();
  sideBySide();
  const cell = all("[data-place]").find((button) => button.dataset.place === said.get("cell"));
  if (cell) open(cell);
  const part = said.has("at") && document.getElementById(said.get("at"));
  if (!part) return;
  for (const fold of all(":scope > details.fold", part)) fold.open = true;
  part.scrollIntoView();
}

// One cell of every table of colours is in the order of tabs; arrows lead to the others.
function rove() {
  for (const table of all(".heat")) {
    const buttons = all(".hot > button", table);
    const seen = buttons.filter((button) => !button.closest("[hidden]"));
    for (const button of buttons) button.tabIndex = -1;
    if (seen.length) seen[0].tabIndex = 0;
  }
}

const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

function move(button, [down, right]) {
  const table = button.closest("table");
  const rows = all("tbody tr:not(.kind)", table).filter((row) => !row.closest("[hidden]"));
  let row = rows.indexOf(button.closest("tr"));
  let column = button.closest("td").cellIndex;
  for (;;) {
    row += down;
    column += right;
    const cell = rows[row]?.cells[column];
    if (!cell) return;
    const next = cell.querySelector("button");
    if (next && !cell.hidden) {
      button.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
      return;
    }
  }
}

document.addEventListener("keydown", (event) => {
  const button = event.target.closest?.(".hot > button");
  if (!button || !STEPS[event.key]) return;
  event.preventDefault();
  move(button, STEPS[event.key]);
});

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.place) open(button);
  else if (button.dataset.leads) {
    const cell = all("[data-place]").find((other) => other.dataset.place === button.dataset.leads);
    if (cell) open(cell);
  } else if (button.classList.contains("close")) record.close();
  else if (button.hasAttribute("aria-pressed")) {
    const others = all(".method button[aria-pressed=true]").filter((other) => other !== button);
    if (others.length > 1) others[0].setAttribute("aria-pressed", "false");
    button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
    sideBySide();
    remember();
  }
});

chosen.addEventListener("change", () => {
  show();
  remember();
});

let folded = [];
addEventListener("beforeprint", () => {
  folded = all("details.fold:not([open])");
  for (const fold of folded) fold.open = true;
});
addEventListener("afterprint", () => {
  for (const fold of folded) fold.open = false;
});

addEventListener("hashchange", () => {
  if (!location.hash || location.hash.includes("=")) recall(); // a place on the page chooses nothing
});
recall();
