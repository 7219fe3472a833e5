// The members' table: searched, sorted, taken along as CSV or JSON.

const tableView = { sort: "l0", down: false, search: "" };

const makeTable = () => {
  const columns = ["name", ...state.axes.map((axis) => axis.name), ...state.metrics, "status", "flags"]
    .filter((name) => name !== "status" || state.rows.some((row) => row.status !== "trained"))
    .filter((name) => name !== "flags" || state.rows.some((row) => row.flags));
  const heads = new Map(columns.map((name) => [name, el("th", { scope: "col", "aria-sort": "none", title: (state.words[name] || {}).reads || "" },
    el("button", { type: "button", onclick: () => sortBy(name) }, name === "name" ? "member" : label(name)))]));
  const body = el("tbody");
  const count = el("span", { class: "soft", "aria-live": "polite" });
  const search = el("input", { type: "search", id: "search", placeholder: "tied 2.1e-2 …", oninput: () => { tableView.search = search.value; fill(); } });
  const sortBy = (name) => {
    tableView.down = tableView.sort === name ? !tableView.down : false;
    tableView.sort = name;
    fill();
  };
  const fill = () => {
    const rows = tableRows();
    for (const [name, head] of heads) {
      head.setAttribute("aria-sort", name !== tableView.sort ? "none" : tableView.down ? "descending" : "ascending");
    }
    body.replaceChildren(...rows.map((row) => line(row, columns)));
    count.textContent = `${rows.length} of ${state.rows.length}`;
  };
  const all = () => Object.keys(state.rows[0]);
  by("members").append(
    el("div", { class: "controls" }, el("label", { class: "pick" }, el("span", {}, "search"), search), count,
      el("button", { type: "button", id: "csv", onclick: () => saved(`${state.data.name}-members.csv`, "text/csv", csv(tableRows(), all())) }, "CSV"),
      el("button", { type: "button", id: "json", onclick: () => saved(`${state.data.name}-members.json`, "application/json", JSON.stringify(tableRows(), null, 1)) }, "JSON")),
    el("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Members" },
      el("table", { id: "table" }, el("thead", {}, el("tr", {}, heads.get("name"), el("th", { scope: "col" }, "Python"), [...heads.values()].slice(1))), body)),
    el("p", { class: "soft" }, "★ marks Pareto-best members. Heads sort; the search takes all words that it is given. What is saved has every column of the members that are shown."));
  listen("filter", fill);
  listen("choose", () => {
    for (const row of body.children) row.classList.toggle("on", Number(row.dataset.id) === state.chosen);
  });
  fill();
};

const line = (row, columns) => el("tr", { "data-id": String(row.id), class: row.id === state.chosen ? "on" : "" },
  el("th", { scope: "row" }, el("button", { type: "button", class: "link", onclick: () => choose(row.id, { scroll: true }) }, `${row.pareto ? "★ " : ""}${row.name}`)),
  el("td", {}, copying(python(row))),
  columns.filter((name) => name !== "name").map((name) => el("td", typeof row[name] === "string" ? { class: "word" } : {}, shown(name, row[name]))));

const tableRows = () => {
  const words = tableView.search.toLowerCase().split(/\s+/).filter(Boolean);
  const text = (row) => `${row.id} ${row.name} ${row.signature ?? ""} ${row.hook ?? ""} ${row.status} ${row.flags} ${row.pareto ? "pareto" : ""}`.toLowerCase();
  const rows = state.visible.filter((row) => { const own = text(row); return words.every((word) => own.includes(word)); });
  const { sort, down } = tableView;
  const sense = down ? -1 : 1;
  return rows.sort((a, b) => {
    const [one, two] = [a[sort], b[sort]];
    if (one === two) return a.id - b.id;
    if (one === null || one === undefined) return 1; // what is not known is last, either way
    if (two === null || two === undefined) return -1;
    return sense * (typeof one === "number" ? one - two : String(one).localeCompare(String(two)));
  });
};

// A cell that a spreadsheet would take for a formula is marked as text.
const cell = (value) => {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  const text = /^[=+\-@\t\r]/.test(String(value)) ? `'${value}` : String(value);
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};

const csv = (rows, names) => [names.map(cell).join(","), ...rows.map((row) => names.map((n) => cell(row[n])).join(","))].join("\n") + "\n";
