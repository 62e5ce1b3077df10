"use strict";
// The page is complete without this script; it adds the search for labels, sorting, and explanations beside words.
const tip = document.getElementById("tip");
const meaning = (link) => document.querySelector(link.getAttribute("href") + " dd");
function show(link) {
  tip.textContent = meaning(link).textContent;
  tip.hidden = false;
  const word = link.getBoundingClientRect(), box = tip.getBoundingClientRect();
  const below = word.bottom + 6 + box.height < innerHeight;
  tip.style.left = Math.max(8, Math.min(word.left, innerWidth - box.width - 8)) + "px";
  tip.style.top = (below ? word.bottom + 6 : Math.max(8, word.top - 6 - box.height)) + "px";
  tip.style.bottom = "auto";
}
const hide = () => { tip.hidden = true; };
for (const link of document.querySelectorAll(".term")) {
  const explained = meaning(link);
  explained.id = explained.parentElement.id + "-meaning";
  link.setAttribute("aria-describedby", explained.id);
  link.addEventListener("mouseenter", () => show(link));
  link.addEventListener("focus", () => show(link));
  link.addEventListener("mouseleave", hide);
  link.addEventListener("blur", hide);
}
addEventListener("scroll", hide, { passive: true });
addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });

const table = document.getElementById("label-table");
const find = document.getElementById("find");
if (find) {
  find.parentElement.hidden = false;
  find.addEventListener("input", () => {
    const wanted = find.value.trim().toLowerCase();
    let hits = 0;
    for (const row of table.tBodies[0].rows) {
      const hit = wanted !== "" && row.dataset.label.toLowerCase().includes(wanted);
      row.classList.toggle("hit", hit);
      hits += hit;
    }
    table.classList.toggle("searching", wanted !== "");
    document.getElementById("found").textContent = wanted === "" ? "" : hits + (hits === 1 ? " label" : " labels");
  });
}
for (const head of table ? table.tHead.rows[0].cells : []) {
  const button = document.createElement("button");
  button.type = "button";
  button.setAttribute("aria-label", "sort by " + head.textContent.trim());
  head.append(" ", button);
  button.addEventListener("click", () => sort(head));
}
function sort(head) {
  const column = head.cellIndex, up = head.getAttribute("aria-sort") === "descending", sign = up ? 1 : -1;
  const key = (row) => {
    const text = row.cells[column].textContent, number = parseFloat(text.replaceAll(",", ""));
    return column === 0 ? text : Number.isNaN(number) ? -Infinity : number;
  };
  const rows = [...table.tBodies[0].rows];
  const shown = rows.filter((row) => !row.classList.contains("more")).length;
  rows.sort((a, b) => sign * (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0));
  rows.forEach((row, i) => { row.classList.toggle("more", i >= shown); table.tBodies[0].append(row); });
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
}
