"use strict";
// What every page has: light and dark, and tables that sort. Widgets register themselves by a class of their element.
const fgssl = {
  dark: () => getComputedStyle(document.documentElement).colorScheme === "dark"
    || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches),
  colour: (name) => getComputedStyle(document.body).getPropertyValue(name),
  // a CSS colour as the browser computes it, for canvases, which know no light-dark()
  ink: (name) => {
    const probe = document.createElement("span");
    probe.style.color = `var(${name})`;
    document.body.append(probe);
    const found = getComputedStyle(probe).color;
    probe.remove();
    return found;
  },
  make: (tag, content = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), content);
    made.append(...children);
    return made;
  },
  onTheme: (redraw) => document.addEventListener("fgssl-theme", redraw),
  each: (selector, start) => document.querySelectorAll(selector).forEach((root) => {
    start(root, JSON.parse(root.querySelector("script[type='application/json']").textContent));
  }),
};

(() => {
  const root = document.documentElement;
  const told = () => document.dispatchEvent(new Event("fgssl-theme"));
  try {
    const kept = localStorage.getItem("fgssl-theme");
    if (kept === "light" || kept === "dark") root.dataset.theme = kept;
  } catch { /* a browser that keeps nothing for files */ }
  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = fgssl.dark() ? "light" : "dark";
    try { localStorage.setItem("fgssl-theme", root.dataset.theme); } catch { /* as above */ }
    told();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", told);

  for (const table of document.querySelectorAll("table.sortable")) {
    const titles = [...table.tHead.rows[0].cells];
    titles.forEach((title, column) => title.querySelector("button").addEventListener("click", () => {
      const down = title.getAttribute("aria-sort") !== "descending";
      titles.forEach((other) => other.removeAttribute("aria-sort"));
      title.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const compared = (a, b) => {
        const [left, right] = [key(a), key(b)], difference = Number(left) - Number(right);
        return Number.isNaN(difference) ? left.localeCompare(right, undefined, { numeric: true }) : difference;
      };
      const rows = [...table.tBodies[0].rows].sort((a, b) => (down ? -1 : 1) * compared(a, b));
      table.tBodies[0].append(...rows);
    }));
  }
})();
