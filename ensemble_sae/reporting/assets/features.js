// The feature browser. A member's features are unpacked when they are first asked for.

const browser = { member: null, block: null, known: new Map(), sort: "score", search: "", silent: false, feature: null, wanted: null, page: 40, matching: [] };
const SORTS = {
  score: ["score, best first", -1], density: ["fires most often", -1], rare: ["fires least often", 1], max: ["largest activation", -1],
  ablation_kl: ["effect of ablating it", -1], steering_kl: ["effect of steering", -1], index: ["number", 1],
};

const makeFeatures = () => {
  const { features, path, model } = state.data;
  if (!features.length && model === null) { by("features").remove(); return; }
  if (!features.length) {
    by("features").append(
      el("p", {}, "Nobody has looked at members' features yet. This looks at six members along the frontier and writes the report again:"),
      code(`python -m ensemble_sae.report ${path} --look 6${model}`));
    return;
  }
  const members = features.map(({ member, features: n }) => [String(member), `${member}: ${state.byId.get(member).name} (L0 ${number(state.byId.get(member).l0)}, ${number(n)} features)`]);
  by("features").append(
    el("p", { class: "soft", id: "features-text" }),
    el("div", { class: "controls", id: "feature-controls" },
      select("member", members, String(features[0].member), (value) => { choose(Number(value)); showFeatures(Number(value), { scroll: false }); }),
      el("span", { id: "feature-sort" }),
      el("label", { class: "pick" }, el("span", {}, "search"), el("input", { type: "search", id: "feature-search", placeholder: "a token, or words of a rule", oninput: (event) => { browser.search = event.target.value.toLowerCase(); listed(); } })),
      el("label", { class: "pick" }, el("input", { type: "checkbox", id: "silent", onchange: (event) => { browser.silent = event.target.checked; listed(); } }), el("span", {}, "also those that never fired")),
      el("span", { id: "feature-count", class: "soft", "aria-live": "polite" })),
    el("div", { class: "browser" },
      el("div", { class: "list" }, el("ol", { id: "feature-list", "aria-label": "Features" }), el("button", { type: "button", class: "small", id: "more", onclick: () => { browser.page += 80; drawList(); } }, "More")),
      el("article", { id: "feature", "aria-live": "polite" })));
  const opened = new IntersectionObserver((entries) => {
    if (entries.some((entry) => entry.isIntersecting)) { opened.disconnect(); if (browser.member === null) showFeatures(firstLooked(), { scroll: false }); }
  }, { rootMargin: "200px" });
  opened.observe(by("features"));
  listen("choose", () => { if (browser.member !== null && browser.member !== state.chosen && isLooked(state.chosen)) showFeatures(state.chosen, { scroll: false }); });
  listen("theme", () => { if (browser.feature !== null) showFeature(browser.feature); });
};

const isLooked = (id) => state.data.features.some((one) => one.member === id);
const firstLooked = () => (isLooked(state.chosen) ? state.chosen : state.data.features[0].member);

const showFeatures = async (member, { scroll = true, feature = null } = {}) => {
  browser.member = member;
  by("feature-controls").querySelector("select").value = String(member);
  if (scroll) by("features").scrollIntoView({ block: "start" });
  if (feature !== null) browser.wanted = { member, feature };
  if (!browser.known.has(member)) browser.known.set(member, unpack(`features-${member}`));
  const block = await browser.known.get(member);
  if (browser.member !== member) return; // another one was asked for meanwhile
  browser.block = block;
  const wanted = browser.wanted && browser.wanted.member === member ? browser.wanted.feature : null;
  const { text } = browser.block;
  by("features-text").textContent = `Looked at on ${number(text.tokens)} tokens: ${number(text.fragments)} fragments of ${text.width}, from ${text.dataset}, read by ${text.model}.`;
  const sorts = Object.keys(SORTS).filter((name) => name === "index" || column(name));
  if (!sorts.includes(browser.sort)) browser.sort = sorts[0];
  by("feature-sort").replaceChildren(select("sort by", sorts.map((name) => [name, SORTS[name][0]]), browser.sort, (value) => { browser.sort = value; listed(); }));
  listed();
  const known = Number.isInteger(wanted) && wanted >= 0 && wanted < column("density").length;
  const first = known ? wanted : browser.matching[0];
  if (first !== undefined) showFeature(first);
  else { browser.feature = null; by("feature").replaceChildren(); }
};

