// Sorting, for those who have scripts; nothing else needs them. Only text and order are touched.
"use strict";
// Numbers in order, then text; what is not known ("unknown", a dash) comes last in either direction.
const compare = (a, b, sign) => {
  const [x, y] = [Number.parseFloat(a), Number.parseFloat(b)];
  if (Number.isNaN(x) && Number.isNaN(y)) return sign * a.localeCompare(b, "en", { numeric: true });
  return Number.isNaN(x) ? 1 : Number.isNaN(y) ? -1 : sign * (x - y);
};
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const body = table.tBodies[0];
  const key = (row, column) => row.cells[column].dataset.sort ?? row.cells[column].textContent.trim();
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const up = heading.getAttribute("aria-sort") !== "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      const sign = up ? 1 : -1;
      const rows = [...body.rows];
      body.append(...rows.sort((a, b) => compare(key(a, column), key(b, column), sign)));
    });
  });
}
for (const select of document.querySelectorAll("select[data-gallery]")) {
  const gallery = document.getElementById(select.dataset.gallery);
  const original = [...gallery.children];
  select.closest(".sorter").hidden = false;
  const key = (card, choice) =>
    choice === "1"
      ? card.querySelector("h4").textContent
      : (card.querySelector(`[data-value="${choice}"]`)?.textContent ?? "");
  select.addEventListener("change", () => {
    const choice = select.value;
    const sorted = [...original];
    if (choice === "1") {
      sorted.sort((a, b) => key(a, choice).localeCompare(key(b, choice), "en", { numeric: true }));
    } else if (choice !== "0") {
      const sign = "descending" in select.selectedOptions[0].dataset ? -1 : 1;
      sorted.sort((a, b) => compare(key(a, choice), key(b, choice), sign));
    }
    gallery.append(...sorted);
  });
}
