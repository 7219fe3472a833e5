// What is shown: members that pass the filters, the chosen one, light or dark. Figures listen.

const state = {
  data: null, words: {}, rows: [], byId: new Map(), axes: [], metrics: [],
  filters: {}, visible: [], chosen: null, theme: "light", listeners: [],
};

const listen = (events, work) => state.listeners.push([events.split(" "), work]);

const tell = (event) => {
  for (const [events, work] of state.listeners) if (events.includes(event)) work(event);
};

const take = (data) => {
  state.data = data;
  const { ids, columns, axes, metrics, words } = data.members;
  Object.assign(state, { axes, metrics, words });
  const names = Object.keys(columns);
  state.rows = ids.map((id, place) => {
    const row = { id };
    for (const name of names) row[name] = columns[name][place];
    return row;
  });
  state.byId = new Map(state.rows.map((row) => [row.id, row]));
  state.visible = state.rows;
};

const passes = (row) =>
  Object.entries(state.filters).every(([name, test]) => test(row[name]));

const filtered = (name, test) => {
  if (test === null) delete state.filters[name];
  else state.filters[name] = test;
  state.visible = state.rows.filter(passes);
  tell("filter");
};

const choose = (id, { scroll = false } = {}) => {
  if (!state.byId.has(id)) return;
  if (id !== state.chosen && state.chosen !== null) remember({ feature: null });
  state.chosen = id;
  remember({ member: id });
  tell("choose");
  if (scroll) by("member").scrollIntoView({ block: "start" });
};

// The address holds what is chosen, so that a link shows the same.
const recalled = () => new URLSearchParams(location.hash.slice(1));

const remember = (values) => {
  const now = recalled();
  for (const [key, value] of Object.entries(values)) {
    if (value === null) now.delete(key);
    else now.set(key, value);
  }
  for (const key of [...now.keys()]) if (!["member", "feature"].includes(key)) now.delete(key);
  history.replaceState(null, "", `#${now}`);
};

const best = () => state.rows.filter((row) => row.pareto);

const axisNames = (most = Infinity) =>
  state.axes.filter((axis) => (axis.values ? axis.values.length : Infinity) <= most).map((axis) => axis.name);

const theme = (name) => {
  state.theme = name;
  document.documentElement.dataset.theme = name;
  by("theme").textContent = name === "dark" ? "Light" : "Dark";
  by("theme").setAttribute("aria-label", `Show ${name === "dark" ? "light" : "dark"} colours`);
  tell("theme");
};

const beginTheme = () => {
  const system = matchMedia("(prefers-color-scheme: dark)");
  let own = null;
  try { own = localStorage.getItem("ensemble-sae-theme"); } catch { /* a page from the disk */ }
  theme(own || (system.matches ? "dark" : "light"));
  system.addEventListener("change", () => { if (!own) theme(system.matches ? "dark" : "light"); });
  by("theme").addEventListener("click", () => {
    own = state.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("ensemble-sae-theme", own); } catch { /* as above */ }
    theme(own);
  });
};