const column = (name) => (name === "score" ? browser.block.score : browser.block.numbers[name === "rare" ? "density" : name]);

// All that is known of a feature in words, for the search; made once.
const searchText = (feature) => {
  const { block } = browser;
  block.texts ??= [];
  if (block.texts[feature] === undefined) {
    const words = Object.values(block.tokens).flatMap((lists) => lists[feature] || []);
    for (const contexts of Object.values(block.contexts)) for (const [, , tokens, places] of contexts[feature]) words.push(...places.map((at) => tokens[at]));
    block.texts[feature] = `${feature} ${block.rule ? block.rule[feature] : ""} ${[...new Set(words)].map((at) => block.words[at]).join(" ")}`.toLowerCase();
  }
  return block.texts[feature];
};

const listed = () => {
  const { sort, search, silent } = browser;
  const density = column("density");
  const keys = sort === "index" ? null : column(sort);
  const sense = SORTS[sort][1];
  browser.matching = density.map((_, feature) => feature)
    .filter((feature) => silent || density[feature] > 0)
    .filter((feature) => !search || searchText(feature).includes(search))
    .sort((a, b) => {
      if (!keys) return a - b;
      if (keys[a] === null || keys[b] === null) return (keys[a] === null) - (keys[b] === null) || a - b;
      return sense * (keys[a] - keys[b]) || a - b;
    });
  browser.page = 40;
  by("feature-count").textContent = `${number(browser.matching.length)} of ${number(density.length)} features`;
  drawList();
};

const drawList = () => {
  const { block, matching, page } = browser;
  by("feature-list").replaceChildren(...matching.slice(0, page).map((feature) => {
    const score = block.score && block.score[feature];
    const told = block.rule && block.rule[feature] ? block.rule[feature] : tokensText("promoted", feature);
    return el("li", {}, el("button", { type: "button", "data-feature": String(feature), class: feature === browser.feature ? "on" : "", onclick: () => showFeature(feature) },
      el("span", { class: "index" }, String(feature)), el("span", { class: "told" }, visible(told)),
      el("span", { class: "soft nums" }, `${percent(block.numbers.density[feature])}${score === null || score === undefined ? "" : ` · score ${number(score, 2)}`}`)));
  }));
  by("more").hidden = matching.length <= page;
};

const tokensText = (name, feature) => ((browser.block.tokens[name] || [])[feature] || []).map((at) => browser.block.words[at]).join(" ");

const showFeature = (feature) => {
  browser.feature = feature;
  if (browser.wanted && browser.wanted.feature !== feature) browser.wanted = null;
  if (browser.member === state.chosen) remember({ feature });
  for (const button of by("feature-list").querySelectorAll("button")) button.classList.toggle("on", Number(button.dataset.feature) === feature);
  if (by("histogram")) Plotly.purge(by("histogram"));
  by("feature").replaceChildren(...featureParts(feature));
  drawHistogram(feature);
};

const LISTS = [
  ["promoted", "promotes", "tokens whose logits its direction raises most (logit lens)"],
  ["suppressed", "suppresses", "tokens whose logits its direction lowers most (logit lens)"],
  ["tuned_promoted", "promotes, tuned lens", "the same by a tuned lens"], ["tuned_suppressed", "suppresses, tuned lens", "the same by a tuned lens"],
  ["lowered", "without it less likely", "tokens that ablating it makes less likely"], ["raised", "without it more likely", "tokens that ablating it makes more likely"],
  ["steers_to", "steers to", "tokens that adding it everywhere makes more likely"],
];

