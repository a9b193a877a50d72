
let details;

// A record is written out when somebody asks for it: pages hold thousands.
function toggle(button) {
  const row = button.closest("tr");
  if (button.getAttribute("aria-expanded") === "true") {
    button.setAttribute("aria-expanded", "false");
    row.nextElementSibling.remove();
    return;
  }
  details ??= JSON.parse(document.getElementById("details").textContent);
  const list = document.createElement("dl");
  for (const line of details.cells[button.dataset.cell]) {
    const [term, text] = details.lines[line];
    const group = list.appendChild(document.createElement("div"));
    group.appendChild(document.createElement("dt")).textContent = term;
    group.appendChild(document.createElement("dd")).textContent = text;
  }
  const added = document.createElement("tr");
  added.className = "record";
  const cell = added.appendChild(document.createElement("td"));
  cell.colSpan = row.cells.length;
  cell.append(list);
  row.after(added);
  button.setAttribute("aria-expanded", "true");
}

function filter() {
  const wanted = document.getElementById("filter").value.toLowerCase().split(/\s+/);
  const state = document.getElementById("state").value;
  let shown = 0;
  for (const group of document.querySelectorAll("#cells details[data-name]")) {
    let here = 0;
    for (const button of group.querySelectorAll("[data-cell]")) {
      const row = button.closest("tr");
      const text = (group.dataset.name + " " + row.textContent).toLowerCase();
      row.hidden = !(
        (state === "" || row.dataset.state === state) && wanted.every((word) => text.includes(word))
      );
      if (row.nextElementSibling?.className === "record") row.nextElementSibling.hidden = row.hidden;
      here += !row.hidden;
    }
    group.hidden = here === 0;
    shown += here;
  }
  document.getElementById("shown").textContent = `${shown} shown`;
}

// Whatever an address leads to is unfolded first.
function unfold(element) {
  for (let at = element; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
}

// page.html#k-KEY leads to one record, page.html#t3 to one table.
function follow() {
  const target = location.hash.includes("=") ? null : document.getElementById(location.hash.slice(1));
  if (!target) return;
  const button = target.querySelector(":scope > th > [data-cell]");
  unfold(target);
  for (const fold of target.querySelectorAll(":scope > details.fold")) fold.open = true;
  if (button && button.getAttribute("aria-expanded") !== "true") toggle(button);
  target.scrollIntoView();
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button?.dataset.cell) toggle(button);
  else if (button?.closest("th") && !button.hasAttribute("aria-pressed")) sort(button);
});
document.getElementById("filter").addEventListener("input", filter);
document.getElementById("state").addEventListener("change", filter);
addEventListener("hashchange", follow);
follow();
