// Begin: unpack the data, make the parts, choose what the address says or the best near an L0 of 20.

const makeGlance = () => {
  const { glance, notes, name } = state.data;
  by("name").textContent = name;
  by("facts").append(...glance.map(([what, text]) => el("div", {}, el("dt", {}, what), el("dd", {}, text))));
  by("notes").append(...notes.map((note) => el("li", {}, note)));
  by("notes").hidden = !notes.length;
};

const makeNav = () => by("nav").append(...[...document.querySelectorAll("main section")].map((section) => {
  const short = { glance: "Glance", pareto: "Frontier", member: "Chosen", heat: "Heat maps", training: "Training", sizes: "Dictionaries", lm: "Language model", members: "Members", features: "Features" };
  return el("a", { href: `#${section.id}`, onclick: (event) => { event.preventDefault(); section.scrollIntoView(); section.querySelector("h2").focus(); } }, short[section.id]);
}));

const firstChosen = () => {
  const asked = Number(recalled().get("member") ?? NaN);
  if (state.byId.has(asked)) return asked;
  const pool = best().filter((row) => row.l0 > 0);
  const away = (row) => Math.abs(Math.log(row.l0 / 20));
  const row = pool.sort((a, b) => away(a) - away(b))[0] || state.rows[0];
  return row.id;
};

// Another address of this page: what it names is shown.
const follow = () => {
  const now = recalled();
  if (!now.has("member") || !state.byId.has(Number(now.get("member")))) return;
  const [member, feature] = [Number(now.get("member")), now.get("feature")];
  choose(member);
  if (feature !== null && isLooked(member)) showFeatures(member, { feature: Number(feature) });
};

const begin = async () => {
  take(await unpack("data"));
  beginTheme();
  makeGlance();
  makeFilters();
  makePareto();
  makeChosen();
  makeHeat();
  makeTraining();
  makeSizes();
  makeProfiles();
  makeTable();
  makeFeatures();
  makeNav();
  for (const head of document.querySelectorAll("main h2")) head.tabIndex = -1;
  const feature = recalled().get("feature");
  const member = firstChosen();
  choose(member);
  if (feature !== null && isLooked(member)) showFeatures(member, { scroll: true, feature: Number(feature) });
  addEventListener("hashchange", follow);
  by("loading").remove();
  document.documentElement.dataset.ready = "yes";
};

begin().catch((error) => {
  by("loading").textContent = `This page could not be drawn: ${error}. Please use a browser of 2023 or later.`;
  throw error;
});