const featureParts = (feature) => {
  const { block, member } = browser;
  const value = (name) => (block.numbers[name] || [])[feature];
  const facts = [
    ["fires on", percent(value("density")), "of tokens"], ["mean", number(value("mean")), "of its code where it fires"], ["largest", number(value("max")), "activation seen"],
    ...(block.score ? [["score", number(block.score[feature], 2), "correlation of what its rule foretells with what it does, on other text"]] : []),
    ...(value("ablation_kl") !== undefined ? [["ablated", `${number(value("ablation_kl"))} nats`, "divergence of the model's predictions without it"]] : []),
    ...(value("steering_kl") !== undefined ? [["steered", `${number(value("steering_kl"))} nats`, "divergence with its largest activation added everywhere"]] : []),
  ];
  return [
    el("h3", {}, `Feature ${feature}`, el("span", { class: "soft" }, ` of member ${member}`)),
    el("dl", { class: "facts" }, facts.map(([name, text, reads]) => el("div", { title: reads }, el("dt", {}, name), el("dd", {}, text)))),
    block.rule && block.rule[feature] ? el("p", {}, el("strong", {}, "Rule: "), el("span", { class: "told" }, visible(block.rule[feature]))) : null,
    block.hangs_on && block.hangs_on[feature] ? el("p", {}, el("strong", {}, "Hangs on: "), visible(block.hangs_on[feature])) : null,
    ...LISTS.filter(([name]) => ((block.tokens[name] || [])[feature] || []).length).map(([name, title, reads]) =>
      el("p", { class: "chips", title: reads }, el("strong", {}, `${title}: `), block.tokens[name][feature].map((at) => el("code", {}, visible(block.words[at]))))),
    ...contextParts(feature, "top", "Strongest"), ...contextParts(feature, "spread", "From its weakest to its strongest"),
    histogramPart(feature), neighbourPart(feature),
    block.call ? code(`${python(state.byId.get(member))}\nfeature = ${block.call}[${feature}]`) : null,
  ].filter((one) => one !== null);
};

const contextParts = (feature, kind, title) => {
  const { block } = browser;
  const contexts = block.contexts[kind][feature];
  if (!contexts.length) return [];
  const largest = block.numbers.max[feature];
  return [el("h4", {}, title), el("ol", { class: "contexts" }, contexts.map(([fragment, strength, tokens, places, percents]) => {
    const at = new Map(places.map((place, i) => [place, percents[i]]));
    return el("li", { title: `fragment ${fragment}` }, el("span", { class: "strength" }, number(strength)),
      el("span", { class: "text" }, tokens.map((token, place) => {
        const share = at.get(place) || 0;
        const text = visible(block.words[token]);
        if (!share) return text;
        const word = el("mark", { title: `${number(share / 100 * largest)}`, class: share < 0 ? "negative" : "" }, text);
        word.style.setProperty("--share", String(Math.abs(share) / 100));
        return word;
      })));
  }))];
};

const neighbourPart = (feature) => {
  const near = browser.block.neighbours && browser.block.neighbours[feature];
  if (!near || !near.length) return null;
  return el("p", { class: "chips" }, el("strong", {}, "Nearest in this member: "), near.map(([other, cosine]) =>
    el("button", { type: "button", class: "small", title: `cosine ${number(cosine)}`, onclick: () => showFeature(other) }, `${other} (${number(cosine, 2)})`)));
};

const sizesOf = (feature) => {
  const { histogram } = browser.block;
  const used = histogram ? histogram.counts[feature].map((count, i) => (count ? i : -1)).filter((i) => i >= 0) : [];
  return used.length ? [used[0], used[used.length - 1] + 1] : null;
};

const histogramPart = (feature) => {
  if (!sizesOf(feature)) return null;
  const plot = el("div", { id: "histogram", role: "img", "aria-label": "Histogram of its activations" });
  return el("figure", {}, el("div", { class: "head" }, el("h4", {}, "How strongly it fires"),
    el("div", { class: "tools" }, downloads(plot, `feature-${browser.member}-${feature}`, "How strongly it fires"))),
  plot, el("figcaption", {}, "Tokens by the activation of this feature, where it fires; two bars per doubling."));
};

const drawHistogram = (feature) => {
  if (!sizesOf(feature)) return;
  const { edges, counts } = browser.block.histogram;
  const [low, high] = sizesOf(feature);
  const bars = edges.slice(low, high);
  const room = by("histogram");
  Plotly.newPlot(room, [{
    type: "bar", y: counts[feature].slice(low, high), x: bars.map((edge, i) => Math.sqrt(edge * edges[low + i + 1])),
    width: bars.map((edge, i) => 0.94 * (edges[low + i + 1] - edge)), marker: { color: COLOURS[0] },
    hovertemplate: "%{y} tokens, about %{x:.3g}<extra></extra>",
  }], { ...laidOut({ xaxis: { title: "activation", type: "log" }, yaxis: { title: "tokens" } }, 220, room.clientWidth, [{ x: edges.slice(low, high + 1) }]), height: 220, showlegend: false, bargap: 0 },
  { responsive: true, displayModeBar: false });
};
