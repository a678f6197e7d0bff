/* Sorting and filtering for tables with data-facets="task backbone ..."; a row's data-values holds its values of each.
   Own code, no library. A view is an address: ?task=listops filters, sort=<column>&order=desc sorts, find=<words> looks in
   the whole row. Numbers say on request what they are to the last digit, and where they are stored. */
(() => {
  "use strict";

  const FEW = 5; // a table of fewer rows needs no filters
  const MANY = 25; // of more rows that fit, only so many are shown until asked for all
  const parameters = new URLSearchParams(location.search);
  const make = (name, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(name), properties);
    element.append(...children);
    return element;
  };
  const slug = (words) => words.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "");
  const keyOf = (cell) =>
    cell.dataset.key ?? cell.querySelector("data")?.value.split(" ")[0] ?? cell.textContent.trim().toLowerCase();

  function equip(table) {
    const heads = [...table.tHead.rows[0].cells];
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const state = { find: parameters.get("find") ?? "", sort: parameters.get("sort"), order: parameters.get("order") };
    const values = new Map(rows.map((row) => [row, JSON.parse(row.dataset.values)]));
    const filters = table.dataset.facets.split(" ").map((name, index) => ({ name, index }));
    // On a phone a row becomes a card, whose lines need the columns' names.
    for (const row of rows) heads.forEach((head, index) => { row.cells[index].dataset.label = head.textContent; });

    const bar = make("form", { className: "ns-tools" });
    bar.setAttribute("role", "search");
    bar.setAttribute("aria-label", "Filter the table");
    bar.addEventListener("submit", (event) => event.preventDefault());
    for (const filter of filters) {
      const present = [...new Set(rows.flatMap((row) => values.get(row)[filter.index]))].sort();
      filter.select = make("select", { name: filter.name }, make("option", { value: "", textContent: "all" }));
      filter.select.append(...present.map((value) => make("option", { value, textContent: value })));
      filter.select.value = present.includes(parameters.get(filter.name)) ? parameters.get(filter.name) : "";
      filter.select.addEventListener("change", show);
      if (present.length > 1) bar.append(make("label", {}, make("span", { textContent: filter.name }), filter.select));
    }
    const find = make("input", { type: "search", name: "find", value: state.find, placeholder: "any word" });
    find.addEventListener("input", show);
    bar.append(make("label", {}, make("span", { textContent: "find" }), find));
    const count = make("output", { className: "ns-tools__count" });
    const permalink = make("a", { textContent: "link to this view", className: "ns-tools__link" });
    const reset = make("button", { type: "button", textContent: "reset", className: "ns-tools__reset" });
    reset.addEventListener("click", () => {
      filters.forEach((filter) => { filter.select.value = ""; });
      find.value = "";
      state.sort = state.order = null;
      arrange();
      show();
    });
    bar.append(make("span", { className: "ns-tools__end" }, count, permalink, reset));
    const all = make("button", { type: "button", className: "ns-tools__all" });
    const showAll = () => { state.all = true; show(); };
    all.addEventListener("click", showAll);
    addEventListener("beforeprint", showAll);
    table.closest(".ns-frame").after(all);
    if (rows.length >= FEW) table.closest(".ns-frame").before(bar);

    heads.forEach((head, index) => {
      if (!head.dataset.sort) return;
      const button = make("button", { type: "button", className: "ns-sort" }, ...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const name = slug(head.textContent);
        state.order = state.sort === name && state.order !== "desc" ? "desc" : null;
        state.sort = name;
        arrange();
        show();
      });
    });

    function arrange() {
      const index = heads.findIndex((head) => head.dataset.sort && slug(head.textContent) === state.sort);
      heads.forEach((head, i) => {
        if (head.dataset.sort) head.setAttribute("aria-sort", i !== index ? "none" : state.order === "desc" ? "descending" : "ascending");
      });
      const sorted = [...rows];
      if (index >= 0) {
        const numeric = heads[index].dataset.sort === "number";
        const sign = state.order === "desc" ? -1 : 1;
        sorted.sort((left, right) => {
          const [a, b] = [keyOf(left.cells[index]), keyOf(right.cells[index])];
          if (a === "" || b === "") return (a === "") - (b === "");
          return sign * (numeric ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true }));
        });
      }
      body.append(...sorted);
    }

    function show() {
      const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const row of body.rows) {
        const fits = filters.every((f) => !f.select.value || values.get(row)[f.index].includes(f.select.value));
        const line = row.textContent.toLowerCase();
        const found = fits && words.every((word) => line.includes(word));
        shown += found ? 1 : 0;
        row.hidden = !found || (shown > MANY && !state.all);
      }
      all.hidden = shown <= MANY || state.all;
      all.textContent = `show all ${shown}`;
      count.textContent = `${shown} of ${rows.length}`;
      const now = new URLSearchParams();
      filters.forEach((filter) => { if (filter.select.value) now.set(filter.name, filter.select.value); });
      if (find.value) now.set("find", find.value);
      if (state.sort) now.set("sort", state.sort);
      if (state.sort && state.order) now.set("order", state.order);
      permalink.href = `${location.pathname}?${now}`;
      reset.hidden = permalink.hidden = ![...now].length;
    }

    arrange();
    show();
  }

  function tell(event) {
    const number = event.target.closest?.("data[data-cell]");
    if (!number || number.title) return;
    const base = number.closest("[data-base]")?.dataset.base ?? "";
    const place = number.dataset.cell.replace(/^\.\//, base);
    number.title = `${number.value}\n${place}`;
  }

  // A frame that scrolls can be scrolled by the keyboard too.
  function reach(frame) {
    const scrolls = frame.scrollWidth > frame.clientWidth;
    for (const [name, value] of [["tabindex", "0"], ["role", "region"], ["aria-label", frame.querySelector("caption").textContent]]) {
      if (scrolls) frame.setAttribute(name, value);
      else frame.removeAttribute(name);
    }
  }

  document.querySelectorAll("table[data-facets]").forEach(equip);
  const frames = document.querySelectorAll(".ns-frame");
  const watch = new ResizeObserver((entries) => entries.forEach((entry) => reach(entry.target)));
  for (const frame of frames) {
    reach(frame);
    watch.observe(frame);
  }
  document.addEventListener("pointerover", tell);
  // A page on disk may not start the worker that searches.
  if (location.protocol === "file:") document.querySelectorAll('label[for="__search"]').forEach((each) => each.remove());
})();
