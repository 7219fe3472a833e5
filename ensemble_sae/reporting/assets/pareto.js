// The frontier: one point per member. Click one to choose it; arrow keys go along.

const paretoView = { x: "l0", y: "fvu", colour: "", symbol: "" };

const makePareto = () => {
  const axes = axisNames();
  if (state.metrics.length < 2) {
    by("pareto").append(el("p", { class: "soft" }, "Nothing is known of these members yet but what they are."));
    return;
  }
  if (!state.metrics.includes("fvu")) paretoView.y = state.metrics[0];
  if (!state.metrics.includes("l0")) paretoView.x = state.metrics[1];
  paretoView.colour = ["dict_ratio", "n_dict", "l1"].find((name) => axes.includes(name)) || axes[0] || "";
  paretoView.symbol = axes.includes("signature") ? "signature" : "";
  const metrics = state.metrics.map((name) => [name, label(name)]);
  const ways = [["", "nothing"], ...axes.map((name) => [name, label(name)])];
  const view = (key) => (value) => { paretoView[key] = value; made.changed(); };
  const made = figure("pareto", {
    name: "pareto", title: "Every member", events: "filter choose", height: 520,
    controls: [
      select("up", metrics, paretoView.y, view("y")),
      select("across", metrics, paretoView.x, view("x")),
      select("colour", ways, paretoView.colour, view("colour")),
      select("symbol", [["", "nothing"], ...axisNames(8).map((n) => [n, label(n)])], paretoView.symbol, view("symbol")),
      finder(),
    ],
    work: drawnPareto,
    after: (plot) => {
      plot.on("plotly_click", (event) => {
        const id = event.points.map((point) => point.customdata).find((one) => one !== undefined);
        if (id !== undefined) choose(id);
      });
      plot.tabIndex = 0;
      plot.setAttribute("role", "application");
      plot.setAttribute("aria-label", "Members as points; left and right arrows go along, Home and End to the ends");
      plot.addEventListener("keydown", alongKeys);
    },
  });
};

// The Pareto-best member nearest to an L0 that is asked for.
const finder = () => {
  const wanted = el("input", { type: "number", min: "0", step: "any", value: "20", id: "wanted" });
  const find = () => {
    const pool = state.visible.filter((row) => row.pareto && row.l0 > 0);
    const away = (row) => Math.abs(Math.log(row.l0 / Number(wanted.value)));
    const found = pool.sort((a, b) => away(a) - away(b))[0];
    if (found && Number(wanted.value) > 0) choose(found.id);
  };
  wanted.addEventListener("keydown", (event) => { if (event.key === "Enter") find(); });
  return el("span", { class: "pick finder" }, el("label", { for: "wanted" }, "best at L0"), wanted,
    el("button", { type: "button", id: "find", onclick: find }, "Choose"));
};

const points = () => state.visible.filter((row) =>
  placed(paretoView.x, row[paretoView.x]) !== null && placed(paretoView.y, row[paretoView.y]) !== null);

const alongKeys = (event) => {
  const ordered = points().sort((a, b) => a[paretoView.x] - b[paretoView.x]);
  if (!ordered.length) return;
  const here = ordered.findIndex((row) => row.id === state.chosen);
  const to = { ArrowRight: here + 1, ArrowLeft: here < 0 ? ordered.length - 1 : here - 1, Home: 0, End: ordered.length - 1 }[event.key];
  if (to === undefined || !ordered[to]) return;
  event.preventDefault();
  choose(ordered[to].id);
};

const drawnPareto = () => {
  const { x, y, colour, symbol } = paretoView;
  const rows = points();
  const shades = palette(colour);
  const sign = symbols(symbol);
  const groups = new Map();
  for (const row of rows) {
    const key = colour ? row[colour] : null;
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(row);
  }
  const order = [...shades.values, null].filter((value) => groups.has(value));
  const traces = order.map((value) => {
    const own = groups.get(value);
    return {
      type: "scatter", mode: "markers", x: own.map((r) => r[x]), y: own.map((r) => r[y]),
      customdata: own.map((r) => r.id), text: own.map(told), hovertemplate: "%{text}<extra></extra>",
      name: colour ? `${escaped(label(colour))} ${value === null ? "–" : escaped(shown(colour, value))}` : "members",
      marker: { size: 8, color: shades.of(value), opacity: own.map((r) => (r.pareto ? 1 : 0.55)),
        symbol: own.map((r) => sign(r[symbol])) },
      showlegend: Boolean(colour),
    };
  });
  if (symbol) traces.push(...symbolLegend(symbol, sign, rows));
  traces.push(...frontiers(rows, x, y));
  const chosen = rows.find((row) => row.id === state.chosen);
  if (chosen) traces.push({
    type: "scatter", mode: "markers", x: [chosen[x]], y: [chosen[y]], hoverinfo: "skip", showlegend: false,
    marker: { size: 18, symbol: "circle-open", color: look().mark, line: { width: 3 } },
  });
  const words = [state.words[x], state.words[y]];
  return {
    traces,
    layout: { xaxis: { title: words[0].label, type: scale(x) }, yaxis: { title: words[1].label, type: scale(y) } },
    reads: `A point is a member. Across, ${words[0].label}: ${words[0].reads} Up, ${words[1].label}: `
      + `${words[1].reads} The line joins members that none of those shown beats in both. `
      + "Click a point, or focus the figure and press the arrow keys, to choose a member.",
  };
};

const symbolLegend = (symbol, sign, rows) =>
  [...new Set(rows.map((row) => row[symbol]))].sort().map((value) => ({
    type: "scatter", mode: "markers", x: [null], y: [null], hoverinfo: "skip",
    name: escaped(value === null ? "–" : shown(symbol, value)),
    marker: { size: 9, color: look().soft, symbol: sign(value) },
  }));

// Of each hook: members that no other beats; of L0 less is better, of metrics as their words have it.
const frontiers = (rows, x, y) => {
  const senses = { low: 1, high: -1 };
  const sense = senses[state.words[y].better];
  const along = x === "l0" ? 1 : senses[state.words[x].better];
  if (!sense || !along) return [];
  const hooks = [...new Set(rows.map((row) => row.hook))];
  return hooks.map((hook, place) => {
    let reached = Infinity;
    const line = rows.filter((row) => row.hook === hook && !String(row.status).startsWith("frozen"))
      .sort((a, b) => along * (a[x] - b[x]) || sense * (a[y] - b[y]))
      .filter((row) => { if (sense * row[y] >= reached) return false; reached = sense * row[y]; return true; });
    return {
      type: "scatter", mode: "lines", x: line.map((r) => r[x]), y: line.map((r) => r[y]), hoverinfo: "skip",
      name: hooks.length > 1 ? `frontier, ${escaped(hook)}` : "frontier",
      line: { color: hooks.length > 1 ? COLOURS[place % COLOURS.length] : look().soft, width: 1.5 },
    };
  });
};
