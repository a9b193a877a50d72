
// One owner, one kind of access; the address keeps both.
const owner = document.getElementById("owner");
const seen = document.getElementById("seen");

function show() {
  for (const section of document.querySelectorAll("section[data-owner]")) {
    let rows = 0;
    for (const row of section.querySelectorAll("tbody tr")) {
      row.hidden = seen.value !== "" && row.dataset.seen !== seen.value;
      rows += !row.hidden;
    }
    section.hidden = rows === 0 || (owner.value !== "" && section.dataset.owner !== owner.value);
  }
}

function recall() {
  const said = new URLSearchParams(location.hash.slice(1));
  owner.value = said.get("owner") ?? "";
  seen.value = said.get("seen") ?? "";
  show();
}

for (const select of [owner, seen]) {
  select.addEventListener("change", () => {
    const said = new URLSearchParams();
    if (owner.value) said.set("owner", owner.value);
    if (seen.value) said.set("seen", seen.value);
    history.replaceState(null, "", `#${said}`);
    show();
  });
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("th button");
  if (button) sort(button);
});
addEventListener("hashchange", recall);
recall();
