// Lines of several members in few traces: members of one colour share one, with gaps between them.

const joinedLines = (rows, colour, of, width = 1.3) => {
  const shades = palette(colour);
  const groups = new Map();
  for (const row of rows) {
    const key = colour ? row[colour] : null;
    if (!groups.has(key)) groups.set(key, { x: [], y: [], ids: [], text: [] });
    const group = groups.get(key);
    const own = of(row);
    if (!own) continue;
    group.x.push(...own.x, null);
    group.y.push(...own.y, null);
    group.ids.push(...own.x.map(() => row.id), null);
    group.text.push(...own.x.map(() => escaped(row.name)), null);
  }
  const order = [...shades.values, null].filter((value) => groups.has(value));
  return order.map((value) => {
    const group = groups.get(value);
    return {
      type: "scatter", mode: group.x.length > 3000 ? "lines" : "lines+markers", x: group.x, y: group.y,
      customdata: group.ids, text: group.text, connectgaps: false, marker: { size: 4 },
      line: { width, color: shades.of(value) }, opacity: 0.85,
      name: colour ? `${escaped(label(colour))} ${value === null ? "–" : escaped(shown(colour, value))}` : "members",
      hovertemplate: "%{text}<br>%{x}: %{y}<extra></extra>", showlegend: Boolean(colour),
    };
  }).filter((trace) => trace.x.length);
};

const chosenLine = (of) => {
  const row = state.byId.get(state.chosen);
  const own = row && of(row);
  return own ? [{
    type: "scatter", mode: "lines+markers", x: own.x, y: own.y, name: "chosen", hoverinfo: "skip",
    line: { width: 3, color: look().mark }, marker: { size: 6 },
  }] : [];
};

const clickChooses = (plot) => plot.on("plotly_click", (event) => {
  const id = event.points[0].customdata;
  if (typeof id === "number") choose(id);
});

const whose = [["pareto", "Pareto-best"], ["all", "all that pass the filters"], ["chosen", "the chosen one"]];
const ofWhom = (who) => ({
  pareto: () => state.visible.filter((row) => row.pareto), all: () => state.visible, chosen: () => [],
}[who]());

const trainingView = { metric: "fvu", who: "pareto", colour: "" };

const makeTraining = () => {
  const known = Object.values(state.data.training)[0];
  if (!known) { by("training").append(el("p", { class: "soft" }, "Nothing was trained here.")); return; }
  const axes = axisNames();
  trainingView.colour = axes.includes("l1") ? "l1" : axes[0] || "";
  const series = Object.keys(known).filter((name) => name !== "step");
  const words = { fvu: "FVU of training rows", l0: "L0 of training rows", loss: "loss" };
  const view = (key) => (value) => { trainingView[key] = value; made.changed(); };
  if (!best().length) trainingView.who = "all";
  const made = figure("training", {
    name: "training", title: "While training", events: "filter choose",
    controls: [
      select("up", series.map((name) => [name, words[name]]), "fvu", view("metric")),
      select("members", whose, trainingView.who, view("who")),
      select("colour", [["", "nothing"], ...axes.map((n) => [n, label(n)])], trainingView.colour, view("colour")),
    ],
    work: () => {
      const { metric, who, colour } = trainingView;
      const of = (row) => {
        const own = state.data.training[row.id];
        return own && own[metric] ? { x: own.step, y: own[metric] } : null;
      };
      return {
        traces: [...joinedLines(ofWhom(who), colour, of), ...chosenLine(of)],
        layout: { xaxis: { title: "training step" }, yaxis: { title: words[metric], type: "log" } },
        reads: `A line is a member: ${words[metric]}, mean over each round, against updates made. `
          + "A line that turns up or breaks off shows a member in trouble. Click one to choose it.",
      };
    },
    after: clickChooses,
  });
};
