// Filters for every axis along which members differ. They hold for all figures and the table.

const makeFilters = () => {
  const boxes = state.axes.map((axis) => (axis.values ? ticked(axis) : between(axis)));
  const count = el("span", { class: "soft", "aria-live": "polite" });
  const all = el("button", { type: "button", class: "small", onclick: () => tell("reset") }, "Show all");
  const said = () => {
    count.textContent = `${state.visible.length} of ${state.rows.length} members`;
    all.disabled = state.visible.length === state.rows.length;
  };
  listen("filter", said);
  said();
  by("pareto").append(el("details", { id: "filters", open: innerWidth > 700 },
    el("summary", {}, el("span", {}, "Filters "), count), el("div", { class: "filters" }, boxes), all));
  listen("reset", () => { state.filters = {}; filtered("", null); });
};

const ticked = (axis) => {
  const values = [...axis.values, ...(axis.lacking ? [null] : [])];
  const on = new Set(values);
  const boxes = values.map((value) => {
    const box = el("input", { type: "checkbox", checked: true, onchange: () => {
      if (box.checked) on.add(value); else on.delete(value);
      filtered(axis.name, on.size === values.length ? null : (own) => on.has(own));
    } });
    return el("label", {}, box, el("span", {}, value === null ? "without" : shown(axis.name, value)));
  });
  listen("reset", () => {
    values.forEach((value) => on.add(value));
    boxes.forEach((one) => { one.firstChild.checked = true; });
  });
  const only = el("button", { type: "button", class: "small none", onclick: () => {
    const none = on.size === 0;
    values.forEach((value) => (none ? on.add(value) : on.delete(value)));
    boxes.forEach((one) => { one.firstChild.checked = none; });
    only.textContent = none ? "none" : "all";
    filtered(axis.name, none ? null : (own) => on.has(own));
  } }, "none");
  listen("filter", () => { only.textContent = on.size ? "none" : "all"; });
  return el("fieldset", { "data-axis": axis.name, title: (state.words[axis.name] || {}).reads || "" },
    el("legend", {}, label(axis.name), " ", only), el("div", { class: "ticks" }, boxes));
};

const between = (axis) => {
  const ends = [axis.from, axis.to].map((value, place) =>
    el("input", { type: "number", step: "any", value: String(value),
      "aria-label": `${label(axis.name)} ${place ? "to" : "from"}`, onchange: () => cut() }));
  const cut = () => {
    const [low, high] = ends.map((end, i) => (end.value === "" ? [axis.from, axis.to][i] : Number(end.value)));
    const whole = low <= axis.from && high >= axis.to;
    filtered(axis.name, whole ? null : (own) => own !== null && own >= low && own <= high);
  };
  listen("reset", () => ends.forEach((end, i) => { end.value = String([axis.from, axis.to][i]); }));
  return el("fieldset", { "data-axis": axis.name }, el("legend", {}, label(axis.name)),
    el("div", { class: "ticks" }, ends[0], " to ", ends[1]));
};
