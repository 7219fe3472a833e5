// In the language model: along the positions of a context, and by how frequent the token is.

const makeProfiles = () => {
  const { evaluated, path, model } = state.data;
  if (!evaluated.references && model === null) { by("lm").remove(); return; }
  if (!evaluated.references) {
    by("lm").append(el("p", {}, "Members are not evaluated in their language model yet. This command does it, and the next report shows it:"),
      code(`python -m ensemble_sae.evaluate ${path}${model}\npython -m ensemble_sae.report ${path}`));
    return;
  }
  const lines = Object.entries(evaluated.references).map(([hook, known]) =>
    `${hook}: cross-entropy ${number(known.ce_clean, 4)} nats per token undisturbed, ${number(known.ce_mean, 4)} with the mean row in place of all rows, ${number(known.ce_zero, 4)} with zeros.`);
  by("lm").append(el("ul", { class: "soft" }, lines.map((line) => el("li", {}, line))));
  const words = { ce: "Cross-entropy in nats", kl: "Divergence in nats", fvu: "FVU", l0: "L0" };
  profile("position", words, (places) => places, { title: "position in the context" },
    "Along the context", "A line is a member; a point, the mean over a few neighbouring positions, and the first ones by themselves. Where a line rises, the member loses more.");
  profile("frequency", words, () => evaluated.bands.map(short).map(escaped), { title: "share of the token in the training text", type: "category" },
    "By how frequent the token is", "A line is a member; rare tokens are at the left. Of frequency bands without a token in the text nothing is drawn.");
};

const short = (band) => band.replace("below ", "< ").replace(" to ", "–").replace(/^(.*) and above$/, "≥ $1");

const profile = (axis, words, places, xaxis, title, reads) => {
  const found = state.data.evaluated[axis];
  const view = { quantity: "ce", who: "pareto" };
  if (!best().some((row) => row.id in found.ce.of)) view.who = "all";
  const of = (row) => {
    const own = found[view.quantity];
    const y = own.of[row.id];
    return y ? { x: places(own.places), y } : null;
  };
  const made = figure("lm", {
    name: `by-${axis}`, title, events: "filter choose", after: clickChooses,
    controls: [
      select("up", Object.entries(words), view.quantity, (value) => { view.quantity = value; made.changed(); }),
      select("members", whose, view.who, (value) => { view.who = value; made.changed(); }),
    ],
    work: () => ({
      traces: [...joinedLines(ofWhom(view.who), penalty(), of), ...chosenLine(of)],
      layout: { xaxis, yaxis: { title: words[view.quantity] } },
      reads: `${words[view.quantity]}, with the member's reconstruction in place of what it reads. ${reads}`,
    }),
  });
};
