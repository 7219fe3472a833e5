// Figures: a title, controls, the plot, how to read it, and its picture to take along. A figure is
// drawn when it comes into view, and again when what it shows has changed.

const SHADES = ["#440154", "#443983", "#31688e", "#21918c", "#35b779", "#8fd744", "#e0c11c"];
const SHADES_DARK = ["#b388eb", "#8093f1", "#5aa9e6", "#3fc1b0", "#5fd068", "#a8e05f", "#fde725"];
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#777777"];
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "x", "star", "pentagon"];
const LIGHT = { ink: "#1b1f24", soft: "#57606a", line: "#d8dee4", back: "#ffffff", mark: "#cf222e" };
const DARK = { ink: "#e6edf3", soft: "#9da7b3", line: "#30363d", back: "#0d1117", mark: "#ff7b72" };

const look = () => (state.theme === "dark" ? DARK : LIGHT);

const waiting = new Map();
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const figure = waiting.get(entry.target);
    figure.seen = entry.isIntersecting;
    if (figure.seen && figure.stale) figure.render();
  }
}, { rootMargin: "300px" });

// Buttons that save a plot as a picture.
const downloads = (plot, name, title) => ["PNG", "SVG"].map((kind) =>
  el("button", {
    type: "button", class: "small", title: `Save this figure as ${kind}`, "aria-label": `Save "${title}" as ${kind}`,
    onclick: () => Plotly.downloadImage(plot, {
      format: kind.toLowerCase(), filename: `${state.data.name}-${name}`, width: 1000, height: 600,
      scale: kind === "PNG" ? 2 : 1,
    }),
  }, kind));

// Make a figure in a section. `work()` gives {traces, layout, reads} or null for nothing to show.
const figure = (section, { name, title, reads, events, controls = [], height = 460, work, after }) => {
  const plot = el("div", { class: "plot" });
  const caption = el("figcaption", {}, reads || "");
  const nothing = el("p", { class: "soft empty", hidden: true }, "Nothing to show.");
  const whole = el("figure", { id: `figure-${name}` },
    el("div", { class: "head" }, el("h3", {}, title), el("div", { class: "tools" }, downloads(plot, name, title))),
    el("div", { class: "controls" }, controls), plot, nothing, caption);
  by(section).append(whole);
  const made = { plot, whole, seen: false, stale: true, name };
  made.render = () => {
    made.stale = false;
    const found = work();
    const empty = found === null || !found.traces.some((trace) => (trace.x || trace.z || []).length);
    nothing.hidden = !empty;
    plot.hidden = empty;
    if (empty) return;
    if (found.reads) caption.textContent = found.reads;
    const size = found.height || height;
    Plotly.react(plot, found.traces, laidOut(found.layout || {}, size, plot.clientWidth, found.traces), {
      responsive: true, displaylogo: false,
      modeBarButtonsToRemove: ["toImage", "lasso2d", "select2d", "autoScale2d"],
    });
    if (!made.wired) { made.wired = true; if (after) after(plot); }
  };
  made.changed = () => { made.stale = true; if (made.seen) made.render(); };
  waiting.set(whole, made);
  watcher.observe(whole);
  listen(`theme ${events || ""}`, made.changed);
  return made;
};

const laidOut = (own, height, width, traces = []) => {
  const colours = look();
  const narrow = width < 560;
  const axis = ({ values, ...given }) => ({
    gridcolor: colours.line, linecolor: colours.line, zerolinecolor: colours.line,
    automargin: true, ticks: "outside", tickcolor: colours.line, ...given,
    ...(given.type === "log" && !given.tickvals ? logTicks(values) : {}),
    title: { text: escaped(given.title || ""), standoff: 8, font: { size: 13 } },
  });
  const { xaxis, yaxis, ...rest } = own;
  const seen = (name) => traces.flatMap((trace) => trace[name] || []);
  return {
    height: narrow ? Math.max(340, height - 60) : height,
    margin: { l: 56, r: 12, t: 12, b: 48 }, paper_bgcolor: colours.back, plot_bgcolor: colours.back,
    font: { family: "system-ui, sans-serif", size: 13, color: colours.ink },
    hoverlabel: { bgcolor: colours.back, bordercolor: colours.soft, align: "left",
      font: { color: colours.ink, family: "system-ui, sans-serif" } },
    hovermode: "closest", showlegend: true,
    legend: narrow
      ? { orientation: "h", yref: "container", y: 0, yanchor: "bottom", x: 0, font: { size: 12 } }
      : { orientation: "v", x: 1.02, y: 1, font: { size: 12 } },
    colorway: COLOURS, dragmode: "zoom", ...rest, xaxis: axis({ values: seen("x"), ...xaxis }), yaxis: axis({ values: seen("y"), ...yaxis }),
  };
};

