"use strict";
(() => {
  const table = document.getElementById("rows"), body = table.tBodies[0], rows = [...body.rows];
  const find = document.getElementById("find"), marked = document.getElementById("marked");
  const count = document.getElementById("count"), said = document.getElementById("said");
  const dots = new Map(rows.map((row) => [row.dataset.r, document.querySelectorAll(`circle[data-r="${row.dataset.r}"], path[data-r="${row.dataset.r}"]`)]));
  const byNumber = new Map(rows.map((row) => [row.dataset.r, row]));
  let chosen = null, hovered = null;

  for (const part of document.querySelectorAll("[data-script]")) part.hidden = false;

  // Sorting: numbers that are not known come last either way.
  const key = (row, column) => row.cells[column].dataset.v;
  const compare = (a, b) => {
    const x = Number(a), y = Number(b);
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, undefined, { numeric: true }) : x - y;
  };
  table.tHead.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const head = button.closest("th"), column = head.cellIndex;
    const before = head.getAttribute("aria-sort");
    const down = before ? before === "ascending" : head.dataset.first === "descending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const order = rows.slice().sort((a, b) => {
      const x = key(a, column), y = key(b, column);
      if (x === y || (x === "" && y === "")) return Number(a.dataset.r) - Number(b.dataset.r);
      if (x === "" || y === "") return x === "" ? 1 : -1;
      return down ? compare(y, x) : compare(x, y);
    });
    body.append(...order);
    said.textContent = `Sorted by ${button.textContent.trim()}, ${down ? "descending" : "ascending"}`;
  });

  // Filtering.
  const filter = () => {
    const wanted = find.value.trim().toLowerCase();
    let left = 0;
    for (const row of rows) {
      const name = row.cells[0].dataset.v.toLowerCase();
      row.hidden = (wanted !== "" && !name.includes(wanted)) || (marked.checked && !row.classList.contains("marked"));
      if (!row.hidden) left += 1;
      for (const dot of dots.get(row.dataset.r)) dot.classList.toggle("off", row.hidden);
    }
    const all = `${rows.length} ${rows.length === 1 ? "row" : "rows"}`;
    count.textContent = left === rows.length ? all : `${left} of ${all}`;
  };
  find.addEventListener("input", filter);
  marked.addEventListener("change", filter);

  // Columns beyond the edge are said to be there.
  const box = table.parentElement, wide = document.getElementById("wide");
  const measure = () => { wide.hidden = box.scrollWidth <= box.clientWidth + 1; };
  new ResizeObserver(measure).observe(box);
  document.getElementById("all").addEventListener("change", measure);

  // A row and its dots are lit together.
  const light = (number, name, on) => {
    if (number === null) return;
    byNumber.get(number).classList.toggle(name, on);
    for (const dot of dots.get(number)) {
      dot.classList.toggle(name, on);
      if (on && dot.tagName === "circle") dot.parentNode.append(dot);
    }
    for (const chart of document.querySelectorAll("figure[data-column]")) {
      const place = byNumber.get(hovered ?? chosen ?? number);
      const cell = place.cells[Number(chart.dataset.column)];
      const out = chart.querySelector("output");
      out.textContent = (hovered ?? chosen) === null || place.dataset.method !== chart.dataset.method ? "" : `${place.cells[0].dataset.v}: ${cell.dataset.v === "" ? "not available" : cell.dataset.t}`;
    }
  };
  const hover = (number) => {
    if (number === hovered) return;
    const before = hovered;
    hovered = number;
    light(before, "lit", false);
    light(number, "lit", true);
  };
  const choose = (number) => {
    const before = chosen;
    chosen = number;
    light(before, "chosen", false);
    light(number, "chosen", true);
  };
  const numberOf = (target) => target.closest("[data-r]")?.dataset.r ?? null;
  document.addEventListener("pointerover", (event) => hover(numberOf(event.target)));
  document.addEventListener("focusin", (event) => hover(numberOf(event.target)));
  document.addEventListener("click", (event) => {
    const number = numberOf(event.target);
    if (number === null || event.target.closest("a[href]:not([href^='#'])")) return;
    choose(number === chosen ? null : number);
    if (chosen !== null && event.target.closest("svg")) {
      const row = byNumber.get(number);
      row.scrollIntoView({ block: "center" });
      (row.cells[0].querySelector("a") ?? row.cells[0]).focus({ preventScroll: true });
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") choose(null);
  });
  filter();
})();
