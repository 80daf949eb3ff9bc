// Tables: sorted by a click on a heading, and in pages with a filter where they are long.
(() => {
  const PAGE = 50;
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const key = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent;

  // Keys are read once: a comparison that reads cells takes seconds where rows are thousands.
  function sorted(rows, column, up, words) {
    const sign = up ? 1 : -1, collator = new Intl.Collator("en", { numeric: true });
    const keyed = rows.map(row => ({ row, key: words ? key(row, column) : parseFloat(key(row, column)) }));
    keyed.sort((a, b) => {
      if (words) return sign * collator.compare(a.key, b.key);
      if (isNaN(a.key) || isNaN(b.key)) return isNaN(a.key) - isNaN(b.key); // what has no value stays last
      return sign * (a.key - b.key);
    });
    return keyed.map(one => one.row);
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    let rows = [...body.rows], found = rows, page = 0, show = () => body.replaceChildren(...found);
    for (const button of table.querySelectorAll("thead button")) button.addEventListener("click", () => {
      const head = button.parentElement, column = head.cellIndex, up = head.getAttribute("aria-sort") !== "ascending";
      const words = rows.every(row => isNaN(parseFloat(key(row, column))) || row.cells[column].tagName === "TH");
      for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const all = found.length === rows.length;
      rows = sorted(rows, column, up, words);
      found = all ? rows : sorted(found, column, up, words);
      page = 0;
      show();
    });
    if (rows.length <= PAGE) continue;

    const bar = make("div", "pager"), filter = make("input"), before = make("button", "", "‹ Back"), after = make("button", "", "Next ›"), where = make("span", "quiet");
    filter.type = "search";
    filter.placeholder = "Filter by name";
    filter.setAttribute("aria-label", "Filter by name");
    before.type = after.type = "button";
    show = () => {
      const last = Math.max(0, Math.ceil(found.length / PAGE) - 1);
      page = Math.min(Math.max(page, 0), last);
      body.replaceChildren(...found.slice(page * PAGE, (page + 1) * PAGE));
      where.textContent = found.length ? `${page * PAGE + 1}–${Math.min(found.length, (page + 1) * PAGE)} of ${found.length.toLocaleString("en")}` : "none";
      before.disabled = page === 0;
      after.disabled = page === last;
    };
    before.addEventListener("click", () => { page--; show(); });
    after.addEventListener("click", () => { page++; show(); });
    const names = new Map();
    const nameOf = row => names.get(row) ?? (names.set(row, row.textContent.toLowerCase()), names.get(row));
    filter.addEventListener("input", () => {
      const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      found = words.length ? rows.filter(row => words.every(word => nameOf(row).includes(word))) : rows;
      page = 0;
      show();
    });
    bar.append(filter, before, where, after);
    table.parentElement.before(bar);
    show();
  }
})();