// Plain numbers at 1, 2 and 5 of each decade; at 1 alone where there are many, at more within one.
const logTicks = (values) => {
  let [low, high] = [Infinity, 0];
  for (const value of values) if (value > 0) { low = Math.min(low, value); high = Math.max(high, value); }
  const decades = high ? Math.log10(high / low) : 1;
  const steps = decades > 3.5 ? [1] : decades > 0.8 ? [1, 2, 5] : [1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8];
  const tickvals = [];
  for (let power = -12; power <= 12; power += 1) for (const step of steps) tickvals.push(Number(`${step}e${power}`));
  return { tickvals, ticktext: tickvals.map((value) => (value < 1e-3 || value >= 1e5 ? value.toExponential(0) : number(value))) };
};

// A colour for each value of an axis: shades where values are numbers.
const palette = (name) => {
  const axis = state.axes.find((one) => one.name === name);
  const values = axis ? axis.values || [...new Set(state.rows.map((r) => r[name]))].filter((v) => v !== null).sort((a, b) => a - b) : [];
  if (!axis) return { values: [], of: () => COLOURS[0] };
  const shades = state.theme === "dark" ? SHADES_DARK : SHADES;
  const at = new Map(values.map((value, place) => [value, place]));
  const of = (value) => {
    const place = at.get(value);
    if (place === undefined) return look().soft;
    if (!axis.numbers) return COLOURS[place % COLOURS.length];
    return mixed(shades, values.length < 2 ? 0.4 : place / (values.length - 1));
  };
  return { values, of };
};

const mixed = (shades, share) => {
  const place = share * (shades.length - 1);
  const low = Math.min(Math.floor(place), shades.length - 2);
  const parts = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  const [from, to] = [parts(shades[low]), parts(shades[low + 1])];
  const between = from.map((value, i) => Math.round(value + (place - low) * (to[i] - value)));
  return `rgb(${between.join(",")})`;
};

const symbols = (name) => {
  const axis = state.axes.find((one) => one.name === name);
  const at = new Map((axis ? axis.values || [] : []).map((value, place) => [value, place]));
  return (value) => SYMBOLS[(at.get(value) ?? 0) % SYMBOLS.length];
};

const scale = (name) => (state.words[name] || {}).log ? "log" : "linear";

// A number's place on a logarithmic axis; what is not positive has none.
const placed = (name, value) =>
  value === null || value === undefined || (scale(name) === "log" && value <= 0) ? null : value;

const escaped = (text) =>
  String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

// What all members share, four to a line; made once.
const shared = () => {
  if (!state.shared) {
    const values = state.data.members.constant
      .map((name) => `${escaped(label(name))} ${escaped(shown(name, state.rows[0][name]))}`);
    const lines = [];
    for (let at = 0; at < values.length; at += 4) lines.push(values.slice(at, at + 4).join(", "));
    state.shared = lines.length ? [`<span style="font-size: 10px">all: ${lines.join("<br>")}</span>`] : [];
  }
  return state.shared;
};

// The whole configuration of a member, for a hover.
const told = (row) => [
  `<b>${escaped(row.name)}</b>`,
  ...[...state.axes.map((axis) => axis.name), ...state.data.members.own].filter((name) => row[name] !== null)
    .map((name) => `${escaped(label(name))}: ${escaped(shown(name, row[name]))}`),
  ...state.metrics.filter((name) => row[name] !== null)
    .map((name) => `${escaped(label(name))}: <b>${escaped(shown(name, row[name]))}</b>`),
  ...shared(),
  `member ${row.id}${row.pareto ? ", Pareto-best" : ""}${row.flags ? `, ${escaped(row.flags)}` : ""}`,
].join("<br>");
