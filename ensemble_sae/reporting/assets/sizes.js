// Dictionaries: dead features against size, how often features fire, neighbours, histories.

const makeSizes = () => {
  makeDead();
  makeDensities();
  makeNeighbours();
  makeHistories();
  makeTruth();
  if (!by("sizes").querySelector("figure")) by("sizes").remove();
};

const spread = (value, row) => value * (1 + 0.3 * ((row.id * 0.618) % 1 - 0.5)); // so that points part

const scatterBy = (rows, colour, of) => {
  const shades = palette(colour);
  const order = colour ? [...shades.values, null] : [null];
  return order.map((value) => {
    const own = colour ? rows.filter((row) => row[colour] === value) : rows;
    return {
      type: "scatter", mode: "markers", x: own.map((row) => of(row)[0]), y: own.map((row) => of(row)[1]),
      customdata: own.map((row) => row.id), text: own.map(told), hovertemplate: "%{text}<extra></extra>",
      name: colour ? `${escaped(label(colour))} ${value === null ? "–" : escaped(shown(colour, value))}` : "members",
      marker: { size: 8, color: shades.of(value), opacity: 0.8 }, showlegend: Boolean(colour),
    };
  }).filter((trace) => trace.x.length);
};

const penalty = () => ["l1", "l0_coefficient", "k", "target_l0"].find((n) => axisNames().includes(n)) || axisNames()[0] || "";

const makeDead = () => state.metrics.includes("dead") && figure("sizes", {
  name: "dead", title: "Dead features against size", events: "filter", after: clickChooses,
  work: () => {
    const rows = state.visible.filter((row) => (row.dead ?? null) !== null);
    const sizes = [...new Set(rows.map((row) => row.n_dict))].sort((a, b) => a - b);
    const none = rows.length && rows.every((row) => row.dead === 0);
    return {
      traces: scatterBy(rows, penalty(), (row) => [spread(row.n_dict, row), 100 * row.dead]),
      layout: {
        xaxis: { title: "features of the dictionary", type: "log", tickvals: sizes, ticktext: sizes.map((n) => number(n)) },
        yaxis: { title: "dead, % of features", rangemode: "tozero", ...(none ? { range: [-1, 10] } : {}) },
      },
      reads: "A point is a member: the share of its features that fire on no held-out row, against its size "
        + "(points of one size are drawn a little apart). Where it rises with the size, the dictionary is larger than the data or the penalty allow.",
    };
  },
});

const makeDensities = () => {
  const { counts, lowest, width } = state.data.densities;
  if (!counts) return;
  const view = { who: "pareto", share: "share" };
  if (!best().length) view.who = "all";
  const at = lowest.map((low) => 10 ** (low + width / 2));
  const of = (row) => {
    const own = counts[row.id];
    if (!own) return null;
    const total = own.reduce((a, b) => a + b);
    const first = own.findIndex((count, place) => place > 0 && count > 0);
    const from = Math.max(1, first - 1);
    return { x: at.slice(from - 1), y: own.slice(from).map((count) => 100 * count / total) };
  };
  const axes = axisNames();
  const view2 = { colour: penalty() };
  const made = figure("sizes", {
    name: "densities", title: "How often features fire", events: "filter choose", after: clickChooses,
    controls: [
      select("members", whose, view.who, (value) => { view.who = value; made.changed(); }),
      select("colour", [["", "nothing"], ...axes.map((n) => [n, label(n)])], view2.colour, (value) => { view2.colour = value; made.changed(); }),
    ],
    work: () => ({
      traces: [...joinedLines(ofWhom(view.who), view2.colour, of), ...chosenLine(of)],
      layout: { xaxis: { title: "share of held-out rows on which a feature fires", type: "log" }, yaxis: { title: "% of features, per quarter decade", rangemode: "tozero" } },
      reads: "A line is a member: its features by how often they fire, dead ones left out. A hump far to the left is of features that "
        + "hardly ever fire; one at the right, of features that are nearly always on and are hard to interpret.",
    }),
  });
};

