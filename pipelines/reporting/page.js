"use strict";
(() => {
  // Tables: a click on the head of a column sorts by it. Cells without a number come last in both directions.
  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.sort === undefined ? cell.textContent.trim() : Number(cell.dataset.sort);
  };
  const lacking = (one, numeric) => (numeric ? typeof one !== "number" : one === "" || one === "–");
  const sort = (table, head, column) => {
    const body = table.tBodies[0], rows = [...body.rows];
    const numeric = rows.some((row) => typeof value(row, column) === "number");
    // The first click brings the largest numbers, or the first names, to the top.
    const before = head.getAttribute("aria-sort");
    const down = before === "none" ? numeric : before === "ascending";
    rows.sort((a, b) => {
      const one = value(a, column), other = value(b, column);
      const ends = lacking(one, numeric) - lacking(other, numeric);
      if (ends || lacking(one, numeric)) return ends;
      const order = numeric ? one - other : one.localeCompare(other, "en", { numeric: true });
      return down ? -order : order;
    });
    body.append(...rows);
    for (const cell of head.parentNode.cells) cell.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    if (table.tBodies[0].rows.length < 2) continue;
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => sort(table, head, column));
    });
  }
  // Tables wider than the page say that they scroll.
  const mark = () => {
    for (const region of document.querySelectorAll(".wide"))
      region.classList.toggle("scrolls", region.scrollWidth > region.clientWidth + 1);
  };
  mark();
  addEventListener("resize", mark);
  // Figures: the value of a mark appears at once, also under a finger; without this script it is the mark's title.
  const box = document.createElement("div");
  box.className = "tip";
  box.hidden = true;
  document.body.append(box);
  for (const title of document.querySelectorAll("figure svg title")) {
    title.parentNode.dataset.tip = title.textContent;
    title.remove();
  }
  const show = (event) => {
    const mark = event.target instanceof Element ? event.target.closest("[data-tip]") : null;
    box.hidden = !mark;
    if (!mark) return;
    box.textContent = mark.dataset.tip;
    const { width, height } = box.getBoundingClientRect();
    const left = Math.min(event.clientX + 12, innerWidth - width - 8);
    const above = event.clientY - height - 12;
    box.style.left = `${Math.max(left, 8)}px`;
    box.style.top = `${above > 4 ? above : event.clientY + 16}px`;
  };
  document.addEventListener("pointermove", show);
  document.addEventListener("pointerdown", show);
  document.addEventListener("scroll", () => { box.hidden = true; }, { passive: true });
})();
