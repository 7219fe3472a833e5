// The chosen member: what it is, what came of it, and the lines that load it and take it elsewhere.

const makeChosen = () => {
  const box = el("div", { id: "chosen", "aria-live": "polite" });
  by("member").append(box);
  listen("choose", () => box.replaceChildren(...chosenParts()));
  box.append(el("p", { class: "soft" }, "Click a point above, or a row of the table, to choose a member."));
};

const python = (row) => `import ensemble_sae\n\nrun = ${state.data.load}\nsae = run.sae(${row.id})  # ${row.name.replace(/\s+/g, " ")}`;

const chosenParts = () => {
  const row = state.byId.get(state.chosen);
  const looked = state.data.features.some((one) => one.member === row.id);
  const facts = (names) => el("dl", { class: "facts" }, names
    .filter((name) => row[name] !== null && row[name] !== undefined)
    .map((name) => el("div", { title: (state.words[name] || {}).reads || "" },
      el("dt", {}, label(name)), el("dd", {}, shown(name, row[name])))));
  const rest = state.data.members.constant.filter((name) => row[name] !== null);
  return [
    el("h3", { class: "who" }, row.name, el("span", { class: "soft" }, ` member ${row.id}`),
      row.pareto ? el("span", { class: "badge" }, "Pareto-best") : null,
      row.status !== "trained" ? el("span", { class: "badge warn" }, row.status) : null,
      row.flags ? el("span", { class: "badge warn" }, row.flags) : null),
    facts(state.metrics),
    facts([...state.axes.map((axis) => axis.name), ...state.data.members.own]),
    el("details", {}, el("summary", {}, "What all members share"), facts(rest)),
    looked
      ? el("p", {}, el("button", { type: "button", id: "its-features", onclick: () => showFeatures(row.id) }, "Look at its features"))
      : state.data.model === null ? null : el("div", {}, el("p", { class: "soft" }, "Nobody has looked at its features yet; this does, and writes the report again:"),
        code(`python -m ensemble_sae.report ${state.data.path} --members ${row.id}${state.data.model}`)),
    el("div", { class: "two" },
      el("div", {}, el("p", { class: "soft" }, "Load it in Python"), code(python(row))),
      el("div", {}, el("p", { class: "soft" }, "Take it to SAELens (or dictionary_learning, sparsify, safetensors)"),
        code(`python -m ensemble_sae.export ${state.data.path} \\\n    --member ${row.id} --to saelens --out exported/saelens-${row.id}`))),
  ].filter((part) => part !== null);
};
