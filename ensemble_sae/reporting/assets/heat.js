// Heat maps over any two axes of the grid.

const heatView = { x: "", y: "", metric: "fvu", of: "mean" };

const makeHeat = () => {
  const axes = axisNames();
  if (axes.length < 2 || !state.metrics.length) { by("heat").remove(); return; }
  heatView.x = axes.includes("dict_ratio") ? "dict_ratio" : axes[0];
  heatView.y = axes.includes("l1") && heatView.x !== "l1" ? "l1" : axes.find((name) => name !== heatView.x);
  if (!state.metrics.includes("fvu")) heatView.metric = state.metrics[0];
  const choices = axes.map((name) => [name, label(name)]);
  const view = (key) => (value) => { heatView[key] = value; made.changed(); };
  const made = figure("heat", {
    name: "heat", title: "Heat map", events: "filter choose",
    controls: [
      select("colour", state.metrics.map((name) => [name, label(name)]), heatView.metric, view("metric")),
      select("across", choices, heatView.x, view("x")), select("up", choices, heatView.y, view("y")),
      select("several in a cell", [["mean", "mean"], ["min", "lowest"], ["max", "highest"]], "mean", view("of")),
    ],
    work: drawnHeat,
    after: (plot) => plot.on("plotly_click", (event) => {
      const ids = event.points[0].customdata;
      if (ids && ids.length) choose(ids[0]);
    }),
  });
};

const ordered = (name) => {
  const there = new Set(state.visible.map((row) => row[name]).filter((value) => value !== null));
  const axis = state.axes.find((one) => one.name === name);
  return axis.values ? axis.values.filter((v) => there.has(v)) : [...there].sort((a, b) => a - b);
};

// Cells have places: two values that are written alike are two.
const named = (name, values) => ({
  title: label(name), showgrid: false, zeroline: false,
  tickvals: values.map((_, i) => i), ticktext: values.map((value) => escaped(shown(name, value))),
});

const drawnHeat = () => {
  const { x, y, metric, of } = heatView;
  if (x === y) return null;
  const [across, up] = [ordered(x), ordered(y)];
  const cells = new Map();
  for (const row of state.visible) {
    if (row[metric] === null || row[metric] === undefined) continue;
    const key = `${across.indexOf(row[x])},${up.indexOf(row[y])}`;
    if (!cells.has(key)) cells.set(key, []);
    cells.get(key).push(row);
  }
  const value = (own) => {
    const values = own.map((row) => row[metric]);
    if (of === "mean") return values.reduce((a, b) => a + b) / values.length;
    return of === "min" ? Math.min(...values) : Math.max(...values);
  };
  const grid = up.map((_, j) => across.map((_, i) => cells.get(`${i},${j}`) || []));
  const z = grid.map((line) => line.map((own) => (own.length ? value(own) : null)));
  const many = across.length * up.length > 200;
  const words = state.words[metric];
  return {
    height: Math.max(300, Math.min(720, 110 + 34 * up.length)),
    traces: [{
      type: "heatmap", x: across.map((_, i) => i), y: up.map((_, j) => j), z,
      customdata: grid.map((line) => line.map((own) => own.map((row) => row.id))),
      text: z.map((line) => line.map((v) => (many || v === null ? "" : shown(metric, v)))),
      texttemplate: many ? "" : "%{text}", colorscale: "Viridis", xgap: 1, ygap: 1,
      hovertext: grid.map((line) => line.map((own) => own.slice(0, 6).map((row) => `${escaped(row.name)}: ${shown(metric, row[metric])}`).join("<br>"))),
      hovertemplate: "%{hovertext}<extra></extra>", colorbar: { title: { text: escaped(words.label) }, thickness: 14, outlinewidth: 0 },
    }],
    layout: { showlegend: false, xaxis: named(x, across), yaxis: named(y, up) },
    reads: `A cell is the ${{ mean: "mean", min: "lowest", max: "highest" }[of]} over the members at these two values that pass the filters, `
      + `of ${words.label}: ${words.reads} Click a cell to choose its first member.`,
  };
};