const makeNeighbours = () => {
  const kinds = ["larger", "seed"].filter((kind) => state.metrics.includes(`mmcs_${kind}`));
  if (!kinds.length) return;
  const view = { kind: kinds[0] };
  const words = { larger: "the next larger dictionary", seed: "the same one from other seeds" };
  const x = () => penalty() || "n_dict";
  const made = figure("sizes", {
    name: "neighbours", title: "What neighbours have in common", events: "filter", after: clickChooses,
    controls: kinds.length > 1
      ? [select("compared with", kinds.map((k) => [k, words[k]]), view.kind, (value) => { view.kind = value; made.changed(); })] : [],
    work: () => {
      const metric = `mmcs_${view.kind}`;
      const rows = state.visible.filter((row) => row[metric] !== null && placed(x(), row[x()]) !== null);
      const colour = axisNames().includes("dict_ratio") && x() !== "dict_ratio" ? "dict_ratio" : "";
      return {
        traces: scatterBy(rows, colour, (row) => [row[x()], row[metric]]),
        layout: { xaxis: { title: label(x()), type: scale(x()) }, yaxis: { title: "MMCS" } },
        reads: `A point is a member: the mean over its features of the largest cosine with a feature of ${words[view.kind]}. `
          + "Features that are found again, whatever the size or the seed, are more likely to be real.",
      };
    },
  });
};

const makeHistories = () => {
  const { of, reference } = state.data.histories;
  if (!of) return;
  const names = { learned: "learned now", unlearned: "learned before, not now", same_entry: "learned, in the same entry", self_similarity: "cosine with the checkpoint before" };
  const against = reference === "truth" ? "true features" : "the member's own features at the end";
  const view = { what: "learned" };
  const made = figure("sizes", {
    name: "histories", title: "Features over the checkpoints", events: "choose",
    controls: [select("up", Object.entries(names), view.what, (value) => { view.what = value; made.changed(); })],
    work: () => ({
      traces: Object.entries(of).map(([id, own]) => {
        const row = state.byId.get(Number(id));
        const share = view.what === "self_similarity" ? own[view.what] : own[view.what].map((v) => 100 * v / own.features);
        return { type: "scatter", mode: "lines+markers", x: own.step, y: share, name: escaped(row ? row.name : id),
          line: { width: Number(id) === state.chosen ? 4 : 1.6 } };
      }),
      layout: { xaxis: { title: "training step" }, yaxis: { title: view.what === "self_similarity" ? "cosine" : "% of features", rangemode: "tozero" } },
      reads: `A line is a member; a feature counts as learned where an atom has a cosine above 0.9 with it. Compared with ${against}, at the checkpoints that were kept.`,
    }),
  });
};

const makeTruth = () => {
  const found = Object.entries(state.data.truth);
  if (!found.length) return;
  figure("sizes", {
    name: "truth", title: "Which true features are found", events: "choose",
    work: () => ({
      traces: found.map(([id, own], place) => {
        const row = state.byId.get(Number(id));
        return { type: "scatter", mode: "lines+markers", x: own.frequency, y: own.cosine, name: escaped(row.name), customdata: own.cosine.map(() => row.id),
          line: { color: COLOURS[place % COLOURS.length], width: row.id === state.chosen ? 4 : 1.6 }, hovertemplate: "%{y:.3f} at %{x:.3g}<extra></extra>" };
      }),
      layout: { xaxis: { title: "share of rows on which a true feature is active", type: "log" }, yaxis: { title: "largest cosine with an atom", range: [0, 1.03] } },
      reads: "A line is the member of a size that finds the true features best. A point is a group of true features that are about equally frequent, rare ones at the left: "
        + "the mean over the group of the largest cosine with an atom, 1 where they are found exactly.",
    }),
    after: clickChooses,
  });
};
